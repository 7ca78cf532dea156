from . import distributed as distributed
from . import inference as inference
from . import training as training

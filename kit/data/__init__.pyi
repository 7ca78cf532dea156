from . import dataset as dataset
from . import split as split
from . import standin as standin
from . import store as store
from . import tensor_transforms as tensor_transforms
from . import transforms as transforms

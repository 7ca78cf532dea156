from . import momentum as momentum
from . import search as search
from . import sharing as sharing
from . import study as study

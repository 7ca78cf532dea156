from . import equivariance as equivariance
from . import layers as layers
from . import models as models

"""A sweep of BatchNorm's momentum: one training serves all momenta.

`sweep` trains, `statistics_bank` keeps the running statistics of every momentum, `tables` judges.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

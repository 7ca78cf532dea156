"""Networks with one logit: the kit's own, timm's, and copies of them for evaluation.

They take float images and know nothing of data, training or the run folder.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

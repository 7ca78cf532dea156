"""The tiles: packing and proving them, splits and slides, transforms, datasets and loaders.

Also the synthetic competition. It knows nothing of models.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

"""The run folder: training into it, reading it, rebuilding its model, folds, ensembles, exports.

A run is everything about one training, and enough to rebuild its model from nothing else.
It knows nothing of studies, which compare runs, or of the pages that describe them.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

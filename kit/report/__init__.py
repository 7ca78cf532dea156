"""Pages and figures of runs, studies, searches and tiles: one HTML file each.

It knows nothing of how a run was trained: it reads run folders, studies' tables and the store.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

"""What everything else rests on: errors, files and locks, the competition's facts, recipes, tables.

It knows nothing of PyTorch: a command reads its options with this alone, before anything slow.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

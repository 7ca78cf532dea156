"""Training and predicting: device and precision, the loop, recalibrating, several processes.

It takes datasets and networks, and yields results. It knows nothing of the run folder.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

"""The best submission that a limited time allows: which parts are trained, and for how long.

`seeking` holds the loop. `parts` lists what may be trained, `costs` measures it, `plan` chooses
what fits, `training` keeps to the time, `mean` averages, `record` remembers.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

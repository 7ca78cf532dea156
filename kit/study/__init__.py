"""Studies of several runs: arms paired by seed, and in rooms `momentum`, `search` and `best`.

What lives here trains runs into a study's folder, alone or with other machines, and compares them
in tables and one sentence. It knows nothing of pages and plots.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

"""A search over a recipe's options with Optuna, by one worker or many.

`worker` trains trials, `space` says what varies, `trials` how each is drawn and where it lies, and
`result` tells what was found.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

"""What talks to Kaggle: credentials, the download, submissions, kernels and their script.

The only place that touches Kaggle's client. It knows nothing of models and training.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

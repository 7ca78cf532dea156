"""A competition kit for Kaggle's Histopathologic Cancer Detection."""

import os

# PyTorch's threads spin while they wait for each other. Where another process wants a core as
# well, that makes training up to ten times slower; sleeping threads share.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

__version__ = "0.1.0"

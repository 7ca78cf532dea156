"""A competition kit for Kaggle's Histopathologic Cancer Detection."""

__version__ = "0.4.0"

"""Libraries that come with the package's extra `export`."""

import importlib
from types import ModuleType

from kit.base import KitError


def import_extra(name: str) -> ModuleType:
    """Import a library, or say how to install it."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise KitError(
            f"{error.name} is not installed: pip install 'histopathologic-cancer-kit[export]'"
        ) from error

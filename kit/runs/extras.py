"""Libraries that come with the package's extras."""

import importlib
from types import ModuleType

from kit.base import KitError


def import_extra(name: str, extra: str = "export") -> ModuleType:
    """Import a library, or say how to install it."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        what = f"{error.name} is not installed" if error.name else f"{name} cannot be imported"
        raise KitError(f"{what}: pip install 'histopathologic-cancer-kit[{extra}]'") from error

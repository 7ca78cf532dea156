"""The packages' order: imports run downwards only, and each library has one place."""

import ast
import importlib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LEVELS = [
    {"base"},
    {"stats", "data", "models", "kaggle"},
    {"training"},
    {"runs"},
    {"study"},
    {"report"},
]
# Who may import a library; nobody imports Kaggle's client, which runs as a child.
PLACES = {
    "albumentations": {"data"},
    "timm": {"models"},
    "optuna": {"study"},
    "kaggle": set(),
}


def imports(path: Path) -> Iterator[str]:
    """Yield the dotted names that a file imports, `kit.x` also for `from kit import x`."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module == "kit":
            yield from (f"kit.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def level(package: str) -> int:
    return next(number for number, names in enumerate(LEVELS) if package in names)


def package_of(path: Path) -> str:
    return path.relative_to(ROOT / "kit").parts[0]


def dotted(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


PACKAGES = set().union(*LEVELS)
SCRIPTS = sorted(path for name in ("kernels", "benchmarks") for path in ROOT.glob(f"{name}/*.py"))
MODULES = sorted(path for name in PACKAGES for path in ROOT.glob(f"kit/{name}/**/*.py"))
DOORS = [dotted(path.parent) for path in sorted(ROOT.glob("kit/**/__init__.pyi"))]
ROOMS = [door for door in DOORS if door.count(".") > 1]


@pytest.mark.parametrize("path", MODULES, ids=dotted)
def test_imports_run_downwards_and_through_doors(path: Path) -> None:
    own = package_of(path)
    for name in imports(path):
        _, package, *behind = (name + ".").split(".")
        if name.startswith("kit.") and package in PACKAGES - {own}:
            assert level(package) < level(own), name
            assert not any(behind), f"{name} is behind the door of {package}"
        for room in ROOMS:
            is_inside = dotted(path).startswith(f"{room}.")
            assert is_inside or not name.startswith(f"{room}."), f"{name} is behind a room's door"


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_scripts_import_through_doors(path: Path) -> None:
    assert [name for name in imports(path) if name.startswith("kit.") and name.count(".") > 1] == []


@pytest.mark.parametrize("path", MODULES, ids=dotted)
def test_each_library_has_one_place(path: Path) -> None:
    libraries = {name.split(".")[0] for name in imports(path)}
    for library, places in PLACES.items():
        assert library not in libraries or package_of(path) in places


def test_each_package_has_a_door() -> None:
    assert {f"kit.{name}" for name in PACKAGES} <= set(DOORS)


@pytest.mark.parametrize("name", DOORS)
def test_all_that_a_door_promises_is_there(name: str) -> None:
    door = importlib.import_module(name)
    assert [promised for promised in door.__all__ if not hasattr(door, promised)] == []


def test_kernels_never_import_each_other() -> None:
    kernels = {path.stem for path in (ROOT / "kernels").glob("*.py")}
    assert len(kernels) > 3
    for path in (ROOT / "kernels").glob("*.py"):
        assert not {name.split(".")[0] for name in imports(path)} & (kernels | {"kernels"})

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
LEVEL = {f"kit.{name}": number for number, names in enumerate(LEVELS) for name in names}
# Who may import a library; nobody imports Kaggle's client, which runs as a child.
PLACES = {
    "albumentations": "kit.data",
    "timm": "kit.models",
    "optuna": "kit.study",
    "kaggle": None,
}


def dotted(path: Path) -> str:
    """Name a module: `kit.study.best.plan`; a package by its `__init__`."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def package(name: str) -> str:
    """Return the package that a dotted name is in: `kit.study` of `kit.study.best.plan`."""
    return ".".join(name.split(".")[:2])


def imported(path: Path) -> Iterator[str]:
    """Yield the dotted names that a file imports, `kit.x` also for `from kit import x`."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module == "kit":
            yield from (f"kit.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def imports(*patterns: str) -> list[tuple[str, str]]:
    """Return each import in some files as the name of the file and what it imports."""
    paths = [path for pattern in patterns for path in sorted(ROOT.glob(pattern))]
    assert len(paths) > 3
    return [(dotted(path), name) for path in paths for name in imported(path)]


DOORS = [dotted(path.parent) for path in sorted(ROOT.glob("kit/**/__init__.pyi"))]


def is_behind(door: str, importer: str, name: str) -> bool:
    """Whether an import passes a door by, from outside."""
    return name.startswith(f"{door}.") and not importer.startswith(f"{door}.")


def test_imports_run_downwards() -> None:
    assert [
        f"{importer} imports {name}"
        for importer, name in imports("kit/*/**/*.py")
        if package(name) in LEVEL.keys() - {package(importer)}
        and LEVEL[package(name)] >= LEVEL[package(importer)]
    ] == []


def test_imports_pass_through_doors() -> None:
    """Those of packages, and those of the rooms in a package."""
    assert LEVEL.keys() <= set(DOORS)
    assert [
        f"{importer} imports {name}, which is behind the door of {door}"
        for importer, name in imports("kit/**/*.py", "kernels/*.py", "benchmarks/*.py")
        for door in DOORS
        if is_behind(door, importer, name)
    ] == []


def test_each_library_has_one_place() -> None:
    assert [
        f"{importer} imports {name}"
        for importer, name in imports("kit/**/*.py")
        for library, place in PLACES.items()
        if name.split(".")[0] == library and package(importer) != place
    ] == []


@pytest.mark.parametrize("name", DOORS)
def test_all_that_a_door_promises_is_there(name: str) -> None:
    door = importlib.import_module(name)
    assert [promised for promised in door.__all__ if not hasattr(door, promised)] == []


def test_kernels_never_import_each_other() -> None:
    kernels = {path.stem for path in (ROOT / "kernels").glob("*.py")}
    assert [
        f"{importer} imports {name}"
        for importer, name in imports("kernels/*.py")
        if name.split(".")[0] in kernels | {"kernels"}
    ] == []

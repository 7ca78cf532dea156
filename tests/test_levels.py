"""The design's levels: imports run downwards only, and each library has one door."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LEVELS = [
    {"errors"},
    {"files", "competition", "config", "metrics", "tables", "distributed"},
    {"layers"},
    {"equivariance"},
    {
        "store",
        "standin",
        "split",
        "transforms",
        "models",
        "submission",
        "kaggle_client",
        "on_kaggle",
    },
    {"tensor_transforms", "bundle"},
    {"dataset"},
    {"inference"},
    {"training"},
    {"runs"},
    {"sharing", "plots", "export", "ensemble"},
    {"study", "search"},
    {"momentum", "report"},
    {"pages"},
    {"explore"},
]
DOORS = {
    "albumentations": {"transforms"},
    "timm": {"models"},
    "optuna": {"search", "sharing"},
    "kaggle": set(),
}


def imported(path: Path) -> set[str]:
    """Names of all modules that a file imports, `kit.x` also where it says `from kit import x`."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def kit_modules(path: Path) -> set[str]:
    known = set().union(*LEVELS)
    parts = {tuple(name.split(".")) for name in imported(path)}
    return {part[1] for part in parts if part[0] == "kit" and len(part) > 1 and part[1] in known}


def level(module: str) -> int:
    return next(number for number, names in enumerate(LEVELS) if module in names)


MODULES = sorted(path for path in (ROOT / "kit").glob("*.py") if path.stem != "__init__")


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_imports_run_downwards(path: Path) -> None:
    beside = {other for other in kit_modules(path) if level(other) >= level(path.stem)}
    allowed = {"competition", "files"} if path.stem in {"config", "metrics"} else set()
    assert beside - allowed == set()


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_each_library_has_one_door(path: Path) -> None:
    libraries = {name.split(".")[0] for name in imported(path)}
    for library, doors in DOORS.items():
        assert library not in libraries or path.stem in doors


def test_kernels_never_import_each_other() -> None:
    kernels = {path.stem for path in (ROOT / "kernels").glob("*.py")}
    assert len(kernels) > 3
    for path in (ROOT / "kernels").glob("*.py"):
        assert not {name.split(".")[0] for name in imported(path)} & (kernels | {"kernels"})

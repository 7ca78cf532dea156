"""What is mounted in Kaggle's container besides the competition: weights, packed tiles."""

import os
from collections.abc import Iterator
from pathlib import Path

from kit.base import KitError, competition

_WEIGHTS = (".safetensors", ".pth", ".pt", ".bin", ".ckpt")


def find_weights(root: Path, model: str) -> Path:
    """Return the file of weights in a mounted dataset or model that is meant for a timm model.

    Where there are several, its path names the model, with or without the tag of its weights.

    Parameters
    ----------
    root
        /kaggle, or an imitation of it.

    Raises
    ------
    KitError
        If there is none, or more than one could be meant.
    """
    found = [path for path in _given_files(root) if path.suffix in _WEIGHTS]
    if not found:
        raise KitError(
            f"no file of weights ({', '.join(_WEIGHTS)}) for {model} is mounted: see the address "
            "of --dataset or --kaggle-model, and what lies there"
        )
    for choose in (found, _naming(found, model), _naming(found, model.partition(".")[0])):
        if (one := _only_one(choose)) is not None:
            return one
    listed = ", ".join(map(str, found[:5]))
    raise KitError(
        f"{len(found)} files of weights are mounted, and none or several name {model}: choose one "
        f"with --weights, of {listed}"
    )


def _only_one(paths: list[Path]) -> Path | None:
    """Return the only file of the best kind; None if there are several of it."""
    kinds = ([path for path in paths if path.suffix == suffix] for suffix in _WEIGHTS)
    best = next(filter(None, kinds), [])
    return best[0] if len(best) == 1 else None


def find_store(root: Path) -> Path | None:
    """Return a packed store that lies in a mounted dataset or output, if one does.

    Parameters
    ----------
    root
        /kaggle, or an imitation of it.
    """
    manifests = (path for path in _given_files(root) if path.name == "manifest.json")
    return next((path.parent for path in manifests if _is_store(path.parent)), None)


def _is_store(folder: Path) -> bool:
    return all((folder / f"{split}.npy").is_file() for split in competition.SPLITS)


def _naming(paths: list[Path], name: str) -> list[Path]:
    """Return those in which the name of a model stands, however its words are joined."""
    return [path for path in paths if _plain(name) in _plain(str(path))]


def _plain(text: str) -> str:
    return "".join(character for character in text.lower() if character.isalnum())


def _given_files(root: Path) -> Iterator[Path]:
    """Yield the files of all mounts but the competition's, which has 277,483."""
    competitions = {root / mount.relative_to("/kaggle") for mount in competition.KAGGLE_INPUTS}
    for folder, below, names in os.walk(root / "input"):
        # Nor runs and studies: their checkpoints are no published weights.
        others = (name for name in below if name not in ("runs", "studies"))
        below[:] = sorted(name for name in others if Path(folder, name) not in competitions)
        yield from (Path(folder, name) for name in sorted(names))

"""Opening the run of a study: where a worker left it, or from its start."""

import shutil
from pathlib import Path

from kit.base import LOCK_NAME, FolderLock, KitError, Recipe
from kit.data import Store
from kit.runs import Run, begin_run


def open_run(
    recipe: Recipe, store: Store, folder: Path, *, device: str, workers: int, resume: bool = True
) -> Run:
    """Open a run, and go on where a dead worker left it.

    What cannot be gone on with, as a run of another device, is trained from its start.

    Raises
    ------
    KitError
        If another process is at work in the folder, or it cannot be read or written.
    """
    if resume and (folder / "config.json").exists():
        try:
            return begin_run(recipe, store, folder, device=device, workers=workers, resume=True)
        except KitError as error:
            # The disk or another process is to blame, and not what lies there.
            if isinstance(error.__cause__, OSError):
                raise
        clear_folder(folder)
    return begin_run(recipe, store, folder, device=device, workers=workers)


def clear_folder(folder: Path) -> None:
    """Remove what a run left in its folder, config.json last: a kill leaves one that says so.

    Raises
    ------
    KitError
        If another process is at work there.
    """
    if not folder.exists():
        return
    with FolderLock(folder):
        config = folder / "config.json"
        for path in folder.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            elif path not in (config, folder / LOCK_NAME):
                path.unlink()
        config.unlink(missing_ok=True)

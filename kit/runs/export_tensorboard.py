"""A run's history as TensorBoard's event files."""

from pathlib import Path

from kit.base import KitError, atomic_folder
from kit.runs.extras import import_extra
from kit.runs.folder import read_config, read_history
from kit.runs.log import epoch_figures, final_figures, logged_run


def write_tensorboard(path: Path, folder: Path) -> None:
    """Write a run's log for TensorBoard, one step per epoch, into `path`/RUN.

    Raises
    ------
    KitError
        If the folder holds no run, or the log is there already, which TensorBoard would mix with
        this one.
    """
    import_extra("tensorboard")
    from kit.runs.log_tensorboard import TensorBoardLogger

    read_config(folder)
    target = path / folder.resolve().name
    if target.exists():
        raise KitError(f"{target} exists: name another folder with --tensorboard")
    with atomic_folder(target) as partial:
        logger = TensorBoardLogger(logged_run(folder), partial)
        for result in read_history(folder):
            logger.on_epoch(result.epoch, epoch_figures(result))
        if (folder / "metrics.json").exists():
            logger.on_end(final_figures(folder), {})
        logger.close(finished=True)

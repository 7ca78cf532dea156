"""A run's history as TensorBoard's event files."""

from dataclasses import asdict
from pathlib import Path

from kit.base import KitError, atomic_folder
from kit.runs.extras import import_extra
from kit.runs.folder import read_config, read_history


def write_tensorboard(path: Path, folder: Path) -> None:
    """Write a run's history as TensorBoard scalars, one step per epoch, into `path`/RUN.

    Raises
    ------
    KitError
        If the folder holds no run, or the scalars are there already, which TensorBoard would
        mix with these.
    """
    import_extra("tensorboard")
    from torch.utils.tensorboard import SummaryWriter

    read_config(folder)
    target = path / folder.resolve().name
    if target.exists():
        raise KitError(f"{target} exists: name another folder with --tensorboard")
    with atomic_folder(target) as partial, SummaryWriter(str(partial)) as writer:
        for result in read_history(folder):
            for name, value in asdict(result).items():
                if name != "epoch" and value is not None:
                    side, _, figure = name.partition("_")
                    # train/loss and valid/loss; the others as they are.
                    tag = f"{side}/{figure}" if side in ("train", "valid") else name
                    writer.add_scalar(tag, value, result.epoch)

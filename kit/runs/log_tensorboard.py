"""A run's log as TensorBoard's event files, in its own folder."""

import shlex
import time
from collections.abc import Mapping
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from kit.base import Pixels
from kit.runs.folder import inside
from kit.runs.log import LoggedRun


class TensorBoardLogger:
    """See `log.Logger`.

    Parameters
    ----------
    folder
        Of the event files; tensorboard/ in the run's own by default, so that --logdir runs shows
        all runs.
    """

    def __init__(self, run: LoggedRun, folder: Path | None = None) -> None:
        folder = folder or inside(run.folder, "tensorboard")
        # A kill may have taken the last epoch that the history holds.
        earlier = [path.name for path in folder.glob("events.*")]
        self.last = max(run.epochs - 1, 0) if earlier else 0
        self.look = shlex.join(["tensorboard", "--logdir", str(run.folder.parent)])
        _wait_for_later_name(earlier)
        # What is logged again replaces what was logged before.
        self._writer = SummaryWriter(str(folder), purge_step=self.last + 1)
        self._options = {name: _plain(value) for name, value in run.options.items()}
        lines = [f"    {name} = {value}" for name, value in self._options.items()]
        self._writer.add_text("recipe", "\n".join(lines))

    def on_epoch(self, epoch: int, figures: Mapping[str, float]) -> None:
        for name, value in figures.items():
            self._writer.add_scalar(name, value, epoch)
        self._writer.flush()
        self.last = epoch

    def on_end(self, figures: Mapping[str, float], images: Mapping[str, Pixels]) -> None:
        for title, pixels in images.items():
            self._writer.add_image(title, pixels, self.last, dataformats="HWC")
        # As `add_hparams` does in a file of its own, which may come first in the order of names.
        for summary in hparams(self._options, dict(figures)):  # type: ignore[no-untyped-call]
            self._writer.file_writer.add_summary(summary)  # type: ignore[attr-defined]
        for name, value in figures.items():
            self._writer.add_scalar(name, value, self.last)
        self._writer.flush()

    def close(self, *, finished: bool) -> None:  # noqa: ARG002
        self._writer.close()


def _wait_for_later_name(earlier: list[str]) -> None:
    """Wait for the second after the last in which a file of events was begun, if it is this one.

    TensorBoard reads a folder's files in the order of their names, events.out.tfevents.SECOND and
    so on, and within a second the tenth file of a process comes before its ninth.
    """
    while any(name.startswith(f"events.out.tfevents.{int(time.time()):010}.") for name in earlier):
        time.sleep(0.05)


def _plain(value: object) -> object:
    """Return an option as TensorBoard takes hyperparameters."""
    return value if isinstance(value, bool | int | float | str) else str(value)

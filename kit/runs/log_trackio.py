"""A run's log in Trackio: on this machine, unless TRACKIO_SPACE_ID or TRACKIO_SERVER_URL is set."""

import io
from collections.abc import Mapping
from contextlib import redirect_stdout

import trackio

from kit.base import Pixels
from kit.runs.log import PROJECT, LoggedRun


class TrackioLogger:
    """See `log.Logger`."""

    def __init__(self, run: LoggedRun) -> None:
        begun = run.read_id("trackio") is not None
        run.keep_id("trackio", run.name)
        # It greets, and says again how it is looked at.
        with redirect_stdout(io.StringIO()):
            self._run = trackio.init(
                PROJECT,
                name=run.name,
                config=run.options,
                resume="allow" if begun else "never",
                embed=False,
                # Of the training alone.
                auto_log_gpu=False,
                auto_log_cpu=False,
            )
        # It has no other way to tell.
        self.last = max(self._run._next_step - 1, 0)
        self.look = f"trackio show --project {PROJECT}"

    def on_epoch(self, epoch: int, figures: Mapping[str, float]) -> None:
        self._run.log(dict(figures), step=epoch)
        self.last = epoch

    def on_end(self, figures: Mapping[str, float], images: Mapping[str, Pixels]) -> None:
        pictures = {title: trackio.Image(pixels) for title, pixels in images.items()}
        self._run.log({**figures, **pictures}, step=self.last)

    def close(self, *, finished: bool) -> None:  # noqa: ARG002
        with redirect_stdout(io.StringIO()):
            trackio.finish()

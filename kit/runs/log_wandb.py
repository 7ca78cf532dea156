"""A run's log in Weights & Biases: offline, unless WANDB_MODE says otherwise."""

import os
import secrets
import shlex
from collections.abc import Mapping

import wandb

from kit.base import Pixels
from kit.runs.log import PROJECT, LoggedRun


class WandbLogger:
    """See `log.Logger`.

    An offline log that goes on is a new folder of the same run, which holds all epochs.
    """

    def __init__(self, run: LoggedRun) -> None:
        run_id = run.read_id("wandb") or secrets.token_hex(4)
        run.keep_id("wandb", run_id)
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            id=run_id,
            name=run.name,
            config=run.options,
            # What the run has logged online it goes on with; offline that cannot be known.
            resume="allow" if run.epochs else None,
            mode=os.environ.get("WANDB_MODE", "offline"),
            # Several runs of one process are logged one after the other.
            reinit="create_new",
            settings=wandb.Settings(console="off", silent=True),
        )
        self.last = self._run.starting_step
        self.look = shlex.join(["wandb", "sync", self._run.settings.sync_dir])

    def on_epoch(self, epoch: int, figures: Mapping[str, float]) -> None:
        # At once, and not with the next epoch.
        self._run.log(dict(figures), step=epoch, commit=True)
        self.last = epoch

    def on_end(self, figures: Mapping[str, float], images: Mapping[str, Pixels]) -> None:
        self._run.log({title: wandb.Image(pixels) for title, pixels in images.items()})
        self._run.summary.update(dict(figures))

    def close(self, *, finished: bool) -> None:
        self._run.finish(exit_code=0 if finished else 1)

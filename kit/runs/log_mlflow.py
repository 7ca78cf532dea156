"""A run's log in MLflow: in mlflow.db and mlruns/, unless MLFLOW_TRACKING_URI says otherwise."""

import logging
import os
import re
import shlex
import time
from collections.abc import Mapping
from pathlib import Path

import mlflow
from mlflow.entities import Metric, Param

from kit.base import Pixels
from kit.runs.log import PROJECT, LoggedRun

STORE = "mlflow.db"


class MlflowLogger:
    """See `log.Logger`."""

    def __init__(self, run: LoggedRun) -> None:
        known = run.read_id("mlflow")
        # They tell how the database is made.
        for name in ("mlflow", "alembic"):
            logging.getLogger(name).setLevel(logging.WARNING)
        uri = os.environ.get("MLFLOW_TRACKING_URI", f"sqlite:///{Path(STORE).absolute()}")
        mlflow.set_tracking_uri(uri)
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        # It copes with processes that all begin with the experiment.
        experiment = mlflow.set_experiment(name)
        self._client = mlflow.MlflowClient(uri)
        self._id = known if known and self._has(known) else self._create(run, experiment)
        self._client.update_run(self._id, status="RUNNING")
        self.last = int(max((one.step for one in self._logged()), default=0))
        self.look = shlex.join(["mlflow", "ui", "--backend-store-uri", uri])

    def on_epoch(self, epoch: int, figures: Mapping[str, float]) -> None:
        self._log(figures, epoch)
        self.last = epoch

    def on_end(self, figures: Mapping[str, float], images: Mapping[str, Pixels]) -> None:
        self._log(figures, self.last)
        for title, pixels in images.items():
            file = re.sub(r"[^\w ().-]", "_", title)
            self._client.log_image(self._id, pixels, f"{file}.png")

    def close(self, *, finished: bool) -> None:
        self._client.set_terminated(self._id, "FINISHED" if finished else "KILLED")

    def _has(self, run_id: str) -> bool:
        """Whether the store still has a run; one of another machine has not."""
        try:
            return bool(self._client.get_run(run_id).info.lifecycle_stage == "active")
        except mlflow.MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return False

    def _create(self, run: LoggedRun, experiment: mlflow.entities.Experiment) -> str:
        run_id: str = self._client.create_run(
            experiment.experiment_id, run_name=run.name
        ).info.run_id
        params = [Param(name, str(value)) for name, value in run.options.items()]
        self._client.log_batch(run_id, params=params)
        run.keep_id("mlflow", run_id)
        return run_id

    def _logged(self) -> list[Metric]:
        found: list[Metric] = self._client.get_metric_history(self._id, "train/loss")
        return found

    def _log(self, figures: Mapping[str, float], epoch: int) -> None:
        now = round(time.time() * 1000)
        metrics = [Metric(name, value, now, epoch) for name, value in figures.items()]
        self._client.log_batch(self._id, metrics=metrics)

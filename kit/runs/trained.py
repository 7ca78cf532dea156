"""A finished run's model, rebuilt from its folder alone, and what it predicts."""

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError
from scipy.special import expit
from torch import Tensor, nn

from kit import models, stats
from kit.base import CLASS_NAMES, Floats, KitError, Recipe, Views, parse_recipe
from kit.data import TileSet, eval_loader, fits_on_device, recipe_dataset
from kit.runs.architecture import rebuilding_recipe
from kit.runs.folder import finished_file, read_bytes, read_config, resume_command
from kit.runs.predictions import read_metrics
from kit.runs.probe import ENCODER
from kit.training import (
    Normalize,
    TileEncoder,
    choose_device,
    choose_precision,
    features_logits,
    move_model,
    nearest_precision,
    predict_logits,
    recalibrate,
)


@dataclass(frozen=True)
class TrainedModel:
    """A finished run's model, with the preprocessing that it was trained on."""

    name: str
    recipe: Recipe
    model: nn.Module
    device: torch.device
    dtype: torch.dtype

    temperature: float | None = None
    """Of the logits on the run's holdout: above 1 the network was too sure of itself. Runs of the
    kit's version 0.1.0 recorded none."""

    is_standin: bool = False
    """Whether it was trained on synthetic tiles, and so says nothing of real ones."""

    def predict(
        self,
        tiles: TileSet,
        *,
        views: Views | None = None,
        adapt_bn: bool = False,
        calibrate: bool = False,
        progress: bool = True,
    ) -> Floats:
        """Return the probability of tumour for each tile: the sigmoid of `predict_logits`."""
        logits = self.predict_logits(
            tiles, views=views, adapt_bn=adapt_bn, calibrate=calibrate, progress=progress
        )
        probabilities: Floats = expit(logits)
        return probabilities

    def predict_logits(
        self,
        tiles: TileSet,
        *,
        views: Views | None = None,
        adapt_bn: bool = False,
        calibrate: bool = False,
        progress: bool = True,
    ) -> Floats:
        """Return the logit of the probability of tumour, (tiles,), of the store's split.

        Parameters
        ----------
        views
            1 or 8; by default those of the recipe.
        adapt_bn
            Replace BatchNorm's statistics by those of the tiles themselves, without labels
            (Li et al., arXiv:1603.04779). The model keeps them.
        calibrate
            Divide logits by the holdout's temperature. The order of the tiles stays.

        Raises
        ------
        KitError
            If the run recorded no temperature to calibrate with, or there is no BatchNorm to adapt.
        """
        temperature = self._require_temperature() if calibrate else 1.0
        if self.recipe.is_probe and tiles.features is not None and not adapt_bn:
            by_view = self._logits_of_features(tiles, views or self.recipe.views, progress)
            return stats.logit_of_mean(np.stack(by_view)) / temperature
        held = self.device if fits_on_device(self.recipe, len(tiles), self.device) else None
        dataset = recipe_dataset(tiles.tiles, self.recipe, device=held)
        loader = eval_loader(dataset, pin_memory=self.device.type == "cuda")
        normalize = Normalize(*self.recipe.channel_statistics).to(self.device)
        if adapt_bn and not models.batch_norms(self.model):
            raise KitError(f"{self.name} has no BatchNorm to adapt: predict without --adapt-bn")
        if adapt_bn:
            recalibrate(self.model, loader, normalize, device=self.device, dtype=self.dtype)
        logits = predict_logits(
            self.model,
            loader,
            normalize,
            views=views or self.recipe.views,
            device=self.device,
            dtype=self.dtype,
            description=f"predicting with {self.name}" if progress else None,
        )
        return logits / temperature

    def _logits_of_features(self, tiles: TileSet, views: int, progress: bool) -> list[Floats]:
        """Return a probe's logits by view, from features that are made where there are none."""
        assert isinstance(self.model, models.Probe)
        encoder = TileEncoder(self.model.encoder, self.recipe, self.device)
        return [
            features_logits(self.model, encoder.encode(tiles, view, progress=progress))
            for view in range(views)
        ]

    def _require_temperature(self) -> float:
        if self.temperature is None:
            raise KitError(
                f"{self.name} recorded no temperature: predict without --calibrate, or train it "
                "again"
            )
        return self.temperature


def load(folder: Path, *, device: str = "auto") -> TrainedModel:
    """Rebuild a finished run's model from its folder alone.

    Raises
    ------
    KitError
        If the folder holds no finished run, or its files do not fit each other.
    """
    values, figures = read_config(folder), read_metrics(folder)
    recipe = parse_recipe(values["recipe"], source=f"{folder}/config.json")
    _check_preprocessing(folder, values, recipe)
    weights = _read_weights(folder, figures, "model.safetensors")
    if recipe.is_probe:
        encoder = _read_weights(folder, figures, ENCODER)
        weights |= {f"encoder.network.{name}": tensor for name, tensor in encoder.items()}
    chosen = choose_device(device)
    recipe = replace(recipe, precision=nearest_precision(recipe.precision, chosen))
    # The run's own weights follow: nothing is to be fetched for the ones it began with.
    model = models.create_model(rebuilding_recipe(folder, recipe))
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise KitError(
            f"{folder}/model.safetensors does not fit {folder}/config.json: {reason}"
        ) from error
    return TrainedModel(
        folder.name,
        recipe,
        move_model(models.merge_lora(model), chosen),
        chosen,
        choose_precision(recipe.precision, chosen),
        temperature=figures.get("temperature"),
        is_standin=values["data"]["is_standin"],
    )


def _read_weights(folder: Path, figures: dict[str, Any], name: str) -> dict[str, Tensor]:
    """Read a run's weights, which must be those that its figures were made with."""
    path = finished_file(folder, name)
    content = read_bytes(path)
    # The kit's version 0.4.0 and older recorded none.
    expected = figures.get("sha256", {}).get(path.name)
    if expected not in (None, hashlib.sha256(content).hexdigest()):
        raise KitError(
            f"{path} is damaged, or another run's: make it again with: {resume_command(folder)}"
        )
    try:
        return safetensors.torch.load(content)
    except SafetensorError as error:
        raise KitError(f"{path} is damaged: {error}") from error


def _check_preprocessing(folder: Path, values: dict[str, Any], recipe: Recipe) -> None:
    """Refuse to predict with a preprocessing other than the recorded one."""
    mean, std = recipe.channel_statistics
    now = {"mean": list(mean), "std": list(std)}
    recorded = values["preprocessing"]
    for key in ("crop", "size", "interpolation"):
        now[key] = getattr(recipe, key)
    changed = [key for key in now if recorded.get(key) != now[key]]
    if changed or tuple(values.get("class_names", ())) != CLASS_NAMES:
        what = changed[0] if changed else "class_names"
        raise KitError(
            f"{folder}/config.json: {what} is not what this kit would predict with: use the "
            f"kit's version {values.get('kit')} that trained the run"
        )

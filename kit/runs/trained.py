"""A finished run's model, rebuilt from its folder alone, and what it predicts."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from scipy.special import expit, logit
from torch import nn

from kit import models
from kit.base import CLASS_NAMES, KitError, Recipe, Views, parse_recipe
from kit.data import TileSet, eval_loader, recipe_dataset
from kit.runs.folder import inside, read_config, read_metrics
from kit.training import (
    Normalize,
    choose_device,
    choose_precision,
    move_model,
    predict,
    recalibrate,
    reuse_memory,
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

    def predict(
        self,
        tiles: TileSet,
        *,
        views: Views | None = None,
        adapt_bn: bool = False,
        calibrate: bool = False,
        progress: bool = True,
    ) -> npt.NDArray[np.float64]:
        """Return the probability of tumour for each tile of the store's split.

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
            If the run recorded no temperature to calibrate with.
        """
        if calibrate and self.temperature is None:
            raise KitError(
                f"{self.name} recorded no temperature: predict without --calibrate, or train it "
                "anew"
            )
        loader = eval_loader(recipe_dataset(tiles.tiles, self.recipe))
        normalize = Normalize(*self.recipe.channel_statistics).to(self.device)
        if adapt_bn:
            recalibrate(self.model, loader, normalize, device=self.device, dtype=self.dtype)
        probabilities = predict(
            self.model,
            loader,
            normalize,
            views=views or self.recipe.views,
            device=self.device,
            dtype=self.dtype,
            description=f"predicting with {self.name}" if progress else None,
        )
        return expit(logit(probabilities) / self.temperature) if calibrate else probabilities


def load(folder: Path, *, device: str = "auto") -> TrainedModel:
    """Rebuild a finished run's model from its folder alone.

    Raises
    ------
    KitError
        If the folder holds no finished run, or its files do not fit each other.
    """
    values = read_config(folder)
    recipe = parse_recipe(values["recipe"], source=f"{folder}/config.json")
    _check_preprocessing(folder, values, recipe)
    weights = inside(folder, "model.safetensors")
    if not weights.is_file():
        raise KitError(f"{folder} is not a finished run: go on with train.py --resume")
    reuse_memory()
    chosen = choose_device(device)
    # The run's own weights follow: nothing is to be fetched for the ones it began with.
    model = models.create_model(dataclasses.replace(recipe, pretrained=False, weights=None))
    try:
        model.load_state_dict(load_file(weights))
    except (SafetensorError, RuntimeError) as error:
        raise KitError(f"{weights} does not fit {folder}/config.json: {error}") from error
    model = move_model(model, chosen)
    dtype = choose_precision(recipe.precision, chosen)
    temperature = read_metrics(folder).get("temperature")
    return TrainedModel(folder.name, recipe, model, chosen, dtype, temperature)


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

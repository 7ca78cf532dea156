"""A finished run as a folder that timm loads, with how far timm's own preprocessing is from it."""

import json
from pathlib import Path
from string import Template

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor, nn

from kit import models
from kit.base import TILE_SIZE, KitError, Pixels, Recipe, atomic_folder
from kit.data import EVAL_BATCH_SIZE, recipe_dataset
from kit.runs.card import CardFacts, model_card
from kit.runs.trained import TrainedModel, load
from kit.training import Normalize

EXACT = 1e-3
"""How far a probability may lie from the kit's to be called the same."""

# Tiles that tell which of Pillow's ways to resize is the nearest to the run's.
_SAMPLE = 32

_LOADING = Template("""\
    import timm
    model = timm.create_model("$place", pretrained=True).eval()
    options = timm.data.resolve_model_data_config(model)
    transform = timm.data.create_transform(**options, is_training=False)

On $tiles tiles the probabilities that follow, each of one view, lie within $difference of those of
the run. $verdict
The run's own way from `tile`, uint8 of shape (96, 96, 3) in RGB, to the network's inputs:

    import cv2
    import numpy as np
    tile = tile[$start:$stop, $start:$stop]
    tile = cv2.resize(tile, ($size, $size), interpolation=cv2.INTER_$interpolation)
    inputs = ((tile / 255 - $mean) / $std).transpose(2, 0, 1).astype(np.float32)
""")


def write_timm(
    path: Path,
    folder: Path,
    tiles: Pixels,
    *,
    place: str = "local-dir:FOLDER",
    facts: CardFacts | None = None,
) -> float:
    """Write model.safetensors, config.json and README.md as timm reads them from a folder or a hub.

    `timm.create_model("local-dir:PATH", pretrained=True)` rebuilds the model. timm resizes with
    Pillow, the kit with OpenCV: the configuration names the way of Pillow that is the nearest,
    and the README how far the probabilities are apart, with the way that gives the run's.

    Parameters
    ----------
    path, folder
        The new folder, and that of the run.
    tiles
        (tiles, 96, 96, 3): those to compare on.
    place
        What the README gives timm to load.
    facts
        For the README, which is a model card.

    Returns
    -------
    float
        The largest difference of a probability by timm's model and transform.

    Raises
    ------
    KitError
        If the run's network is not timm's, or the folder exists.
    """
    trained = load(folder, device="cpu")
    require_timm_model(folder, trained.recipe)
    if path.exists():
        raise KitError(f"{path} exists: name another folder with --timm")
    with atomic_folder(path) as partial:
        _write_model(partial, trained, _nearest_resampling(trained, tiles))
        difference = _difference(trained, partial, tiles)
        about = _loading(trained, place, len(tiles), difference)
        readme = model_card(folder, trained, about, facts or CardFacts())
        (partial / "README.md").write_text(readme, encoding="utf-8")
    return difference


def require_timm_model(folder: Path, recipe: Recipe) -> None:
    """Refuse the run in a folder, with this recipe, if timm cannot build its network."""
    if not recipe.is_backbone or recipe.is_probe:
        kind = f"a probe of {recipe.model}" if recipe.is_probe else recipe.model
        raise KitError(f"{folder} holds {kind}, which is not a model of timm's: export it to ONNX")


def _write_model(partial: Path, trained: TrainedModel, resampling: str) -> None:
    """Write the weights and the configuration, which is all that timm reads."""
    state = {name: tensor.contiguous() for name, tensor in trained.model.state_dict().items()}
    (partial / "model.safetensors").write_bytes(save(state, metadata={"format": "pt"}))
    config = models.timm_config(trained.model, trained.recipe, resampling)
    (partial / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _nearest_resampling(trained: TrainedModel, tiles: Pixels) -> str:
    """Return the resampling of Pillow that gives the pixels nearest to the run's, on average."""
    recipe, model = trained.recipe, trained.model
    own = _inputs(recipe, tiles[:_SAMPLE])

    def distance(resampling: str) -> float:
        config = models.timm_config(model, recipe, resampling)
        transform = models.timm_transform(config["pretrained_cfg"])
        found = torch.stack([transform(tile) for tile in tiles[:_SAMPLE]])
        return float((found - own).abs().mean())

    # Where nothing is resized, all are the same.
    names = sorted(models.RESAMPLING, key=lambda name: name != recipe.interpolation)
    return min(names, key=distance)


def _difference(trained: TrainedModel, exported: Path, tiles: Pixels) -> float:
    """Return the largest difference between the probabilities by timm alone and the kit's."""
    model, transform = models.read_timm_folder(exported)
    differences = []
    for start in range(0, len(tiles), EVAL_BATCH_SIZE):
        batch = tiles[start : start + EVAL_BATCH_SIZE]
        own = _probabilities(trained.model.eval(), _inputs(trained.recipe, batch))
        found = _probabilities(model, torch.stack([transform(tile) for tile in batch]))
        differences.append(float((own - found).abs().max()))
    # Where a value is no number, this is none either.
    return float(np.max(differences))


def _inputs(recipe: Recipe, tiles: Pixels) -> Tensor:
    """Return tiles as the run takes them: cropped, resized and normalised."""
    images, _ = recipe_dataset(tiles, recipe)[list(range(len(tiles)))]
    normalized: Tensor = Normalize(*recipe.channel_statistics)(images)
    return normalized


@torch.inference_mode()
def _probabilities(model: nn.Module, inputs: Tensor) -> Tensor:
    probabilities: Tensor = model(inputs).double().sigmoid()
    return probabilities


def _loading(trained: TrainedModel, place: str, tiles: int, difference: float) -> str:
    recipe = trained.recipe
    mean, std = recipe.channel_statistics
    start = (TILE_SIZE - recipe.crop) // 2
    same = difference <= EXACT
    codes = {"nearest": "NEAREST_EXACT", "bilinear": "LINEAR", "area": "AREA", "bicubic": "CUBIC"}
    return _LOADING.substitute(
        place=place,
        tiles=f"{tiles:,}",
        difference=f"{difference:.1g}",
        verdict="They are the same." if same else "Where that matters, resize with OpenCV.",
        start=start,
        stop=start + recipe.crop,
        size=recipe.size,
        interpolation=codes[recipe.interpolation],
        mean=list(mean),
        std=list(std),
    )

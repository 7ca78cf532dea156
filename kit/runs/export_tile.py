"""A finished run as one ONNX file that takes a tile and gives its probability and Grad-CAM."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.special import expit
from torch import Tensor, nn
from torch.nn import functional

from kit.base import TILE_SIZE, KitError, Pixels, Recipe, Views, competition
from kit.data import Resize, TileDataset, eval_loader, recipe_dataset, turn_back, view_of
from kit.models import MapLayer, find_map_layer, grad_cam
from kit.runs.export_onnx import onnx_graph, source_pixels
from kit.runs.extras import import_extra
from kit.runs.trained import TrainedModel
from kit.runs.written_out import with_gradients
from kit.training import Normalize, predict_logits

TILE_TOLERANCE = 1e-4
"""How far a probability may lie from PyTorch's."""


class TileResize(nn.Module):
    """Cut out the centre of a tile and resize it, in a graph.

    Where pixels are only taken, they are taken by index, exactly. The other ways are products with
    the weights that OpenCV gives a float image, rounded: bicubic inputs are OpenCV's but for one
    value in thousands, which is off by one; bilinear ones are off by one more often, since
    OpenCV's weights for them are coarse.
    """

    rows: Tensor
    columns: Tensor

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.is_exact = recipe.size == recipe.crop or recipe.interpolation == "nearest"
        parts = source_pixels(recipe) if self.is_exact else (_weights(recipe),) * 2
        for name, part in zip(("rows", "columns"), parts, strict=True):
            self.register_buffer(name, torch.from_numpy(part))

    def forward(self, tiles: Tensor) -> Tensor:
        """Return (batch, 3, size, size) of whole numbers for tiles (batch, 3, 96, 96) uint8."""
        if self.is_exact:
            return tiles.index_select(2, self.rows).index_select(3, self.columns)
        pixels = self.rows @ tiles.to(self.rows.dtype) @ self.columns.T
        return (pixels + 0.5).floor().clamp(0, 255).to(torch.float32)


class ExplainedTile(nn.Module):
    """From a tile to its probability and where on it the answer comes from.

    Parameters
    ----------
    trained
        In float32 on the CPU.
    views
        8 averages the probabilities of the eight symmetries, and their maps, turned back.
    layer
        Of Grad-CAM; without one there is no map.
    """

    def __init__(self, trained: TrainedModel, views: Views, layer: MapLayer | None) -> None:
        super().__init__()
        recipe = trained.recipe
        # Channels last, an average over all places is a step that has no gradient in ONNX.
        self.model = trained.model.eval().to(memory_format=torch.contiguous_format)
        self.model.requires_grad_(False)
        self.resize = TileResize(recipe)
        self.normalize = Normalize(*recipe.channel_statistics)
        self.views, self.layer, self.crop = views, layer, recipe.crop

    def forward(self, tile: Tensor) -> tuple[Tensor, ...]:
        """Return the probability, of shape (1,), and the map of (crop, crop) in [0, 1].

        Parameters
        ----------
        tile
            (1, 3, 96, 96) uint8.
        """
        image = self.resize(tile)
        shown = torch.cat([view_of(image, number) for number in range(self.views)])
        inputs = self.normalize(shown).contiguous()
        if self.layer is None:
            return (self.model(inputs).sigmoid().mean(0),)
        logits, evidence = grad_cam(self.model, self.layer, inputs)
        probability = logits.sigmoid().mean(0, keepdim=True)
        heat = ((probability - 0.5).sign() * evidence[:, None]).relu()
        turned = [turn_back(heat[number : number + 1], number) for number in range(self.views)]
        return probability, scaled_maps(torch.cat(turned).mean(0, keepdim=True), self.crop)[0]


def scaled_maps(heat: Tensor, crop: int) -> Tensor:
    """Lay maps (batch, 1, rows, columns) over the crop, (batch, crop, crop), each scaled to 1."""
    maps = functional.interpolate(heat, (crop, crop), mode="bilinear").squeeze(1)
    tiniest = torch.finfo(torch.float32).tiny
    return maps / maps.amax((1, 2), keepdim=True).clamp_min(tiniest)


@dataclass(frozen=True)
class ExportedTile:
    """An ONNX file, and what it does.

    Attributes
    ----------
    model
        Its bytes.
    difference
        The largest of a probability from PyTorch's.
    views
        1 or 8.
    layer
        That the map comes from; None if there is no map.
    note
        Why there is none.
    """

    model: bytes
    difference: float
    views: Views
    layer: str | None
    note: str = ""


def export_tile(
    trained: TrainedModel,
    tiles: Pixels,
    *,
    views: Views = 1,
    cam_layer: str | None = None,
) -> ExportedTile:
    """Export a run as a function of one tile, once ONNX Runtime agrees with PyTorch.

    The input `tiles` is uint8 of shape (1, 3, 96, 96), RGB. The outputs are `probability`, (1,),
    and `map`, (crop, crop): Grad-CAM of the answer as in the run's page, in [0, 1]. Its gradient is
    written out in the graph, so it is exact.

    Parameters
    ----------
    trained
        On the CPU.
    tiles
        (tiles, 96, 96, 3): those to compare on.
    cam_layer
        See `find_map_layer`.

    Raises
    ------
    KitError
        If a probability differs by more than `TILE_TOLERANCE`, the named layer is none or its
        gradient cannot be exported, or the extra is not installed.
    """
    layer = find_map_layer(trained.model, trained.recipe.size, cam_layer)
    note = "" if layer else "the network has no map of several pixels"
    model = None
    if layer is not None:
        try:
            model = _traced(ExplainedTile(trained, views, layer), ["probability", "map"])
        except torch.onnx.errors.OnnxExporterError as error:
            note = f"ONNX cannot express the gradient down to {layer.name}"
            if cam_layer is not None:
                raise KitError(f"{note}: name a later layer with --cam-layer") from error
            layer = None
    network = ExplainedTile(trained, views, layer)
    content = (model or _traced(network, ["probability"])).SerializeToString()
    difference = _difference(content, network, trained, tiles)
    if not difference <= TILE_TOLERANCE:
        raise KitError(_too_far(trained.recipe, difference))
    return ExportedTile(content, difference, views, layer.name if layer else None, note)


def _traced(network: ExplainedTile, outputs: list[str]) -> Any:
    """Return a network as an ONNX model: its operations on a tile, with those of the gradient."""
    tile = torch.zeros(1, competition.CHANNELS, TILE_SIZE, TILE_SIZE, dtype=torch.uint8)
    # The exporter itself knows nothing of gradients.
    return onnx_graph(with_gradients(network, tile), tile, outputs=outputs)


def _difference(
    model: bytes, network: ExplainedTile, trained: TrainedModel, tiles: Pixels
) -> float:
    """Return how far ONNX Runtime's probabilities are from the kit's own, at most."""
    session = import_extra("onnxruntime").InferenceSession(
        model, providers=["CPUExecutionProvider"]
    )
    logits = predict_logits(
        trained.model,
        eval_loader(recipe_dataset(tiles, trained.recipe)),
        network.normalize,
        views=network.views,
    )
    images = TileDataset(tiles)
    found = [
        session.run(["probability"], {"tiles": images[[number]][0].numpy()})[0].item()
        for number in range(len(tiles))
    ]
    # Where a value is no number, this is none either.
    return float(np.max(np.abs(np.array(found) - expit(logits))))


def _too_far(recipe: Recipe, difference: float) -> str:
    reason = (
        ""
        if recipe.size == recipe.crop or recipe.interpolation in ("nearest", "bicubic")
        else f" ({recipe.interpolation} from {recipe.crop} to {recipe.size} pixels rounds in "
        "OpenCV's own way: --interpolation bicubic does not)"
    )
    return (
        f"nothing is written: probabilities would differ from PyTorch's by up to {difference:.2g}, "
        f"more than {TILE_TOLERANCE:g}{reason}"
    )


def _weights(recipe: Recipe) -> Any:
    """Return the weight of each pixel of a row of the crop, (size, 96), in each of the result.

    An image that is 1 in one row tells the weights of that row.
    """
    resize = Resize(recipe.crop, recipe.size, recipe.interpolation)
    rows = np.eye(TILE_SIZE)[:, :, None, None] * np.ones((1, 1, TILE_SIZE, 1))
    return np.stack([resize(row).reshape(recipe.size, -1).mean(1) for row in rows], axis=1)

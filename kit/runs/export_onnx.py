"""A finished run as one ONNX file, checked against PyTorch."""

import json
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from kit.base import (
    CLASS_NAMES,
    TILE_SIZE,
    Indices,
    KitError,
    Pixels,
    Recipe,
    atomic_path,
    competition,
    output_file,
    temporary_folder,
)
from kit.data import EVAL_BATCH_SIZE, Resize, TileDataset, recipe_dataset
from kit.runs.extras import import_extra
from kit.runs.trained import TrainedModel, load
from kit.training import Normalize

TOLERANCE = 1e-4
"""How far a logit may lie from PyTorch's."""


class TileNetwork(nn.Module):
    """A run's whole way from uint8 tiles to logits, as far as a graph can take it exactly.

    The centre is cut out and the nearest pixels are taken by index, then they are normalised.
    OpenCV's other ways to resize round in fixed point, as no graph does: where a run uses one,
    the tiles have to come cropped and resized.

    Parameters
    ----------
    trained
        In float32 on the CPU.

    Attributes
    ----------
    resizes
        Whether the tiles come in their full size.
    side
        Height and width of the tiles that it takes, in pixels.
    """

    rows: Tensor
    columns: Tensor

    def __init__(self, trained: TrainedModel) -> None:
        super().__init__()
        recipe = trained.recipe
        self.model = trained.model.eval()
        self.normalize = Normalize(*recipe.channel_statistics)
        self.resizes = recipe.size == recipe.crop or recipe.interpolation == "nearest"
        self.side = TILE_SIZE if self.resizes else recipe.size
        rows, columns = source_pixels(recipe) if self.resizes else (np.arange(self.side),) * 2
        self.register_buffer("rows", torch.from_numpy(rows))
        self.register_buffer("columns", torch.from_numpy(columns))

    def forward(self, tiles: Tensor) -> Tensor:
        """Return logits of shape (batch, 1) for uint8 tiles of shape (batch, 3, side, side)."""
        pixels = tiles.index_select(2, self.rows).index_select(3, self.columns)
        logits: Tensor = self.model(self.normalize(pixels))
        return logits


def write_onnx(path: Path, folder: Path, tiles: Pixels) -> float:
    """Export a run to one ONNX file, with its preprocessing, once ONNX Runtime agrees with PyTorch.

    The input `tiles` is uint8 of shape (batch, 3, height, width), RGB, any batch; the output
    `logits` has the shape (batch, 1). What was done with the pixels stands in the file's
    metadata.

    Parameters
    ----------
    folder
        Of the run.
    tiles
        (tiles, 96, 96, 3): those to compare on.

    Returns
    -------
    float
        The largest difference of a logit, at most `TOLERANCE`.

    Raises
    ------
    KitError
        If the difference is larger, and nothing is written; or if the extra is not installed.
    """
    place = output_file(path)
    onnx = import_extra("onnx")
    trained = load(folder, device="cpu")
    network = TileNetwork(trained).eval()
    inputs = torch.zeros(2, competition.CHANNELS, network.side, network.side, dtype=torch.uint8)
    batches = {"tiles": {0: "batch"}}
    model = onnx_graph(network, inputs, outputs=["logits"], dynamic_shapes=batches)
    onnx.helper.set_model_props(model, _metadata(trained, network))
    onnx.checker.check_model(model, full_check=True)
    with atomic_path(place) as partial:
        partial.write_bytes(model.SerializeToString())
        difference = _difference(partial, trained, network, tiles)
        if not difference <= TOLERANCE:
            raise KitError(
                f"{path} is not written: ONNX Runtime's logits differ from PyTorch's by up to "
                f"{difference:.2g}, more than {TOLERANCE:g}"
            )
    return difference


def onnx_graph(
    network: nn.Module,
    inputs: Tensor,
    *,
    outputs: Sequence[str],
    dynamic_shapes: dict[str, Any] | None = None,
) -> Any:
    """Return a network with the input `tiles` as an ONNX model.

    Where its code lies on this machine is not in it.
    """
    import_extra("onnxscript")
    # Its optimiser tells what it leaves as it is.
    logging.getLogger("onnxscript.optimizer").setLevel(logging.ERROR)
    # Where there is none, the exporter's own message speaks of something else.
    temporary_folder()
    program = torch.onnx.export(
        network,
        (inputs,),
        input_names=["tiles"],
        output_names=outputs,
        dynamic_shapes=dynamic_shapes,
        dynamo=True,
        verbose=False,
    )
    assert program is not None
    # It is made again each time that it is asked for.
    model = program.model_proto
    for node in model.graph.node:
        node.ClearField("metadata_props")
    return model


def source_pixels(recipe: Recipe) -> tuple[Indices, Indices]:
    """Return which rows and columns of a tile the run's crop and nearest pixels are.

    A tile in which each pixel holds its own row and column tells.
    """
    rows, columns = np.indices((TILE_SIZE, TILE_SIZE), dtype=np.uint8)
    ramp = np.stack([rows, columns, rows], axis=2)
    taken = Resize(recipe.crop, recipe.size, recipe.interpolation)(ramp)
    return taken[:, 0, 0].astype(np.int64), taken[0, :, 1].astype(np.int64)


def _metadata(trained: TrainedModel, network: TileNetwork) -> dict[str, str]:
    recipe = trained.recipe
    mean, std = recipe.channel_statistics
    preprocessing = {
        "crop": recipe.crop,
        "size": recipe.size,
        "interpolation": recipe.interpolation,
        "mean": mean,
        "std": std,
        "in_graph": ["crop", "resize", "normalize"] if network.resizes else ["normalize"],
    }
    return {
        "run": trained.name,
        "model": recipe.model,
        "input": f"uint8 RGB, (batch, 3, {network.side}, {network.side})",
        "output": f"logit of {CLASS_NAMES[1]}; its sigmoid is the probability",
        "class_names": json.dumps(CLASS_NAMES),
        "preprocessing": json.dumps(preprocessing),
    }


def _difference(path: Path, trained: TrainedModel, network: TileNetwork, tiles: Pixels) -> float:
    """Return the largest difference between ONNX Runtime and the kit's own way to a logit."""
    session = import_extra("onnxruntime").InferenceSession(path, providers=["CPUExecutionProvider"])
    own = recipe_dataset(tiles, trained.recipe)
    given = TileDataset(tiles) if network.resizes else own
    differences = []
    with torch.inference_mode():
        for batch in _batches(len(tiles)):
            expected = network.model(network.normalize(own[batch][0])).numpy()
            (found,) = session.run(None, {"tiles": given[batch][0].numpy()})
            differences.append(float(np.abs(found - expected).max()))
    # Where a value is no number, this is none either.
    return float(np.max(differences))


def _batches(count: int) -> Iterator[list[int]]:
    """Yield batches of several sizes, the first of a single tile."""
    yield [0]
    for start in range(1, count, EVAL_BATCH_SIZE):
        yield list(range(start, min(start + EVAL_BATCH_SIZE, count)))

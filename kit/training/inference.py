"""From tiles to probabilities: normalising, the eight views, evaluation."""

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from kit.base import Floats, Views
from kit.data import Batch, eight_views
from kit.models import fuse_norms, share_stem
from kit.training.device import autocast

# Tiles evaluated at once on a CPU: their activations fit its caches.
CPU_CHUNK = 128


class Normalize(nn.Module):
    """Turn uint8 images into floats: (x / 255 - mean) / std, channel by channel."""

    scale: Tensor
    offset: Tensor

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.register_buffer("scale", 1 / (255 * torch.tensor(std)))
        self.register_buffer("offset", -torch.tensor(mean) / torch.tensor(std))

    def forward(self, images: Tensor) -> Tensor:
        """Return float images of the same shape, channels last in memory."""
        # By whole rows of pixels: a loop over three channels is several times slower.
        scale, offset = (
            part.expand(images.shape[3], -1).flatten() for part in (self.scale, self.offset)
        )
        pixels = images.permute(0, 2, 3, 1)
        rows = pixels.flatten(2).to(scale.dtype, copy=True)
        torch.addcmul(offset, rows, scale, out=rows)
        return rows.view(pixels.shape).permute(0, 3, 1, 2)


def predict(
    model: nn.Module,
    loader: Iterable[Batch],
    normalize: Normalize,
    *,
    views: Views = 1,
    device: torch.device | None = None,
    dtype: torch.dtype = torch.float32,
    description: str | None = None,
) -> Floats:
    """Return the probability of tumour for each tile, in the loader's order.

    The model is put into evaluation mode and left there.

    Parameters
    ----------
    views
        8 averages the probabilities of the eight symmetries.
    description
        Of a progress bar; none is drawn without it.

    Returns
    -------
    ndarray
        (tiles,), in [0, 1].
    """
    bar = tqdm(loader, desc=description, disable=description is None, unit=" batches")
    probabilities: Floats
    (probabilities,) = predict_each(
        [fuse_norms(model.eval())], bar, normalize, views=views, device=device, dtype=dtype
    )
    return probabilities


@torch.inference_mode()
def predict_each(
    fused: Sequence[nn.Module],
    loader: Iterable[Batch],
    normalize: Normalize,
    *,
    views: Views = 1,
    device: torch.device | None = None,
    dtype: torch.dtype = torch.float32,
) -> Floats:
    """Return what `predict` does for each of several models, with less work.

    Parameters
    ----------
    fused
        From `fuse_norms`, of models that differ in their running statistics alone.

    Returns
    -------
    ndarray
        (models, tiles), in [0, 1].
    """
    device = device or torch.device("cpu")
    share_stem(fused)
    probabilities: list[list[Tensor]] = [[] for _ in fused]
    for images, _ in loader:
        for chunk in torch.split(images, CPU_CHUNK if device.type == "cpu" else len(images)):
            inputs = chunk.to(device, non_blocking=True)
            with autocast(device, dtype):
                logits = [
                    [model(normalized) for model in fused]
                    for view in (eight_views(inputs) if views == 8 else [inputs])
                    for normalized in [normalize(view)]
                ]
            # One by one: PyTorch's sigmoid rounds by where in memory a value stands.
            for seen, own in zip(probabilities, zip(*logits, strict=True), strict=True):
                seen.append(torch.stack(own).double().sigmoid().mean(0).squeeze(1).cpu())
    return np.stack([torch.cat(seen).numpy() for seen in probabilities])

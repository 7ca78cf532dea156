"""From tiles to probabilities: normalising, the eight views, evaluation."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from scipy.special import expit
from torch import Tensor, nn
from tqdm import tqdm

from kit import stats
from kit.base import Floats, Views
from kit.data import Batch, eight_views
from kit.models import fuse_norms, share_stem
from kit.training.device import autocast, explain_full_memory, prefetch

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
    """Return the probability of tumour for each tile: the sigmoid of `predict_logits`."""
    logits = predict_logits(
        model, loader, normalize, views=views, device=device, dtype=dtype, description=description
    )
    probabilities: Floats = expit(logits)
    return probabilities


def predict_logits(
    model: nn.Module,
    loader: Iterable[Batch],
    normalize: Normalize,
    *,
    views: Views = 1,
    device: torch.device | None = None,
    dtype: torch.dtype = torch.float32,
    description: str | None = None,
) -> Floats:
    """Return the logit of the probability of tumour for each tile, in the loader's order.

    The model is put into evaluation mode and left there.

    Parameters
    ----------
    views
        8 averages the probabilities of the eight symmetries.
    dtype
        What the model computes in up to its last pooling, see `forward_logits`.
    description
        Of a progress bar; none is drawn without it.

    Returns
    -------
    ndarray
        (tiles,).
    """
    bar = tqdm(loader, desc=description, disable=description is None, unit=" batches")
    logits: Floats
    (logits,) = predict_logits_each(
        [fuse_norms(model.eval())], bar, normalize, views=views, device=device, dtype=dtype
    )
    return logits


@torch.inference_mode()
def predict_logits_each(
    fused: Sequence[nn.Module],
    loader: Iterable[Batch],
    normalize: Normalize,
    *,
    views: Views = 1,
    device: torch.device | None = None,
    dtype: torch.dtype = torch.float32,
) -> Floats:
    """Return what `predict_logits` does for each of several models, with less work.

    Parameters
    ----------
    fused
        From `fuse_norms`, of models that differ in their running statistics alone.

    Returns
    -------
    ndarray
        (models, tiles).
    """
    device = device or torch.device("cpu")
    share_stem(fused)
    seen: list[Tensor] = []
    with explain_full_memory(device, "predicting"):
        for images, _ in prefetch(loader, device):
            for inputs in torch.split(images, CPU_CHUNK if device.type == "cpu" else len(images)):
                by_view = [
                    torch.stack([forward_logits(model, normalized, dtype) for model in fused])
                    for view in (eight_views(inputs) if views == 8 else [inputs])
                    for normalized in [normalize(view)]
                ]
                seen.append(torch.stack(by_view))
        # Copied once, at the end; in float64 not on the device, as an Apple GPU has none.
        return stats.logit_of_mean(torch.cat(seen, 2).cpu().double().numpy())


def forward_logits(model: nn.Module, images: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a model's logits, of shape (batch,), with the last pooling and the head in float32.

    What precedes them computes in `dtype`. A head in bf16 gives a thousand tiles only some
    hundreds of different logits. The networks of timm and of the kit have `forward_features`
    and `forward_head`; any other one computes in `dtype` to its end.
    """
    network: Any = model
    has_head = hasattr(model, "forward_head")
    with autocast(images.device, dtype):
        outputs = network.forward_features(images) if has_head else model(images)
    logits: Tensor = network.forward_head(_in_float32(outputs)) if has_head else outputs
    return logits.squeeze(1)


def _in_float32(features: Any) -> Any:
    """Return features with what is less precise than float32 in float32; some models have lists."""
    if isinstance(features, Tensor):
        return features.to(torch.promote_types(features.dtype, torch.float32))
    return [_in_float32(part) for part in features]

"""From tiles to logits: evaluation, the eight views, and the precision it runs in."""

import ctypes
import functools
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from tqdm import tqdm

from kit.base import KitError, Precision, Views
from kit.data.dataset import Batch
from kit.models import BatchNorm, batch_norms, fuse_norms, share_stem

# Of glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3

# Tiles evaluated at once on a processor: their activations fit its caches.
CPU_CHUNK = 128

_DTYPES: dict[str, torch.dtype] = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}


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


def choose_device(name: str) -> torch.device:
    """Return the named device; `auto` takes a GPU where there is one.

    Raises
    ------
    KitError
        If there is no such device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError) as error:
        raise KitError(f"--device {name} is not to be had here: {error}") from error
    return torch.device(name)


def choose_precision(precision: Precision, device: torch.device) -> torch.dtype:
    """Return the type that convolutions compute in; `auto` takes what the hardware does fast.

    Raises
    ------
    KitError
        For fp16 on a processor, which has no arithmetic for it.
    """
    if precision == "fp16" and device.type == "cpu":
        raise KitError("--precision fp16 needs a GPU: take bf16 or fp32 on a processor")
    if precision != "auto":
        return _DTYPES[precision]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(False) else torch.float16
    # PyTorch 2.6, which Kaggle has, does not tell.
    capabilities: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
    fast = capabilities.get("amx_bf16") or capabilities.get("avx512_bf16")
    return torch.bfloat16 if fast else torch.float32


@functools.cache
def reuse_memory() -> None:
    """Let the C library keep what a process frees, for its next step.

    The activations of a batch are blocks of some megabytes. By default glibc hands each back
    to the system and has it mapped and zeroed again a step later, which on a processor costs a
    fifth to a third of the small CNN's time. Other C libraries are left as they are.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(_M_MMAP_THRESHOLD, 32 * 2**20)
        libc.mallopt(_M_TRIM_THRESHOLD, 2**30)
        libc.mallopt(_M_TOP_PAD, 64 * 2**20)


def autocast(device: torch.device, dtype: torch.dtype) -> AbstractContextManager[None]:
    """Return a context in which convolutions and products compute in `dtype`."""
    return torch.autocast(device.type, dtype, enabled=dtype != torch.float32)


def symmetries(images: Tensor) -> list[Tensor]:
    """Return the eight views of square images: four quarter turns, each also mirrored."""
    turned = [torch.rot90(images, turns, (2, 3)) for turns in range(4)]
    views = turned + [view.flip(3) for view in turned]
    return [view.contiguous(memory_format=torch.channels_last) for view in views]


def predict(
    model: nn.Module,
    loader: Iterable[Batch],
    normalize: Normalize,
    *,
    views: Views = 1,
    device: torch.device | None = None,
    dtype: torch.dtype = torch.float32,
    description: str | None = None,
) -> npt.NDArray[np.float64]:
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
    probabilities: npt.NDArray[np.float64]
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
) -> npt.NDArray[np.float64]:
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
                    for view in (symmetries(inputs) if views == 8 else [inputs])
                    for normalized in [normalize(view)]
                ]
            # One by one: PyTorch's sigmoid rounds by where in memory a value stands.
            for seen, own in zip(probabilities, zip(*logits, strict=True), strict=True):
                seen.append(torch.stack(own).double().sigmoid().mean(0).squeeze(1).cpu())
    return np.stack([torch.cat(seen).numpy() for seen in probabilities])


@torch.no_grad()
def recalibrate(
    model: nn.Module,
    loader: Iterable[Batch],
    normalize: Normalize,
    *,
    device: torch.device | None = None,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Replace BatchNorm's running statistics by those of all tiles of a loader.

    Each layer sees its batches normalised by their own statistics, and the mean and variance
    of all of its inputs are kept: not the mean of the batches' variances, which leaves out
    how far their means lie apart. Dropout is off.

    References
    ----------
    Wu and Johnson, Rethinking "Batch" in BatchNorm, arXiv:2105.07576, section 3.
    """
    device = device or torch.device("cpu")
    norms = batch_norms(model).values()
    sums = {norm: _Sums() for norm in norms}
    hooks = [norm.register_forward_hook(sums[norm]) for norm in norms]
    momenta = {norm: norm.momentum for norm in norms}
    model.eval()
    for norm in norms:
        norm.train()
        # The whole of a batch's own statistics, for `_Sums` to read.
        norm.momentum = 1.0
    for images, _ in loader:
        with autocast(device, dtype):
            model(normalize(images.to(device)))
    for norm, hook in zip(norms, hooks, strict=True):
        hook.remove()
        norm.momentum = momenta[norm]
        sums[norm].write(norm)


class _Sums:
    """Count, sum and sum of squares of all that goes into a norm, channel by channel."""

    def __init__(self) -> None:
        self.count = 0
        self.sum = torch.zeros(())
        self.squares = torch.zeros(())

    def __call__(self, norm: BatchNorm, inputs: tuple[Tensor], _: Tensor) -> None:
        assert norm.running_mean is not None
        assert norm.running_var is not None
        count = inputs[0].numel() // norm.num_features
        mean = norm.running_mean.double()
        variance = norm.running_var.double() * (count - 1) / count
        self.count += count
        self.sum = self.sum.to(mean) + count * mean
        self.squares = self.squares.to(mean) + count * (variance + mean**2)

    def write(self, norm: BatchNorm) -> None:
        assert norm.running_mean is not None
        assert norm.running_var is not None
        mean = self.sum / self.count
        variance = (self.squares / self.count - mean**2) * self.count / (self.count - 1)
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(variance)

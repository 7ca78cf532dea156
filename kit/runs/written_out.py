"""Gradients in operations that ONNX has: what the exporter takes for a whole is taken apart."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.attention import SDPBackend, sdpa_kernel


def with_gradients(network: nn.Module, inputs: Tensor) -> nn.Module:
    """Return a network as the operations that inputs of this shape go through.

    Those of gradients that it asks for are among them. The exporter knows them as the forward ones
    or takes them apart itself, but for some: they are written out here.
    """
    aten = torch.ops.aten
    table: dict[Any, Callable[..., Any]] = {
        aten.max_pool2d_with_indices_backward.default: _max_pool_backward,
        aten.convolution_backward.default: _convolution_backward,
        aten.avg_pool2d_backward.default: _average_pool_backward,
    }
    # A fused attention has a fused gradient.
    with sdpa_kernel(SDPBackend.MATH):
        operations: nn.Module = make_fx(network, decomposition_table=table)(inputs).eval()
    return operations


def _max_pool_backward(slopes: Tensor, maps: Tensor, *options: Any) -> Tensor:
    """Return the gradient of max pooling: each slope goes to the place that the maximum is from."""
    indices: Tensor = options[-1]
    places = maps.new_zeros(maps.shape).flatten(2)
    return places.scatter_add(2, indices.flatten(2), slopes.flatten(2)).view(maps.shape)


def _convolution_backward(
    slopes: Tensor, images: Tensor, weight: Tensor, _bias: Any, *options: Any
) -> tuple[Tensor, None, None]:
    """Return the gradient of a convolution by its input: a transposed one with the same weights."""
    stride, padding, dilation, transposed, _, groups, _ = options
    left = [0] * len(stride)
    if not transposed:
        sizes = zip(
            images.shape[2:], slopes.shape[2:], weight.shape[2:], stride, padding, dilation,
            strict=True,
        )  # fmt: skip
        left = [
            _left(size, out, dilated * (kernel - 1) + 1, step, padded)
            for size, out, kernel, step, padded, dilated in sizes
        ]
    back: Tensor = torch.ops.aten.convolution.default(
        slopes, weight, None, stride, padding, dilation, not transposed, left, groups
    )
    return back, None, None


def _average_pool_backward(
    slopes: Tensor, maps: Tensor, kernel: list[int], stride: list[int], *options: Any
) -> Tensor:
    """Return the gradient of average pooling: each slope goes back with the weight of its place."""
    padding, _, counts_padding, divisor = options
    sizes = zip(maps.shape[2:], slopes.shape[2:], kernel, stride or kernel, padding, strict=True)
    rows, columns = (
        maps.new_tensor(_averages(*each, counts_padding, divisor is not None)) for each in sizes
    )
    return (rows.T @ slopes @ columns) / (divisor or 1)


def _averages(
    size: int, out: int, kernel: int, stride: int, padding: int, *counting: bool
) -> list[list[float]]:
    """Return the weight of each pixel of a row in each average."""
    counts_padding, sums = counting
    rows = []
    for start in range(-padding, out * stride - padding, stride):
        inside = range(max(start, 0), min(start + kernel, size))
        count = min(start + kernel, size + padding) - start if counts_padding else len(inside)
        rows.append([(pixel in inside) / (1 if sums else count) for pixel in range(size)])
    return rows


def _left(size: int, out: int, window: int, stride: int, padding: int) -> int:
    """Return how many pixels at the end no window has reached."""
    return size - ((out - 1) * stride - 2 * padding + window)

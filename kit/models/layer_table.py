"""A model's layers as a table of text."""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from kit.base import competition


def layer_table(model: nn.Module, size: int, *, depth: int | None = None) -> str:
    """Return the layers with their output shapes and parameters, counted as Keras does.

    Keras counts BatchNorm's running mean and variance as non-trainable parameters.

    Parameters
    ----------
    size
        Height and width of the input in pixels.
    depth
        1 gives a line to each part that the model is made of, 2 to each part of these, and so on;
        None to each single layer.

    Returns
    -------
    str
        A heading, a line per layer that is used or has parameters, and the sums.
    """
    layers = {
        name: layer
        for name, layer in model.named_modules()
        if name and (_depth(name) == depth or (_is_single(layer) and not _below(name, depth)))
    }
    shapes = _output_shapes(model, layers, size)
    lines = [f"{'layer':40} {'output shape':>18} {'parameters':>12}"]
    for name, layer in layers.items():
        count = sum(_parameter_counts(layer))
        if count or name in shapes:
            kind = f"{name} ({type(layer).__name__})"
            lines.append(f"{kind:40} {shapes.get(name, ''):>18} {count:>12,}")
    trainable, running = _parameter_counts(model)
    total = f"{trainable + running:,} parameters: {trainable:,} trainable"
    return "\n".join([*lines, f"{total}, {running:,} running statistics"])


def _depth(name: str) -> int:
    return name.count(".") + 1


def _below(name: str, depth: int | None) -> bool:
    return depth is not None and _depth(name) > depth


def _is_single(layer: nn.Module) -> bool:
    return next(layer.children(), None) is None


def _output_shapes(model: nn.Module, layers: dict[str, nn.Module], size: int) -> dict[str, str]:
    """Return the output shape of each layer that an image goes through, without the batch."""
    shapes: dict[str, str] = {}

    def record(name: str, _layer: nn.Module, _inputs: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            shapes[name] = f"({', '.join(str(extent) for extent in output.shape[1:])})"

    hooks = [layer.register_forward_hook(partial(record, name)) for name, layer in layers.items()]
    was_training = model.training
    # On the model's device, and in its precision.
    image = next(model.parameters()).new_zeros(1, competition.CHANNELS, size, size)
    with torch.no_grad():
        model.eval()(image)
    model.train(was_training)
    for hook in hooks:
        hook.remove()
    return shapes


def _parameter_counts(module: nn.Module) -> tuple[int, int]:
    """Count trainable parameters and running statistics."""
    running = [buffer for name, buffer in module.named_buffers() if "running" in name]
    return sum(p.numel() for p in module.parameters()), sum(b.numel() for b in running)

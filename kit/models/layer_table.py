"""A model's layers as a table of text."""

import torch
from torch import Tensor, nn

from kit.base import competition


def layer_table(model: nn.Module, size: int) -> str:
    """Return the layers with their output shapes and parameters, counted as Keras does.

    Keras counts BatchNorm's running mean and variance as non-trainable parameters.
    """
    rows: list[tuple[str, str, str]] = []

    def record(name: str, layer: nn.Module, output: Tensor) -> None:
        shape = ", ".join(str(extent) for extent in output.shape[1:])
        kind = f"{name} ({type(layer).__name__})"
        rows.append((kind, f"({shape})", f"{sum(_parameter_counts(layer)):,}"))

    leaves = [(name, layer) for name, layer in model.named_modules() if not list(layer.children())]
    hooks = [
        layer.register_forward_hook(lambda layer, _, output, name=name: record(name, layer, output))
        for name, layer in leaves
    ]
    was_training = model.training
    with torch.no_grad():
        model.eval()(torch.zeros(1, competition.CHANNELS, size, size))
    model.train(was_training)
    for hook in hooks:
        hook.remove()
    trainable, running = _parameter_counts(model)
    lines = [f"{kind:40} {shape:>18} {count:>12}" for kind, shape, count in rows]
    return "\n".join(
        [
            f"{'layer':40} {'output shape':>18} {'parameters':>12}",
            *lines,
            f"{trainable + running:,} parameters: {trainable:,} trainable, "
            f"{running:,} running statistics",
        ]
    )


def _parameter_counts(module: nn.Module) -> tuple[int, int]:
    """Count trainable parameters and running statistics."""
    running = [buffer for name, buffer in module.named_buffers() if "running" in name]
    return sum(p.numel() for p in module.parameters()), sum(b.numel() for b in running)

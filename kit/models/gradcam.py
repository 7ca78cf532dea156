"""Grad-CAM: where in one of a network's maps its answer comes from."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from kit.base import KitError, competition, shorten
from kit.models.encoders import Probe
from kit.models.equivariance import GroupConv2d


@dataclass(frozen=True)
class MapLayer:
    """A layer whose output has a value per channel at each place of an image.

    Attributes
    ----------
    name
        As in `named_modules`.
    grid
        Rows and columns of places.
    form
        maps: (batch, channels, rows, columns); places: (batch, rows, columns, channels); tokens:
        (batch, tokens, channels), of which the first ones may stand for no place.
    """

    name: str
    grid: tuple[int, int]
    form: str

    def as_maps(self, output: Tensor) -> Tensor:
        """Return the layer's output as (batch, channels, rows, columns)."""
        if self.form == "maps":
            return output
        channels_first = output.flatten(1, -2)[:, -math.prod(self.grid) :].transpose(1, 2)
        return channels_first.reshape(len(output), -1, *self.grid)


def find_map_layer(model: nn.Module, size: int, name: str | None = None) -> MapLayer | None:
    """Find the layer that Grad-CAM is taken from.

    By default that is the last one with an output of the height and width of the last
    convolution's: for a network of convolution, norm and activation the activation, for a ResNet
    its last stage. In a ViT the only convolution cuts the image into patches, and what the last
    block makes of other tokens than the class token reaches no answer: there it is the norm
    before the attention of the last block.

    Parameters
    ----------
    size
        Height and width of the input in pixels.
    name
        Of another layer.

    Returns
    -------
    MapLayer or None
        None for a network without any map of more than one pixel.

    Raises
    ------
    KitError
        If there is no layer of this name, or it has no map: those that have are listed.
    """
    network = model.encoder.network if isinstance(model, Probe) else model
    outputs = _outputs(model, size)
    layers = {
        each: layer
        for each, output in outputs.items()
        if (layer := _map_layer(each, output, network, model.get_submodule(each))) is not None
    }
    if name is None:
        return _default(model, network, layers)
    if name not in layers:
        raise _no_layer(name, layers, exists=name in dict(model.named_modules()))
    return layers[name]


def grad_cam(model: nn.Module, layer: MapLayer, images: Tensor) -> tuple[Tensor, Tensor]:
    """Return logits, and where on a layer's map they come from.

    The sum over channels of the map times the mean gradient of the logit. Grad-CAM of the answer
    tumour is what is above 0, that of the other answer what is below.

    Parameters
    ----------
    model
        In evaluation mode.
    images
        (batch, 3, size, size), normalised.

    Returns
    -------
    logits
        (batch,).
    evidence
        (batch, rows, columns).

    References
    ----------
    Selvaraju et al., Grad-CAM, ICCV 2017, equations 1 and 2 without the ReLU.
    """
    seen: list[Tensor] = []

    def cut(_module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
        seen.append(output.detach().requires_grad_())
        # What follows may work in place, which a leaf must not be.
        return seen[-1].clone()

    hook = model.get_submodule(layer.name).register_forward_hook(cut)
    try:
        with torch.enable_grad():
            logits = model(images).squeeze(1)
    finally:
        hook.remove()
    # A layer that has no part in the answer has no gradient.
    gradients = torch.zeros_like(seen[-1])
    if logits.requires_grad:
        (gradients,) = torch.autograd.grad(logits.sum(), seen[-1], materialize_grads=True)
    maps, slopes = layer.as_maps(seen[-1].detach()), layer.as_maps(gradients)
    evidence = (maps * slopes.mean((2, 3), keepdim=True)).sum(1)
    return logits.detach(), evidence


def _outputs(model: nn.Module, size: int) -> dict[str, Tensor]:
    """Return what each layer gives, in the order of the layers' ends.

    Those that are called several times are left out: which of their outputs is meant?
    """
    calls: list[tuple[str, Any]] = []
    hooks = [
        module.register_forward_hook(lambda _m, _i, output, name=name: calls.append((name, output)))
        for name, module in model.named_modules()
        if name
    ]
    was_training, device = model.training, next(model.parameters()).device
    try:
        with torch.no_grad():
            model.eval()(torch.zeros(1, competition.CHANNELS, size, size, device=device))
    finally:
        model.train(was_training)
        for hook in hooks:
            hook.remove()
    names = [name for name, _ in calls]
    return {
        name: output
        for name, output in calls
        if isinstance(output, Tensor) and names.count(name) == 1
    }


def _map_layer(name: str, output: Tensor, network: Any, module: nn.Module) -> MapLayer | None:
    """Return a layer as one with a map, if its output is one of more than a pixel."""
    if output.ndim == 4:
        is_last = getattr(network, "output_fmt", "") == "NHWC" and not _is_convolution(module)
        rows, columns = output.shape[1:3] if is_last else output.shape[2:]
        form = "places" if is_last else "maps"
        return MapLayer(name, (rows, columns), form) if min(rows, columns) > 1 else None
    if output.ndim != 3:
        return None
    count = output.shape[1] - getattr(network, "num_prefix_tokens", 0)
    # A person's own network does not say whether it has a class token.
    side = next((math.isqrt(n) for n in (count, count - 1) if math.isqrt(n) ** 2 == n), 0)
    return MapLayer(name, (side, side), "tokens") if side > 1 else None


def _default(model: nn.Module, network: Any, layers: dict[str, MapLayer]) -> MapLayer | None:
    if isinstance(blocks := getattr(network, "blocks", None), nn.Sequential | nn.ModuleList):
        attended = getattr(blocks[-1], "norm1", None)
        for name, module in model.named_modules():
            if module is attended and getattr(layers.get(name), "form", "") == "tokens":
                return layers[name]
    if getattr(network, "output_fmt", "") == "NHWC":
        return next((each for each in reversed(layers.values()) if each.form == "places"), None)
    convolutions = [
        layer.grid
        for name, layer in layers.items()
        if _is_convolution(model.get_submodule(name)) and layer.form == "maps"
    ]
    same = (
        layer
        for layer in reversed(layers.values())
        if convolutions and layer.form == "maps" and layer.grid == convolutions[-1]
    )
    return next(same, None)


def _is_convolution(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d | GroupConv2d)


_MOST_NAMES = 30


def _no_layer(name: str, layers: dict[str, MapLayer], *, exists: bool) -> KitError:
    known = list(layers)
    more = f"{len(known) - _MOST_NAMES} more, " if len(known) > _MOST_NAMES else ""
    names = more + ", ".join(known[-_MOST_NAMES:])
    problem = "gives no map of several pixels once" if exists else "is no layer of the network"
    return KitError(f"--cam-layer {shorten(name)} {problem}: name one of {names}")

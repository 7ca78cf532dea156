"""Low-rank adaptation: a large model is tuned by small additions to its linear layers.

y = W x + b + B A x, where W and b stay as they are, and B begins at 0 (Hu et al.,
arXiv:2106.09685, here with a scale of 1, which the learning rate takes in).
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from kit.base import KitError

# As timm names the linear layers of attention.
_ADAPTED = ("qkv", "proj", "q", "kv", "q_proj", "k_proj", "v_proj")


class LoraLinear(nn.Linear):
    """A linear layer whose own weights stay as they are, and its low-rank addition.

    Parameters
    ----------
    layer
        Its weights are taken over, not copied.
    rank
        Of the addition.
    """

    def __init__(self, layer: nn.Linear, rank: int) -> None:
        # On no device: the layer's own tensors take the place of these.
        super().__init__(
            layer.in_features, layer.out_features, layer.bias is not None, device="meta"
        )
        self.weight, self.bias = layer.weight, layer.bias
        self.down = nn.Parameter(layer.weight.new_empty(rank, layer.in_features))
        self.up = nn.Parameter(layer.weight.new_zeros(layer.out_features, rank))
        nn.init.kaiming_uniform_(self.down, a=5**0.5)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the layer's outputs and the addition's."""
        added = functional.linear(functional.linear(inputs, self.down), self.up)
        return super().forward(inputs) + added

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """Return one linear layer that does the same."""
        layer = nn.Linear(self.in_features, self.out_features, self.bias is not None, device="meta")
        layer.weight = nn.Parameter(self.weight + self.up @ self.down)
        layer.bias = self.bias
        return layer


def add_lora(model: nn.Module, rank: int) -> None:
    """Give the linear layers of a model's attention additions of a rank.

    Raises
    ------
    KitError
        If it has none.
    """
    found = {
        name: layer
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear) and name.rpartition(".")[2] in _ADAPTED and "attn" in name
    }
    if not found:
        raise KitError(
            f"{type(model).__name__} has no attention whose layers --lora could adapt: leave it out"
        )
    for name, layer in found.items():
        model.set_submodule(name, LoraLinear(layer, rank))


def merge_lora(model: nn.Module) -> nn.Module:
    """Replace what `add_lora` has put into a model by layers that do the same; return the model."""
    for name, layer in list(model.named_modules()):
        if isinstance(layer, LoraLinear):
            model.set_submodule(name, layer.merged())
    return model


def lora_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Return the parameters of a model's low-rank additions; none where there are none."""
    layers = [layer for layer in model.modules() if isinstance(layer, LoraLinear)]
    return [parameter for layer in layers for parameter in (layer.down, layer.up)]

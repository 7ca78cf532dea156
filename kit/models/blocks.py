"""The block that the kit's own networks are made of."""

from collections import OrderedDict

from torch import Tensor, nn
from torch.nn import functional

from kit.base import Bn
from kit.models.norms import BatchNorm2d, GroupBatchNorm2d


class Block(nn.Sequential):
    """A layer, its norm and ReLU in the order of the arm, and max pooling.

    The parts have the same names in both arms.

    Parameters
    ----------
    bn
        Where the norm stands.
    pool
        Side and stride of the max pooling, in pixels; None for no pooling.
    """

    layer: nn.Module
    norm: nn.Module

    def __init__(
        self, layer: nn.Module, norm: nn.Module, bn: Bn, *, pool: int | None = None
    ) -> None:
        norm_act = [("norm", norm), ("act", nn.ReLU())]
        order = norm_act if bn == "before" else norm_act[::-1]
        tail = [("pool", nn.MaxPool2d(pool))] if pool else []
        super().__init__(OrderedDict([("layer", layer), *order, *tail]))
        self.bn = bn
        self.pooling = pool

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the block's output."""
        outputs: Tensor
        norm = self.norm if self.pooling else None
        if isinstance(norm, BatchNorm2d | GroupBatchNorm2d) and norm.can_pool(inputs):
            outputs = self.layer(inputs)
            if self.bn == "before":
                return functional.relu(self.norm(outputs, pool=self.pooling))
            return self.norm(outputs.relu_(), pool=self.pooling)  # type: ignore[no-any-return]
        outputs = super().forward(inputs)  # type: ignore[no-untyped-call]
        return outputs

"""Muon for convolutions' filters, and Adam for all other parameters."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import AdamW

from kit.training.graphs import GraphedCall, records_graphs

# Keller Jordan's: three times five steps take each singular value of a matrix to 0.7 to 1.2.
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_STEPS = 5
# With it an update's root mean square is about that of Adam's, so that one learning rate fits both.
_ADAM_SIZE = 0.2


class Muon(AdamW):
    """AdamW, whose updates of filters are orthogonalised momentum.

    A filter bank is taken for a matrix with a row per filter. Nesterov's momentum of its gradient,
    whose share is Adam's first beta, is replaced by the nearest matrix with orthonormal rows or
    columns, times `0.2 * sqrt(max(rows, columns))`. Weight decay is decoupled, as AdamW's.

    `torch.optim.Muon` (PyTorch 2.9) takes matrices alone, no filters, orthogonalizes in bf16 only,
    and on a GPU waits for a skipped step of fp16 and launches each filter's kernels one by one.

    References
    ----------
    Jordan et al., Muon: An optimizer for hidden layers in neural networks, 2024. The scale is that
    of Liu et al., arXiv:2502.16982, section 2.2.
    """

    _shapes: list[torch.Size] | None = None
    _graphed: GraphedCall[list[Tensor]]

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take a step: of Muon for parameters of four dimensions, of Adam for the others."""
        moving = [(group, _moving(group["params"])) for group in self.param_groups]
        moving = [(group, filters) for group, filters in moving if filters]
        weights = [weight for _, filters in moving for weight in filters]
        gradients = [weight.grad for weight in weights]
        if weights:
            self._move(moving)
        # What has no gradient Adam leaves as it is.
        for weight in weights:
            weight.grad = None
        loss = super().step(closure)
        for weight, gradient in zip(weights, gradients, strict=True):
            weight.grad = gradient
        return loss

    def _move(self, moving: Sequence[tuple[dict[str, Any], list[Tensor]]]) -> None:
        """Move filters, which lie in groups; what a schedule changes stays out of the graph."""
        ahead = [one for group, filters in moving for one in self._look_ahead(group, filters)]
        updates = iter(self._orthogonalized(ahead))
        skip = getattr(self, "found_inf", None)
        for group, filters in moving:
            own = [next(updates) for _ in filters]
            torch._foreach_add_(own, filters, alpha=group["weight_decay"])
            if skip is not None:
                torch._foreach_mul_(own, (skip == 0).to(own[0].dtype).squeeze())
            torch._foreach_add_(filters, own, alpha=-group["lr"])

    def _look_ahead(self, group: dict[str, Any], filters: list[Tensor]) -> list[Tensor]:
        """Take the gradients of filters into their momenta; return Nesterov's."""
        gradients = [weight.grad for weight in filters if weight.grad is not None]
        momenta = [self._momentum(weight) for weight in filters]
        memory = group["betas"][0]
        scale, skip = (getattr(self, name, None) for name in ("grad_scale", "found_inf"))
        if scale is not None:
            gradients = [*torch._foreach_div(gradients, scale.squeeze())]
        if skip is not None:
            pairs = zip(momenta, gradients, strict=True)
            gradients = [torch.where(skip > 0, old, new) for old, new in pairs]
        torch._foreach_lerp_(momenta, gradients, 1 - memory)
        return [*torch._foreach_lerp(gradients, momenta, memory)]

    def _momentum(self, weight: Tensor) -> Tensor:
        state = self.state[weight]
        if not state:
            # As AdamW names them, which looks for both when a state is loaded.
            state["step"], state["exp_avg"] = torch.zeros(()), torch.zeros_like(weight)
        momentum: Tensor = state["exp_avg"]
        return momentum

    def _orthogonalized(self, filters: list[Tensor]) -> list[Tensor]:
        """Return updates; on a GPU by a graph, as each is some fifty kernels of microseconds."""
        if not records_graphs(filters[0].device):
            return _updates(*filters)
        shapes = [one.shape for one in filters]
        if self._shapes != shapes:
            self._shapes = shapes
            self._graphed = GraphedCall(_updates, filters[0].device)
        return self._graphed(*filters)


def _moving(weights: list[Tensor]) -> list[Tensor]:
    return [weight for weight in weights if weight.ndim == 4 and weight.grad is not None]


def _updates(*filters: Tensor) -> list[Tensor]:
    """Orthogonalize filter banks, and give them the size of Adam's updates."""
    updates = []
    for one in filters:
        matrix = one.flatten(1)
        size = _ADAM_SIZE * max(matrix.shape) ** 0.5
        updates.append(orthogonalize(matrix).view(one.shape).mul_(size))
    return updates


def orthogonalize(matrix: Tensor) -> Tensor:
    """Return about the nearest matrix with orthonormal rows, or columns where those are fewer.

    Its singular vectors are the matrix's, and its singular values lie between 0.7 and 1.2, by
    Newton and Schulz's iteration.

    Parameters
    ----------
    matrix
        (rows, columns) in float32.
    """
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    wide = wide / (wide.norm() + 1e-7)
    a, b, c = _COEFFICIENTS
    for _ in range(_STEPS):
        gram = wide @ wide.T
        wide = a * wide + (b * gram + c * gram @ gram) @ wide
    nearest: Tensor = wide if matrix.shape[0] <= matrix.shape[1] else wide.T
    return nearest

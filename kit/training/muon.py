"""Muon for convolutions' filters, and Adam for all other parameters."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import AdamW

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

    References
    ----------
    Jordan et al., Muon: An optimizer for hidden layers in neural networks, 2024. The scale is that
    of Liu et al., arXiv:2502.16982, section 2.2.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take a step: of Muon for parameters of four dimensions, of Adam for the others."""
        filters = [
            (weight, group)
            for group in self.param_groups
            for weight in group["params"]
            if weight.ndim == 4 and weight.grad is not None
        ]
        for weight, group in filters:
            self._move(weight, group)
        # What has no gradient Adam leaves as it is.
        gradients = [weight.grad for weight, _ in filters]
        for weight, _ in filters:
            weight.grad = None
        loss = super().step(closure)
        for (weight, _), gradient in zip(filters, gradients, strict=True):
            weight.grad = gradient
        return loss

    def _move(self, weight: Tensor, group: dict[str, Any]) -> None:
        gradient, state = weight.grad, self.state[weight]
        assert gradient is not None
        skip = getattr(self, "found_inf", None)
        scale = getattr(self, "grad_scale", None)
        if scale is not None:
            gradient = gradient / scale
        if not state:
            # As AdamW names them, which looks for both when a state is loaded.
            state["step"], state["exp_avg"] = torch.zeros(()), torch.zeros_like(weight)
        memory = group["betas"][0]
        if skip is not None:
            gradient = torch.where(skip > 0, state["exp_avg"], gradient)
        momentum = state["exp_avg"].lerp_(gradient, 1 - memory)
        matrix = gradient.lerp(momentum, memory).flatten(1)
        size = _ADAM_SIZE * max(matrix.shape) ** 0.5
        update = orthogonalize(matrix).view(weight.shape).mul_(size)
        update.add_(weight, alpha=group["weight_decay"])
        if skip is not None:
            update = torch.where(skip > 0, 0.0, update)
        weight.add_(update, alpha=-group["lr"])


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

"""Running statistics of many momenta, kept by one training.

Momentum is given in Keras' sense, the share of a running statistic that is kept at each step;
PyTorch's is 1 minus it.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from kit import models

Statistics = dict[str, tuple[Tensor, Tensor]]


class StatisticsBank:
    """Sets of running statistics of one model, one per momentum, all updated by its training.

    Parameters
    ----------
    model
        Its BatchNorm layers' own statistics follow their own momentum, as without a bank.
    momenta
        In Keras' sense.
    """

    def __init__(self, model: nn.Module, momenta: Sequence[float]) -> None:
        self.model = model
        self.momenta = list(momenta)
        norms = models.batch_norms(model)
        self._own = {norm.momentum for norm in norms.values()}
        self._sets = {name: _Sets(norm, momenta) for name, norm in norms.items()}
        for name, norm in norms.items():
            norm.register_forward_hook(partial(self._follow, name))

    def is_own(self, momentum: float) -> bool:
        """Whether a momentum is the model's own, and so are its statistics."""
        return self._own <= {1 - momentum}

    @contextmanager
    def use(self, momentum: float) -> Iterator[None]:
        """Let the model evaluate with the statistics of a momentum."""
        with self.preserve():
            for name, (mean, var) in self.statistics(momentum).items():
                self._sets[name].write(mean, var)
            yield

    def statistics(self, momentum: float) -> Statistics:
        """Return the statistics of a momentum."""
        row = 1 + self.momenta.index(momentum)
        return {name: (*sets.rows[row].clone(),) for name, sets in self._sets.items()}

    @contextmanager
    def preserve(self) -> Iterator[None]:
        """Give the model its own statistics back at the end."""
        try:
            yield
        finally:
            for sets in self._sets.values():
                sets.write(*sets.rows[0])

    def _follow(self, name: str, *_: object) -> None:
        # Recalibrating puts the norms alone into training mode, and is no training.
        if self.model.training:
            self._sets[name].follow()


class _Sets:
    """The running statistics of one norm, one set per row: its own, then one per momentum.

    The norm itself is left to take in the whole of a batch's statistics, which are computed only
    once; from there each set follows as in PyTorch, whose momentum is the share that is new.
    """

    def __init__(self, norm: models.BatchNorm, momenta: Sequence[float]) -> None:
        assert norm.momentum is not None
        # In training the gradient does not read them, though autograd would think so.
        self.mean, self.var = _mean(norm).data, _var(norm).data
        new = [norm.momentum, *(1 - momentum for momentum in momenta)]
        self.new = self.mean.new_tensor(new).view(-1, 1, 1)
        self.old = self.mean.new_tensor([1 - share for share in new]).view(-1, 1, 1)
        self.rows = torch.stack([self.mean, self.var]).repeat(len(new), 1, 1)
        norm.momentum = 1.0

    def follow(self) -> None:
        """Let all sets follow a batch, and give the norm its own again."""
        batch = torch.stack([self.mean, self.var])
        self.rows.mul_(self.old).add_(batch * self.new)
        self.write(*self.rows[0])

    def write(self, mean: Tensor, var: Tensor) -> None:
        """Give the norm these statistics."""
        self.mean.copy_(mean)
        self.var.copy_(var)


def _mean(norm: models.BatchNorm) -> Tensor:
    assert norm.running_mean is not None
    return norm.running_mean


def _var(norm: models.BatchNorm) -> Tensor:
    assert norm.running_var is not None
    return norm.running_var

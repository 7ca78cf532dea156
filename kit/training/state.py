"""What training changes, and what resuming therefore needs."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import OneCycleLR
from torch.optim.swa_utils import AveragedModel

from kit import models
from kit.base import KitError, Recipe
from kit.training import distributed
from kit.training.device import move_model
from kit.training.inference import Normalize

# Keras' Adam adds this to the root of the second moment; PyTorch's default is 1e-8.
ADAM_EPS = 1e-7
# The rate rises for a quarter of the steps, and from its first step to another one.
SHORTEST_CYCLE = 5


@dataclass
class Progress:
    """Where training stands: whole epochs, and the sums of the epoch that has begun."""

    epoch: int = 0
    step: int = 0
    loss: float = 0.0
    correct: int = 0
    seconds: float = 0.0


class TrainingState:
    """A model in training, and everything else that training changes.

    Parameters
    ----------
    model
        Its logits have the shape (batch, 1). It is moved to the device.
    recipe
        Its options of training: the optimizer's, the schedule's, the average's, the seed.
    steps_per_epoch
        Needed by the one-cycle schedule, which spans the whole training (Smith and Topin,
        arXiv:1708.07120).
    dtype
        The type that convolutions compute in; weights stay in float32.

    Attributes
    ----------
    optimizer
        AdamW; without weight decay this is plain Adam.
    averaged
        An exponential moving average of the weights, or None. It starts with a shorter memory:
        the first weights are not worth averaging.
    normalize
        What the model's inputs go through, on its device.

    Raises
    ------
    KitError
        If the one-cycle schedule has too few steps.
    """

    def __init__(
        self,
        model: nn.Module,
        recipe: Recipe,
        *,
        steps_per_epoch: int | None = None,
        device: torch.device | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.recipe = recipe
        self.device = device or torch.device("cpu")
        self.dtype = dtype
        self.progress = Progress()
        model = move_model(model, self.device)
        if distributed.world_size() > 1 and self.device.type == "cuda":
            model = models.synchronize_batch_norms(model)
        self.model = model
        # On the model's device, and in its precision.
        self.normalize = Normalize(*recipe.channel_statistics).to(next(model.parameters()))
        self.optimizer = torch.optim.AdamW(
            models.parameter_groups(
                model,
                lr=recipe.lr,
                weight_decay=recipe.weight_decay,
                layer_decay=recipe.layer_decay,
            ),
            eps=ADAM_EPS,
            fused=True,
        )
        self.schedule = _schedule(self.optimizer, recipe, steps_per_epoch)
        update = _moving_average(recipe.ema)
        self.averaged = AveragedModel(model, multi_avg_fn=update) if recipe.ema else None
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=dtype == torch.float16)

    @property
    def epoch(self) -> int:
        """The last whole epoch."""
        return self.progress.epoch

    def state_dict(self) -> dict[str, Any]:
        """Return the state after the last step."""
        return {
            "progress": asdict(self.progress),
            "generator": torch.get_rng_state(),
            **{name: part.state_dict() for name, part in self._parts().items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to where `state` was taken.

        With another number of epochs the one-cycle schedule goes on as the new number has it.
        """
        if self.schedule is not None:
            plan = {name: vars(self.schedule)[name] for name in ("total_steps", "_schedule_phases")}
            state = state | {"schedule": state["schedule"] | plan}
        self.progress = Progress(**state["progress"])
        torch.set_rng_state(state["generator"].cpu())
        for name, part in self._parts().items():
            part.load_state_dict(state[name])
        if distributed.rank() > 0:
            # The state is rank 0's, whose draws these would repeat.
            self.seed_draws(self.epoch + 1, distributed.rank(), self.progress.step)

    def use_average(self) -> None:
        """Put the averaged weights, where there are any, in place of the last ones."""
        if self.averaged is not None:
            self.model.load_state_dict(self.averaged.module.state_dict())

    def seed_draws(self, *place: int) -> None:
        """Let dropout and the like draw what belongs to a place in the training, such as an epoch.

        It follows from the recipe's seed and the place.
        """
        sequence = np.random.SeedSequence([self.recipe.seed, *place])
        torch.manual_seed(int(sequence.generate_state(1)[0]))

    def _parts(self) -> dict[str, Any]:
        parts = {
            "model": self.model,
            "optimizer": self.optimizer,
            "schedule": self.schedule,
            "averaged": self.averaged,
            "scaler": self.scaler,
        }
        return {name: part for name, part in parts.items() if part is not None}


def check_schedule(recipe: Recipe, steps_per_epoch: int) -> None:
    """Refuse a one-cycle schedule of too few steps.

    Raises
    ------
    KitError
        With the number of steps.
    """
    steps = recipe.epochs * steps_per_epoch
    if recipe.schedule == "one-cycle" and steps < SHORTEST_CYCLE:
        raise KitError(
            f"the whole training has {steps} steps, too few for the one-cycle schedule, which "
            f"takes {SHORTEST_CYCLE}: choose more --epochs or a smaller --batch-size"
        )


def _schedule(
    optimizer: torch.optim.Optimizer, recipe: Recipe, steps_per_epoch: int | None
) -> OneCycleLR | None:
    if recipe.schedule == "constant":
        return None
    if steps_per_epoch is None:
        raise ValueError("the one-cycle schedule needs steps_per_epoch")
    check_schedule(recipe, steps_per_epoch)
    peaks = [group["lr"] for group in optimizer.param_groups]
    steps = recipe.epochs * steps_per_epoch
    return OneCycleLR(optimizer, peaks, total_steps=steps, pct_start=0.25)


def _moving_average(decay: float) -> Callable[[Any, Any, Any], None]:
    """Return the update of an exponential average whose memory grows to that of `decay`."""

    def update(averages: list[Tensor], weights: list[Tensor], count: Tensor) -> None:
        memory = min(decay, (1 + int(count)) / (10 + int(count)))
        torch._foreach_lerp_(averages, weights, 1 - memory)

    return update

"""What training changes, and what resuming therefore needs."""

import math
from collections.abc import Sequence
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
from kit.training.losses import Teacher, choose_loss
from kit.training.muon import Muon

# Keras' Adam adds this to the root of the second moment; PyTorch's default is 1e-8.
ADAM_EPS = 1e-7
# Steps until a loss that is not a finite number is noticed; each look waits for the device.
CHECK_STEPS = 100
# A scale of fp16's gradients below which they come to nothing. It begins at 65,536, and is halved
# where they overflow.
SMALLEST_SCALE = 2.0**-14
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


class MovingAverage(AveragedModel):
    """An exponential moving average of a model's weights whose memory grows to that of `decay`.

    The first weights are not worth averaging. Buffers are the model's last ones. The count of
    updates stays on the host: an update waits for no device.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        super().__init__(model)
        self.decay = decay
        # Listed once: to go through all modules takes the host longer than an update.
        self._averages: list[Tensor] = [*self.module.parameters()]
        self._weights: list[Tensor] = [*model.parameters()]
        self._copies, self._originals = _by_dtype(self.module), _by_dtype(model)

    @torch.no_grad()
    def update(self) -> None:
        """Take the model's weights into the average."""
        count = int(self.n_averaged)
        memory = min(self.decay, (1 + count) / (10 + count)) if count else 0.0
        torch._foreach_lerp_(self._averages, self._weights, 1 - memory)
        for dtype, copies in self._copies.items():
            torch._foreach_copy_(copies, self._originals[dtype])
        self.n_averaged += 1


def _by_dtype(model: nn.Module) -> dict[torch.dtype, list[Tensor]]:
    """Return a model's buffers by their type: those of one type are copied at once."""
    buffers: dict[torch.dtype, list[Tensor]] = {}
    for buffer in model.buffers():
        buffers.setdefault(buffer.dtype, []).append(buffer)
    return buffers


class NonFiniteLossError(KitError):
    """A loss that is not a finite number.

    Attributes
    ----------
    step
        Of the epoch, from 0.
    indices
        Of the batch's tiles in the training dataset.
    """

    def __init__(self, message: str, step: int) -> None:
        super().__init__(message)
        self.step = step
        self.indices: list[int] = []


class StepFigures:
    """The figures of the last steps, kept where they are computed: no step waits for the device.

    Of several processes each keeps its own.
    """

    def __init__(self, device: torch.device) -> None:
        self._kept = torch.zeros(CHECK_STEPS, 2, device=device)
        self._count = 0

    def add(self, figures: Tensor) -> None:
        """Keep a step's mean loss and its hits, of shape (2,)."""
        self._kept[self._count] = figures
        self._count += 1

    def read(self) -> list[list[float]]:
        """Return the mean loss and the hits of each step since the last reading."""
        count, self._count = self._count, 0
        figures: list[list[float]] = self._kept[:count].tolist()
        return figures


@dataclass(frozen=True)
class BestModel:
    """The weights and running statistics that did best on the holdout so far."""

    epoch: int
    auc: float
    weights: dict[str, Tensor]


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
    teachers
        Those that the recipe names, on the device.

    Attributes
    ----------
    loss
        What is minimised.
    optimizer
        AdamW, which without weight decay is plain Adam, or Muon.
    averaged
        An exponential moving average of the weights, or None. It starts with a shorter memory:
        the first weights are not worth averaging.
    normalize
        What the model's inputs go through, on its device.
    best
        What `keep_if_best` kept, or None.

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
        teachers: Sequence[Teacher] = (),
    ) -> None:
        self.recipe = recipe
        self.loss = choose_loss(recipe, teachers)
        self.device = device or torch.device("cpu")
        self.dtype = dtype
        self.begin_epoch(Progress())
        self.best: BestModel | None = None
        model = move_model(model, self.device)
        if distributed.world_size() > 1 and self.device.type == "cuda":
            model = models.synchronize_batch_norms(model)
        self.model = model
        # On the model's device, and in its precision.
        self.normalize = Normalize(*recipe.channel_statistics).to(next(model.parameters()))
        kind = Muon if recipe.optimizer == "muon" else torch.optim.AdamW
        self.optimizer = kind(
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
        self.averaged = MovingAverage(model, recipe.ema) if recipe.ema else None
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=dtype == torch.float16)

    @property
    def epoch(self) -> int:
        """The last whole epoch."""
        return self.progress.epoch

    def begin_epoch(self, progress: Progress) -> None:
        """Go to the beginning of an epoch, or into it."""
        self.progress = progress
        self.figures = StepFigures(self.device)

    def update_weights(self) -> None:
        """Take one step of the optimizer, and of what follows it."""
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.schedule is not None:
            self.schedule.step()
        if self.averaged is not None:
            self.averaged.update()

    def settle(self) -> None:
        """Wait for the device, and bring the progress up to date.

        Raises
        ------
        NonFiniteLossError
            If the loss of a step since the last time was not a finite number, or fp16 cannot
            hold the gradients.
        """
        figures = self.figures.read()
        self._add_up(figures)
        bad = next((n for n, (loss, _) in enumerate(figures) if not math.isfinite(loss)), math.inf)
        first = self.progress.step - len(figures)
        (bad,) = distributed.all_reduce(first + bad, operation="min")
        if math.isfinite(bad):
            raise NonFiniteLossError(
                f"the loss of epoch {self.epoch + 1}, step {int(bad) + 1} is not a finite number",
                int(bad),
            )
        if self.scaler.is_enabled() and self.scaler.get_scale() < SMALLEST_SCALE:
            raise NonFiniteLossError(
                f"the gradients of epoch {self.epoch + 1}, step {self.progress.step} are larger "
                "than fp16 holds, or no finite numbers",
                self.progress.step - 1,
            )

    def _add_up(self, figures: list[list[float]]) -> None:
        """Add figures of steps to the progress: one by one, so that it does not matter when."""
        processes = distributed.world_size()
        loss, hits = 0.0, 0.0
        if distributed.rank() == 0:
            loss, hits = self.progress.loss * processes, float(self.progress.correct)
        for step_loss, step_hits in figures:
            loss, hits = loss + step_loss, hits + step_hits
        self.progress.loss, hits = distributed.all_reduce(loss / processes, hits)
        self.progress.correct = int(hits)

    def state_dict(self) -> dict[str, Any]:
        """Return the state after the last step; several processes call this together.

        Raises
        ------
        NonFiniteLossError
            See `settle`.
        """
        self.settle()
        return {
            "progress": asdict(self.progress),
            "generator": torch.get_rng_state(),
            **self._device_generator(),
            "best": self.best and vars(self.best),
            **{name: part.state_dict() for name, part in self._parts().items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to where `state` was taken.

        With another number of epochs the one-cycle schedule goes on as the new number has it.
        """
        if self.schedule is not None:
            plan = {name: vars(self.schedule)[name] for name in ("total_steps", "_schedule_phases")}
            state = state | {"schedule": state["schedule"] | plan}
        self.begin_epoch(Progress(**state["progress"]))
        torch.set_rng_state(state["generator"].cpu())
        if self.device.type == "cuda" and "cuda_generator" in state:
            torch.cuda.set_rng_state(state["cuda_generator"].cpu(), self.device)
        # Checkpoints of version 0.4.0 have none.
        self.best = BestModel(**state["best"]) if state.get("best") else None
        for name, part in self._parts().items():
            # A scaler that was not needed, in another precision, left nothing.
            if name != "scaler" or state[name]:
                part.load_state_dict(state[name])
        if distributed.rank() > 0:
            # The state is rank 0's, whose draws these would repeat.
            self.seed_draws(self.epoch + 1, distributed.rank(), self.progress.step)

    def keep_if_best(self, model: nn.Module, auc: float) -> None:
        """Keep a copy of a model, judged after an epoch, unless an earlier one did as well."""
        if self.best is None or auc > self.best.auc:
            weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
            self.best = BestModel(self.epoch, auc, weights)

    def seed_draws(self, *place: int) -> None:
        """Let dropout and the like draw what belongs to a place in the training, such as an epoch.

        It follows from the recipe's seed and the place.
        """
        sequence = np.random.SeedSequence([self.recipe.seed, *place])
        torch.manual_seed(int(sequence.generate_state(1)[0]))

    def _device_generator(self) -> dict[str, Tensor]:
        on_gpu = self.device.type == "cuda"
        return {"cuda_generator": torch.cuda.get_rng_state(self.device)} if on_gpu else {}

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

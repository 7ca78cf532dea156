"""The result of an epoch, which a line of history.jsonl holds."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class EpochResult:
    """The figures of an epoch.

    The training figures are means over the epoch's batches while the weights still moved, as
    Keras reports them; the validation figures are of the epoch's last weights. A run that holds no
    tiles out, a refit, has none. A network without BatchNorm has no running variance. The
    learning rate is that of the next step, the highest where layers have their own; a probe has
    none, and older versions recorded none.
    """

    epoch: int
    train_loss: float
    train_accuracy: float
    valid_loss: float | None
    valid_accuracy: float | None
    valid_auc: float | None
    seconds: float
    tiles_per_second: float
    min_running_var: float | None
    lr: float | None = None

    def __post_init__(self) -> None:
        if self.min_running_var == math.inf:
            # Version 0.4.0 wrote infinity where there is none.
            object.__setattr__(self, "min_running_var", None)

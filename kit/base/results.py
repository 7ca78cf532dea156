"""The result of an epoch, which a line of history.jsonl holds."""

from dataclasses import dataclass


@dataclass(frozen=True)
class EpochResult:
    """What an epoch brought.

    The training figures are means over the epoch's batches while the weights still moved, as
    Keras reports them; the validation figures are of the epoch's last weights.
    """

    epoch: int
    train_loss: float
    train_accuracy: float
    valid_loss: float
    valid_accuracy: float
    valid_auc: float
    seconds: float
    tiles_per_second: float
    min_running_var: float

"""What a training says on a terminal of its epochs, in one line each."""

from kit import runs
from kit.base import EpochResult
from kit.runs import Run


def epoch_line(result: EpochResult, epochs: int) -> str:
    """Tell an epoch's figures in one line; a refit has none of validation."""
    line = (
        f"epoch {result.epoch:>{len(str(epochs))}}/{epochs}"
        f"  loss {result.train_loss:.4f}  accuracy {result.train_accuracy:.4f}"
    )
    if result.valid_auc is not None:
        line += (
            f"  valid loss {result.valid_loss:.4f}  accuracy {result.valid_accuracy:.4f}"
            f"  AUC {result.valid_auc:.4f}"
        )
    return f"{line}  {result.tiles_per_second:,.0f} tiles/s"


def kept_note(run: Run) -> str:
    """Say which epoch was kept or could have been, unless the last one was the best as well."""
    aucs = {epoch.epoch: epoch.valid_auc for epoch in run.history if epoch.valid_auc is not None}
    if not aucs:
        return ""
    last, best = max(aucs), max(aucs, key=lambda epoch: aucs[epoch])
    if run.recipe.keep == "best":
        kept = runs.read_metrics(run.folder)["kept_epoch"]
        return (
            f"note: kept are the weights after epoch {kept} of {last}, which did best on the "
            "held-out tiles: the figures above are optimistic; the last epoch, which nothing "
            f"picked, had AUC {aucs[last]:.4f}"
        )
    if aucs[best] <= aucs[last]:
        return ""
    which = ", of weights that were not averaged yet" if run.recipe.ema else ""
    return (
        f"note: the last epoch was not the best one: AUC {aucs[best]:.4f} after epoch "
        f"{best}, {aucs[last]:.4f} after the last{which}. --keep best keeps the best, "
        "which makes its figures optimistic"
    )

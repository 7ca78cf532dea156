"""The model that a training keeps: its last one, or the one that did best on the holdout."""

from torch import nn
from torch.utils.data import DataLoader

from kit import stats
from kit.base import EpochResult
from kit.data import Batch, TileDataset
from kit.training.inference import predict_logits
from kit.training.recalibration import recalibrate
from kit.training.state import TrainingState


def judge_epoch(
    state: TrainingState,
    result: EpochResult,
    train: DataLoader[Batch],
    valid: DataLoader[Batch],
) -> None:
    """Keep what the epoch ended with if it is the best on the holdout so far, by AUC.

    What is judged is what would be kept: averaged weights with recalibrated statistics, where
    the recipe averages, and the recipe's views. Each process of several does the same.

    Parameters
    ----------
    result
        Of the epoch that has just ended.
    train, valid
        All training tiles, plain, and all held-out tiles.
    """
    if state.averaged is None and state.recipe.views == 1:
        # Its figures are of just this model.
        assert result.valid_auc is not None
        state.keep_if_best(state.model, result.valid_auc)
        return
    model = _last_model(state, train)
    logits = predict_logits(
        model,
        valid,
        state.normalize,
        views=state.recipe.views,
        device=state.device,
        dtype=state.dtype,
    )
    assert isinstance(valid.dataset, TileDataset)
    state.keep_if_best(model, stats.auc(valid.dataset.labels, logits))


def settle_on_kept(state: TrainingState, train: DataLoader[Batch]) -> int:
    """Put what a finished training keeps into `state.model`; return the epoch it is of.

    Parameters
    ----------
    train
        All training tiles, plain.
    """
    if state.best is not None:
        state.model.load_state_dict(state.best.weights)
        return state.best.epoch
    state.model.load_state_dict(_last_model(state, train).state_dict())
    return state.epoch


def _last_model(state: TrainingState, train: DataLoader[Batch]) -> nn.Module:
    """Return the model with the last weights, or their average, ready to evaluate.

    The average's statistics are only borrowed: the next step overwrites them.
    """
    if state.averaged is None:
        return state.model
    model = state.averaged.module
    recalibrate(model, train, state.normalize, device=state.device, dtype=state.dtype)
    return model

"""Probes: a head that is fitted to a frozen encoder's features."""

from dataclasses import dataclass

import numpy as np
import torch
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold
from torch import Tensor, nn
from torch.nn import functional

from kit import models, stats
from kit.base import Floats, Indices, Labels, Recipe, Strings
from kit.data import Features
from kit.models import Probe
from kit.training.logistic import Fit, Regression, Scale

STRENGTHS: Floats = 10.0 ** np.array([1, 0.5, 0, -0.5, -1, -1.5, -2])
"""Of the L2 penalty on weights of scaled features, beside the mean log loss."""
PARTS = 5
# Of tiles that look alike, where slides are not known.
_GROUPS, _AXES, _MOST_ROWS = 20, 30, 5000
# While strengths are compared, the objective need not be met as closely.
_ROUGH = 1e-6
# Of a small network.
_EPOCHS, _BATCH, _RATE, _DROPOUT, _DECAY = 20, 64, 1e-3, 0.5, 0.05


@dataclass(frozen=True)
class FittedProbe:
    """A head, and how it was chosen.

    Attributes
    ----------
    head
        From features to a logit.
    strength
        Of the penalty; None for a small network.
    """

    head: nn.Module
    strength: float | None


def fit_probe(
    recipe: Recipe, features: Features, labels: Labels, slides: Strings | None = None
) -> FittedProbe:
    """Fit a recipe's kind of probe to features of shape (tiles, features).

    A logistic regression has the largest strength with a cross-validated log loss within one
    standard error of the least (Breiman et al., Classification and Regression Trees, 1984): other
    slides differ from these. The parts are of whole slides where five or more are known, else of
    tiles that look alike.

    Parameters
    ----------
    slides
        (tiles,).
    """
    if recipe.probe == "mlp":
        return FittedProbe(_fit_network(recipe, features, labels), None)
    regression = Regression(features)
    strength, start = choose_strength(regression, labels, slides, recipe.seed)
    used = np.ones((len(labels), 1), bool)
    fit = regression.fit(labels, np.array([strength]), used, start=start)
    head = nn.Linear(features.shape[1], 1)
    with torch.no_grad():
        head.weight.copy_(torch.from_numpy(fit.weights.T))
        head.bias.copy_(torch.from_numpy(fit.biases))
    return FittedProbe(head, strength)


@torch.inference_mode()
def features_logits(probe: Probe, features: Features) -> Floats:
    """Return the logits of a probe, (tiles,), for features of shape (tiles, features)."""
    device = next(probe.head.parameters()).device
    parts = []
    for start in range(0, len(features), _MOST_ROWS):
        # A copy: what is mapped cannot be written, which PyTorch warns of.
        rows = torch.from_numpy(np.array(features[start : start + _MOST_ROWS])).to(device)
        parts.append(probe.forward_head(rows.float()))
    logits: Floats = torch.cat(parts).squeeze(1).cpu().double().numpy()
    return logits


def choose_strength(
    regression: Regression, labels: Labels, slides: Strings | None, seed: int
) -> tuple[float, Fit | None]:
    """Choose the strength of the penalty by cross-validation, see `fit_probe`.

    Returns
    -------
    float, Fit
        The strength, and the mean of its fits to the tiles around each part; None where too few
        tiles of a class leave no parts.
    """
    parts = _parts(regression.features, labels, slides, seed)
    if len(parts) < 2:
        return float(np.median(STRENGTHS)), None
    used = np.ones((len(labels), len(parts)), bool)
    for number, part in enumerate(parts):
        used[part, number] = False
    # Side by side: the strengths of the first part, those of the second, ...
    fit = regression.fit(
        labels,
        np.tile(STRENGTHS, len(parts)),
        np.repeat(used, len(STRENGTHS), axis=1),
        tolerance=_ROUGH,
    )
    losses = np.empty((len(parts), len(STRENGTHS)))
    for number, part in enumerate(parts):
        own = slice(number * len(STRENGTHS), (number + 1) * len(STRENGTHS))
        logits = Fit(fit.weights[:, own], fit.biases[own]).logits(regression.features[part])
        answers = torch.sigmoid(torch.from_numpy(logits)).numpy()
        losses[number] = [stats.log_loss(labels[part], column) for column in answers.T]
    means = losses.mean(0)
    best = int(np.argmin(means))
    error = losses[:, best].std(ddof=1) / len(parts) ** 0.5
    chosen = int(np.argmax(np.where(means <= means[best] + error, STRENGTHS, 0)))
    alike = slice(chosen, None, len(STRENGTHS))
    near = Fit(fit.weights[:, alike].mean(1, keepdims=True), fit.biases[alike].mean(keepdims=True))
    return float(STRENGTHS[chosen]), near


def _parts(features: Features, labels: Labels, slides: Strings | None, seed: int) -> list[Indices]:
    """Return the rows of each part that is held out in its turn, with both classes around it."""
    groups = slides if slides is not None and len(set(slides)) >= PARTS else None
    if groups is None and len(labels) >= 10 * _GROUPS:
        groups = _alike(features, seed)
    fewest = int(np.bincount(labels, minlength=2).min())
    count = min(PARTS, fewest)
    if count < 2:
        return []
    kind = StratifiedKFold if groups is None else StratifiedGroupKFold
    divided = kind(count, shuffle=True, random_state=seed).split(labels, labels, groups)
    parts = [(np.asarray(part), labels[rest]) for rest, part in divided if len(part) and len(rest)]
    return [part for part, others in parts if len(np.unique(others)) == 2]


def _alike(features: Features, seed: int) -> Strings:
    """Return a group for each tile: tiles of one slide look alike, and fall into one."""
    # A quarter of a second to import, for one kind of probe.
    from sklearn.cluster import MiniBatchKMeans

    rng = np.random.default_rng(seed)
    rows = rng.choice(len(features), min(_MOST_ROWS, len(features)), replace=False)
    some = features[np.sort(rows)].astype(np.float32)
    mean, deviation = some.mean(0), some.std(0).clip(1e-6)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        _, _, axes = torch.pca_lowrank(torch.from_numpy((some - mean) / deviation), _AXES)
    projection = axes.numpy() / deviation[:, None]
    places = np.concatenate(
        [
            (features[start : start + _MOST_ROWS].astype(np.float32) - mean) @ projection
            for start in range(0, len(features), _MOST_ROWS)
        ]
    )
    groups: Strings = (
        MiniBatchKMeans(_GROUPS, n_init=3, random_state=seed).fit_predict(places).astype(str)
    )
    return groups


def _fit_network(recipe: Recipe, features: Features, labels: Labels) -> nn.Module:
    """Fit one hidden layer, with dropout, by AdamW at a falling rate."""
    scale, targets = Scale(features), torch.from_numpy(labels).float()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        head = models.create_head(recipe.probe, features.shape[1])
        for layer in head.modules():
            if isinstance(layer, nn.Linear):
                layer.reset_parameters()
        steps = _EPOCHS * -(-len(labels) // _BATCH)
        optimizer = torch.optim.AdamW(head.parameters(), lr=_RATE, weight_decay=_DECAY)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _RATE, total_steps=max(steps, 5))
        for _ in range(_EPOCHS):
            for rows in torch.split(torch.randperm(len(labels)), _BATCH):
                inputs = scale(_widened(features, rows))
                logits = head(functional.dropout(inputs, _DROPOUT)).squeeze(1)
                loss = functional.binary_cross_entropy_with_logits(logits, targets[rows])
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                schedule.step()
    _take_scale(head, scale)
    return head


def _widened(features: Features, rows: Tensor) -> Tensor:
    return torch.from_numpy(features[rows.numpy()].astype(np.float32))


@torch.no_grad()
def _take_scale(head: nn.Module, scale: Scale) -> None:
    """Have a head's first layer take features as they are."""
    first = next(layer for layer in head.modules() if isinstance(layer, nn.Linear))
    first.weight.div_(scale.deviation)
    first.bias.sub_(first.weight @ scale.mean)

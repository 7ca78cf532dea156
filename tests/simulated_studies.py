"""Studies of two equal arms, simulated without training: what seeds, tiles and slides do."""

import csv
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import rankdata

from kit import stats

Scores = np.ndarray

FEATURES = 8

# A short form for each run of the tests, and the long one of docs/statistics.md.
studies = pytest.mark.parametrize(
    "number", [200, pytest.param(2000, marks=pytest.mark.soak)], ids=["200", "2000"]
)


def at_most(share: float, number: int) -> float:
    """Return what a share of simulations may be by chance: three standard errors more."""
    return share + 3 * (share * (1 - share) / number) ** 0.5


def at_least(share: float, number: int) -> float:
    """Return what a share of simulations may be by chance: three standard errors less."""
    return share - 3 * (share * (1 - share) / number) ** 0.5


def record(question: str, case: str, share: float, number: int) -> None:
    """Print what a simulation found; add it to the table that KIT_SIMULATIONS names, if any."""
    print(f"{question}; {case}: {share:.4f} of {number}")
    if table := os.environ.get("KIT_SIMULATIONS"):
        with Path(table).open("a", newline="") as file:
            csv.writer(file, lineterminator="\n").writerow([question, case, f"{share:.4f}", number])


def equal_arms(
    rng: np.random.Generator,
    *,
    tiles: int,
    seeds: int,
    gain: float = 0.0,
    noise: float = 0.1,
    arms: int = 2,
    shared: int = 0,
) -> tuple[Scores, ...]:
    """Return the arms' AUCs by seed over a fresh pool, and held-out tiles per tile trained on.

    `gain` is added to the first arm's AUCs; all else is as in `equal_runs_held_out`.
    """
    labels, scores, _, ratio = equal_runs_held_out(
        rng, tiles=tiles, seeds=seeds, noise=noise, arms=arms, shared=shared
    )
    held_out = int(labels.sum())
    ranks = [rankdata(one, axis=1)[:, :held_out].sum(axis=1) for one in scores]
    aucs = [(one - held_out * (held_out + 1) / 2) / held_out**2 for one in ranks]
    return aucs[0] + gain, *aucs[1:], ratio


def equal_runs_held_out(
    rng: np.random.Generator,
    *,
    tiles: int,
    seeds: int,
    noise: float = 0.1,
    arms: int = 2,
    shared: int = 0,
) -> tuple[Scores, list[Scores], np.ndarray, float]:
    """Return labels (held out), the arms' scores and the tiles (seeds, held out), and n2/n1.

    Each seed splits the pool, 30 % of each class held out, and all arms learn a linear
    discriminant, each on features of its own, which are drawn alike: over fresh pools neither is
    better. On one pool one is, since its features or its held-out tiles happen to be. `noise` is
    what a seed does beside the split, relative to the length of the weights. So many of the
    features are `shared` by all arms, which makes them alike. Positive tiles come first.
    """
    positive = np.arange(tiles) < tiles // 2
    held_out = round(0.3 * tiles) // 2
    sides = [np.flatnonzero(positive), np.flatnonzero(~positive)]
    drawn = [side[rng.random((seeds, len(side))).argsort(axis=1)[:, :held_out]] for side in sides]
    valid = np.concatenate(drawn, axis=1)
    trained = np.ones((seeds, tiles))
    np.put_along_axis(trained, valid, 0, axis=1)
    common = rng.normal(size=(tiles, shared))
    scores = []
    for _ in range(arms):
        features = np.hstack([common, rng.normal(size=(tiles, FEATURES - shared))])
        features += positive[:, None] / FEATURES**0.5
        weights = discriminants(features, positive, trained)
        length = np.linalg.norm(weights, axis=1, keepdims=True) / FEATURES**0.5
        weights = weights + noise * length * rng.normal(size=weights.shape)
        scores.append(np.einsum("stf,sf->st", features[valid], weights))
    labels = np.repeat([1, 0], held_out)
    return labels, scores, valid, 2 * held_out / (tiles - 2 * held_out)


def headline(held_out: Sequence[stats.Holdout], ratio: float) -> stats.Comparison:
    """Return the verdict on new tiles or slides of seeds that split one pool again."""
    aucs = [[stats.auc(labels, one) for one in scores] for labels, *scores, _ in held_out]
    first, second = np.array(aucs).T
    of_seeds = stats.resampled_difference(first, second, ratio)
    return stats.intersection_union(of_seeds, stats.runs_difference(held_out))


def two_arms(
    rng: np.random.Generator, *, tiles: int, seeds: int
) -> tuple[list[stats.Holdout], float]:
    """Return each seed's holdout of two equal arms over a fresh pool of tiles, and n2/n1."""
    labels, (one, other), drawn, ratio = equal_runs_held_out(rng, tiles=tiles, seeds=seeds)
    return [(labels, *own) for own in zip(one, other, drawn, strict=True)], ratio


def two_arms_by_slide(
    rng: np.random.Generator, *, slides: int, seeds: int, kind: str = "equal"
) -> tuple[list[stats.Holdout], float]:
    """Return each seed's holdout of two equal arms over a fresh pool of slides, and n2/n1.

    As `equal_runs_held_out`, but features lie off by slide, half the slides hold tumour, and 30 %
    of those with and without are held out. The last value is held-out units per unit trained on,
    slides or tiles, whichever is more.
    """
    groups = np.repeat(np.arange(slides), slide_sizes(rng, kind, slides))
    tumour = np.where(np.arange(slides) % 2, rng.beta(2, 2, size=slides), 0.0)
    positive = rng.random(len(groups)) < tumour[groups]
    # No slide with tumour is without a positive tile.
    positive[np.searchsorted(groups, np.arange(1, slides, 2))] = True
    held_out = round(0.15 * slides)
    valid = np.zeros((seeds, slides), bool)
    for side in (np.arange(0, slides, 2), np.arange(1, slides, 2)):
        drawn = side[rng.random((seeds, len(side))).argsort(axis=1)[:, :held_out]]
        np.put_along_axis(valid, drawn, True, axis=1)
    of_tiles = valid[:, groups]
    arms = []
    for _ in range(2):
        features = rng.normal(size=(len(groups), FEATURES)) + positive[:, None] / FEATURES**0.5
        features += 0.5 * rng.normal(size=(slides, FEATURES))[groups]
        weights = discriminants(features, positive, (~of_tiles).astype(float))
        length = np.linalg.norm(weights, axis=1, keepdims=True) / FEATURES**0.5
        weights = weights + 0.1 * length * rng.normal(size=weights.shape)
        arms.append((features @ weights.T).T)
    by_tiles = of_tiles.sum(axis=1) / (~of_tiles).sum(axis=1)
    ratio = max(2 * held_out / (slides - 2 * held_out), by_tiles.max())
    return [
        (positive[own], one[own], other[own], groups[own])
        for one, other, own in zip(*arms, of_tiles, strict=True)
    ], float(ratio)


def discriminants(features: Scores, positive: Scores, trained: Scores) -> Scores:
    """Return Fisher's linear discriminant of each row of `trained`, shape (seeds, features)."""
    products = (features[:, :, None] * features[:, None]).reshape(len(features), -1)
    spread = (trained @ products).reshape(-1, FEATURES, FEATURES)
    means = []
    for side in (positive, ~positive):
        own = trained * side
        number = own.sum(axis=1)
        mean = own @ features / number[:, None]
        spread -= number[:, None, None] * mean[:, :, None] * mean[:, None]
        means.append(mean)
    return np.linalg.solve(spread, (means[0] - means[1])[..., None])[..., 0]


def slide_sizes(rng: np.random.Generator, kind: str, slides: int) -> np.ndarray:
    """Return the number of tiles of each slide, about 20: equal, lognormal or Pareto."""
    if kind == "equal":
        return np.full(slides, 20)
    if kind == "lognormal":
        drawn = 20 * np.exp(rng.normal(size=slides) - 0.5)
    else:
        drawn = 20 / 3 * (1 + rng.pareto(1.5, size=slides))
    return np.clip(drawn.round(), 2, 2000).astype(int)


def fixed_holdout(
    rng: np.random.Generator, *, slides: int, seeds: int, kind: str = "equal", taste: float = 0.4
) -> tuple[np.ndarray, Scores, Scores, np.ndarray]:
    """Return labels, two equal arms' scores (seeds, tiles) and slides of one holdout.

    Half the slides hold tumour. Each arm has a taste of its own for slides, of standard deviation
    `taste`, and for tiles, which all its seeds share, and each seed one for tiles.
    """
    groups = np.repeat(np.arange(slides), slide_sizes(rng, kind, slides))
    tumour = np.where(np.arange(slides) % 2, rng.beta(2, 2, size=slides), 0.0)
    labels = (rng.random(len(groups)) < tumour[groups]).astype(int)
    shared = 1.8 * labels + rng.normal(size=len(groups)) + 0.6 * rng.normal(size=slides)[groups]
    arms = []
    for _ in range(2):
        own = taste * rng.normal(size=slides)[groups] + 0.5 * rng.normal(size=len(groups))
        noise = 0.5 * rng.normal(size=(seeds, len(groups)))
        arms.append(shared + own + noise + 0.3 * rng.normal(size=(seeds, 1)) * labels)
    return labels, arms[0], arms[1], groups

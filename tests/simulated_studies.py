"""Studies of two equal arms, simulated without training: what seeds, tiles and slides do."""

import numpy as np
import pytest
from scipy.stats import rankdata

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


def equal_arms(
    rng: np.random.Generator, *, tiles: int, seeds: int, gain: float = 0.0, noise: float = 0.1
) -> tuple[Scores, Scores, float]:
    """Return two arms' AUCs by seed over a fresh pool, and held-out tiles per tile trained on.

    Each seed splits the pool, 30 % of each class held out, and both arms learn a linear
    discriminant, each on features of its own, which are drawn alike: over fresh pools neither is
    better. On one pool one is, since its features or its held-out tiles happen to be. `noise` is
    what a seed does beside the split, relative to the length of the weights, and `gain` is added to
    the first arm's AUCs.
    """
    positive = np.arange(tiles) < tiles // 2
    held_out = round(0.3 * tiles) // 2
    sides = [np.flatnonzero(positive), np.flatnonzero(~positive)]
    drawn = [side[rng.random((seeds, len(side))).argsort(axis=1)[:, :held_out]] for side in sides]
    valid = np.concatenate(drawn, axis=1)
    trained = np.ones((seeds, tiles))
    np.put_along_axis(trained, valid, 0, axis=1)
    aucs = []
    for _ in range(2):
        features = rng.normal(size=(tiles, FEATURES)) + positive[:, None] / FEATURES**0.5
        weights = discriminants(features, positive, trained)
        length = np.linalg.norm(weights, axis=1, keepdims=True) / FEATURES**0.5
        weights = weights + noise * length * rng.normal(size=weights.shape)
        scores = np.einsum("stf,sf->st", features[valid], weights)
        ranks = rankdata(scores, axis=1)[:, :held_out].sum(axis=1)
        aucs.append((ranks - held_out * (held_out + 1) / 2) / held_out**2)
    return aucs[0] + gain, aucs[1], 2 * held_out / (tiles - 2 * held_out)


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

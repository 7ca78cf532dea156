"""Regularised logistic regression on features: many strengths and folds at once, in little memory.

The objective is the mean log loss plus half the strength times the squared weights, on features of
mean 0 and variance 1. The curvature of the log loss is at most a quarter of the features' own
(Böhning and Lindsay, Ann. Inst. Stat. Math. 40, 1988), which is the same matrix for all folds: it
scales the steps of Nesterov's method (restarted as O'Donoghue and Candès do, arXiv:1204.3982), and
one pass over the features serves all strengths and folds.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kit.base import Bools, Floats, Labels
from kit.data import Features

# Rows that are widened to float32 at a time.
_CHUNK = 8192
_MOST_STEPS = 500
# Numbers in float32 that are held in memory, 1.2 GB; more are widened again in each step.
_MOST_HELD = 3 * 10**8
# The features' products with each other are added up in so many rows of blocks, on one side of the
# diagonal.
_BLOCKS = 4


@dataclass(frozen=True)
class Fit:
    """Linear functions of features: their values are logits.

    Attributes
    ----------
    weights
        (features, functions).
    biases
        (functions,).
    """

    weights: Floats
    biases: Floats

    def logits(self, features: Features) -> Floats:
        """Return logits of shape (tiles, functions)."""
        weights = torch.from_numpy(self.weights).float()
        parts = [chunk @ weights for chunk in _chunks(features)]
        values: Floats = torch.cat(parts).double().numpy() + self.biases
        return values


class Regression:
    """Logistic regressions on the same features: what they have in common is computed once.

    Parameters
    ----------
    features
        (tiles, features). They are held in float32 where they are not too many.
    """

    def __init__(self, features: Features) -> None:
        self.scale = Scale(features)
        self.features = features
        count, width = features.shape
        is_wide = count < width
        self._held = self._hold() if is_wide or count * width <= _MOST_HELD else None
        self._span: Tensor | None = None
        if is_wide:
            assert self._held is not None
            # Weights lie in the span of the tiles: there are as many coordinates as tiles.
            self._held, self._span = _triangular(self._held)
        self.gram = self._multiply(min(count, width))

    def fit(
        self,
        labels: Labels,
        strengths: Floats,
        used: Bools,
        *,
        tolerance: float = 1e-9,
        start: Fit | None = None,
    ) -> Fit:
        """Fit a logistic regression per strength and selection of tiles.

        Parameters
        ----------
        labels
            (tiles,), 0 or 1.
        strengths
            (functions,) of the L2 penalty, above 0. The bias has none.
        used
            (tiles, functions): which tiles each function is fitted to.
        tolerance
            Of what each objective may still lose, in nats per tile, as the bound estimates it.
        start
            Where to begin, as near as can be; it changes nothing beyond the tolerance.
        """
        problem = _Problem(self, labels, strengths, used)
        weights, biases = _minimize(problem, tolerance, *self._coordinates(start, problem.shape))
        own = weights if self._span is None else self._span @ weights
        plain = (own.double() / self.scale.deviation[:, None].double()).numpy()
        return Fit(plain, biases.double().numpy() - self.scale.mean.double().numpy() @ plain)

    def chunks(self) -> Iterator[Tensor]:
        """Yield the scaled features' coordinates, some rows at a time."""
        return self._scaled() if self._held is None else iter(torch.split(self._held, _CHUNK))

    def _scaled(self) -> Iterator[Tensor]:
        return (self.scale(chunk) for chunk in _chunks(self.features))

    def _hold(self) -> Tensor:
        """Return the scaled features, each put in its place at once: two would be too many."""
        held = torch.empty(self.features.shape)
        start = 0
        for chunk in self._scaled():
            held[start : start + len(chunk)] = chunk
            start += len(chunk)
        return held

    def _multiply(self, width: int) -> Tensor:
        """Return the products of the coordinates with each other, a symmetric matrix."""
        gram = torch.zeros(width, width)
        edges = [width * number // _BLOCKS for number in range(_BLOCKS + 1)]
        blocks = [slice(low, high) for low, high in itertools.pairwise(edges)]
        for chunk in self.chunks():
            for own in blocks:
                gram[own, own.start :].addmm_(chunk[:, own].T, chunk[:, own.start :])
        whole: Tensor = gram.triu() + gram.triu(1).T
        return whole

    def _coordinates(self, start: Fit | None, shape: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Return a fit's weights and biases as they are on the scaled features."""
        if start is None:
            return torch.zeros(shape), torch.zeros(shape[1])
        weights = torch.from_numpy(start.weights).float() * self.scale.deviation[:, None]
        biases = start.biases + self.scale.mean.double().numpy() @ start.weights
        if self._span is not None:
            weights = self._span.T @ weights
        return weights, torch.from_numpy(biases).float()


class Scale:
    """Mean and standard deviation of each feature; a constant one keeps its scale."""

    def __init__(self, features: Features) -> None:
        width = features.shape[1]
        mean, squares = torch.zeros(2, width, dtype=torch.float64)
        done = 0
        for chunk in _chunks(features):
            # Of two parts' means and squared deviations those of both (Chan et al., 1979).
            count, own = len(chunk), chunk.mean(0)
            step = own.double() - mean
            squares += (chunk - own).square_().sum(0).double()
            squares += step.square() * (count * done / (done + count))
            mean += step * (count / (done + count))
            done += count
        deviation = (squares / done).sqrt()
        deviation[deviation < 1e-6] = 1
        self.mean, self.deviation = mean.float(), deviation.float()

    def __call__(self, chunk: Tensor) -> Tensor:
        scaled: Tensor = (chunk - self.mean).div_(self.deviation)
        return scaled


class _Problem:
    """The objectives of all functions, side by side."""

    def __init__(
        self, regression: Regression, labels: Labels, strengths: Floats, used: Bools
    ) -> None:
        self._regression = regression
        self._targets = torch.from_numpy(labels).float()[:, None]
        self._shares = torch.from_numpy(used).float()
        self._shares /= self._shares.sum(0)
        self._strengths = torch.from_numpy(strengths).float()
        self.shape = len(regression.gram), len(strengths)
        # All tiles that a function is fitted to have the same share.
        most = self._shares.amax(0)
        self._bias_curvature = most * len(labels) / 4
        self._curvatures = self._factors(most)

    def gradient(self, weights: Tensor, biases: Tensor) -> tuple[Tensor, Tensor]:
        """Return the slopes along weights (features, functions) and biases (functions,)."""
        slopes, bias_slopes = self._strengths * weights, torch.zeros_like(biases)
        start = 0
        for chunk in self._regression.chunks():
            rows = slice(start, start := start + len(chunk))
            answers = torch.sigmoid(torch.addmm(biases, chunk, weights))
            errors = (answers - self._targets[rows]) * self._shares[rows]
            slopes.addmm_(chunk.T, errors)
            bias_slopes += errors.sum(0)
        return slopes, bias_slopes

    def step(self, slopes: Tensor, bias_slopes: Tensor) -> tuple[Tensor, Tensor]:
        """Return slopes over the bound of the curvature."""
        step = torch.empty_like(slopes)
        for columns, factor in self._curvatures:
            step[:, columns] = torch.cholesky_solve(slopes[:, columns], factor)
        return step, bias_slopes / self._bias_curvature

    def _factors(self, most: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Return the Cholesky factor of the bound for the columns of each strength."""
        gram, factors = self._regression.gram, []
        # A share of the mean for the rounding of float32; the bound stays one.
        rounding = 1e-6 * gram.diagonal().mean()
        for strength in sorted(set(self._strengths.tolist())):
            columns = torch.nonzero(self._strengths == strength).squeeze(1)
            share = most[columns].max() / 4
            bound = gram * share
            bound.diagonal().add_(strength + rounding * share)
            factors.append((columns, torch.linalg.cholesky(bound)))
        return factors


def _triangular(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return rows (tiles, features) in tiles' own coordinates, and the way back for weights.

    With rows = L Q, where Q has orthonormal rows, L times coordinates is what rows times the
    weights, Q' times the coordinates, are; and both have one length.
    """
    products = rows.double() @ rows.double().T
    # Of rows with a mean of 0 one follows from the others.
    products.diagonal().add_(1e-8 * products.diagonal().mean())
    factor = torch.linalg.cholesky(products)
    basis = torch.linalg.solve_triangular(factor, rows.double(), upper=False)
    return factor.float(), basis.T.float()


def _minimize(
    problem: _Problem, tolerance: float, weights: Tensor, biases: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the weights (features, functions) and biases (functions,) of the least objectives."""
    ahead, bias_ahead = weights, biases
    age = torch.zeros(problem.shape[1])
    for _ in range(_MOST_STEPS):
        slopes, bias_slopes = problem.gradient(ahead, bias_ahead)
        step, bias_step = problem.step(slopes, bias_slopes)
        new, new_bias = ahead - step, bias_ahead - bias_step
        # What a quadratic with the bound's curvature would still lose.
        gain = (slopes * step).sum(0) + bias_slopes * bias_step
        if gain.max() < 2 * tolerance:
            return new, new_bias
        move, bias_move = new - weights, new_bias - biases
        # A function that would go uphill begins to gather speed again.
        uphill = (slopes * move).sum(0) + bias_slopes * bias_move > 0
        age = torch.where(uphill, torch.zeros_like(age), age + 1)
        speed = age / (age + 3)
        weights, biases = new, new_bias
        ahead, bias_ahead = weights + speed * move, biases + speed * bias_move
    return weights, biases


def _chunks(features: Features) -> Iterator[Tensor]:
    """Yield float32 rows of features, some at a time."""
    for start in range(0, len(features), _CHUNK):
        yield torch.from_numpy(np.asarray(features[start : start + _CHUNK]).astype(np.float32))

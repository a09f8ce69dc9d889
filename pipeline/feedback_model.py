"""Learns how well models answer from feedback: one score of one model's answer at a time.

A Gaussian process over (prompt, model): what all models find hard is learned together, what one model is good at by itself, and both
shrink to the model's mean, which shrinks to the mean of all (intrinsic coregionalisation: Bonilla et al. 2008):

    k((x, a), (x', a')) = level + own_level [a = a'] + (shared + own [a = a']) p(x).p(x')

p(x) are the prompt's columns and random cosine waves, so that p(x).p(x') is half their inner product and half exp(-|x - x'|^2) (Rahimi and
Recht 2007). The strengths are those of a small grid that foretell each score best from all the others (Rasmussen and Williams 2006, 5.4.2).
Draws from the posterior, for Thompson sampling, are made once, by moving draws from the prior to what was heard (Matheron's rule: Wilson
et al. 2020); what is left of all of it is a matrix, so that a decision does not slow down with what was learned.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve

from .score_model import Scaling

Matrix = NDArray[np.float64]

JUDGE_NOISE = 4.0
"""Variance of a judge's score around what users would say, in units of the variance of one user's: four of a judge's count for one. Not
measured."""
MOST_SCORES = 2_000
"""The newest; a fit of so many takes a second or two of one core."""
DRAWS = 16
_WAVES = 256
_LEVEL = 1.0
_STRENGTHS = ((0.3, 0.0, 0.0), (0.3, 0.1, 0.1), (0.3, 0.3, 0.3), (0.3, 1.0, 0.3), (0.3, 1.0, 1.0), (0.3, 3.0, 3.0))
"""(own level, shared, own), relative to the noise of a score."""


@dataclass(frozen=True, slots=True)
class Scores:
    """Feedback, oldest first. Row by row: a prompt, the model that answered, and what the answer was worth."""

    features: Matrix
    embeddings: NDArray[np.floating] | None
    models: NDArray[np.intp]
    """Columns of the router's models."""
    values: Matrix
    """0 to 1."""
    noise: Matrix | None = None
    """Variance of each score, in units of a user's; None: all are users'."""

    def __len__(self) -> int:
        return len(self.values)

    def last(self, count: int) -> "Scores":
        embeddings = None if self.embeddings is None else self.embeddings[-count:]
        noise = None if self.noise is None else self.noise[-count:]
        return Scores(self.features[-count:], embeddings, self.models[-count:], self.values[-count:], noise)

    @property
    def variances(self) -> Matrix:
        return np.ones(len(self)) if self.noise is None else self.noise


@dataclass(frozen=True, slots=True)
class Basis:
    """What of a prompt is learned from: its columns, and cosine waves of them."""

    scaling: Scaling
    size: float
    """Mean squared length of a column vector."""
    waves: NDArray[np.float32]
    """Shape (columns + 1, waves): frequencies, then phases."""

    @classmethod
    def of(cls, scores: Scores, random: np.random.Generator) -> "Basis":
        scaling = Scaling.of(scores.features, embedded=scores.embeddings is not None)
        columns = scaling.columns(scores.features, scores.embeddings)
        frequencies = random.normal(0.0, np.sqrt(2.0), (columns.shape[1], _WAVES))
        waves = np.vstack([frequencies, random.uniform(0.0, 2 * np.pi, _WAVES)])
        return cls(scaling, float(max(1e-9, (columns**2).sum(axis=1).mean())), waves.astype(np.float32))

    def points(self, features: Matrix, embeddings: NDArray[np.floating] | None) -> Matrix:
        """Shape (prompts, points)."""
        columns = self.scaling.columns(features, embeddings)
        turned = np.cos(_times(columns, self.waves[:-1]) + self.waves[-1])
        return cast(Matrix, np.hstack([columns / np.sqrt(2 * self.size), turned / np.sqrt(_WAVES)]))


@dataclass(frozen=True, slots=True)
class FeedbackModel:
    """The posterior after some feedback: its mean, and draws from it."""

    basis: Basis
    weights: NDArray[np.float32]
    """Shape (1 + draws, points, models); the first is the mean."""
    levels: NDArray[np.float32]
    """Shape (1 + draws, models)."""
    strengths: tuple[float, float, float]
    noise: float
    """Variance of one user's score around its prediction."""

    def predict(self, features: Matrix, embeddings: NDArray[np.floating] | None) -> Matrix:
        """Expected scores, shape (prompts, models)."""
        made: Matrix = _times(self.basis.points(features, embeddings), self.weights[0]) + self.levels[0]
        return made

    def draws(self, features: Matrix, embeddings: NDArray[np.floating] | None) -> Matrix:
        """Scores as they might be, for all that is known (Thompson 1933): shape (draws, prompts, models)."""
        points = self.basis.points(features, embeddings)
        alone = len(points) == 1
        made = np.einsum("ij,djm->dim", points.astype(np.float32), self.weights[1:]) if alone else points @ self.weights[1:]
        return np.asarray(made + self.levels[1:, None, :], dtype=np.float64)


@dataclass(frozen=True, slots=True)
class Fitted:
    """A model, and what it would have foretold of each of its prompts had it not heard of that answer."""

    model: FeedbackModel
    unseen: Matrix
    """Shape (scores, models)."""


def learn(
    scores: Scores,
    count: int,
    random: np.random.Generator,
    strengths: Sequence[tuple[float, float, float]] = _STRENGTHS,
    basis: Basis | None = None,
) -> Fitted:
    """The posterior after the last `MOST_SCORES` scores, at least one. `count`: of models, some of which may have no score."""
    recent = scores.last(MOST_SCORES)
    basis = basis or Basis.of(recent, random)
    points = basis.points(recent.features, recent.embeddings)
    near = points @ points.T
    same = recent.models[:, None] == recent.models[None, :]
    found = [_posterior(near, same, recent, triple) for triple in strengths]
    best = max(found, key=lambda made: made.fitting)
    owners = (recent.models[:, None] == np.arange(count)).astype(np.float64)
    unseen = _left_out(best, near, owners)
    weights, levels = _drawn(best, points, owners, recent, random)
    return Fitted(FeedbackModel(basis, weights.astype(np.float32), levels.astype(np.float32), best.strengths, best.noise), unseen)


@dataclass(frozen=True, slots=True)
class _Posterior:
    strengths: tuple[float, float, float]
    mean: float
    factor: tuple[Matrix, bool]
    precision: Matrix
    """The inverse of the scores' covariance, in units of the noise."""
    alpha: Matrix
    noise: float
    fitting: float
    """Logarithm of the probability of each score given all others, but for a constant, at the noise that fits best."""


def _posterior(near: Matrix, same: NDArray[np.bool_], scores: Scores, strengths: tuple[float, float, float]) -> _Posterior:
    own_level, shared, own = strengths
    values = scores.values
    covariance = _LEVEL + shared * near + same * (own_level + own * near)
    covariance[np.diag_indices_from(covariance)] += scores.variances
    factor = cho_factor(covariance, lower=True)
    precision = cho_solve(factor, np.eye(len(values)))
    mean = float(np.average(values, weights=1.0 / scores.variances))
    alpha = precision @ (values - mean)
    alone = precision.diagonal()
    noise = float(max(1e-6, (alpha**2 / alone).mean()))
    return _Posterior(strengths, mean, factor, precision, alpha, noise, float(-0.5 * np.log(noise / alone).sum()))


def _left_out(made: _Posterior, near: Matrix, owners: Matrix) -> Matrix:
    """Predictions for every model, each row by the posterior without that row's score."""
    own_level, shared, own = made.strengths
    weighed = near * made.precision
    reach = made.alpha / made.precision.diagonal()
    alphas = owners * made.alpha[:, None]
    expected = made.mean + _LEVEL * made.alpha.sum() + own_level * alphas.sum(axis=0) + shared * (near @ made.alpha)[:, None]
    expected = expected + own * (near @ alphas)
    # Of the scores' own share in the prediction, and so of what leaving it out takes away.
    pull = _LEVEL * made.precision.sum(axis=1) + shared * weighed.sum(axis=1)
    pulls = pull[:, None] + own_level * (made.precision @ owners) + own * (weighed @ owners)
    return cast(Matrix, expected - pulls * reach[:, None])


def _drawn(made: _Posterior, points: Matrix, owners: Matrix, scores: Scores, random: np.random.Generator) -> tuple[Matrix, Matrix]:
    """Weights and levels of the mean and of the draws."""
    own_level, shared, own = made.strengths
    count, spread = owners.shape[1], np.sqrt(made.noise)
    weights = np.zeros((1 + DRAWS, points.shape[1], count))
    levels = np.zeros((1 + DRAWS, count))
    for draw in range(1, 1 + DRAWS):
        all_alike = np.sqrt(shared) * random.standard_normal((points.shape[1], 1))
        weights[draw] = spread * (all_alike + np.sqrt(own) * random.standard_normal((points.shape[1], count)))
        levels[draw] = spread * (np.sqrt(_LEVEL) * random.standard_normal() + np.sqrt(own_level) * random.standard_normal(count))
    imagined = np.stack([((points @ w + level) * owners).sum(axis=1) for w, level in zip(weights, levels, strict=True)])
    imagined[1:] += spread * np.sqrt(scores.variances) * random.standard_normal((DRAWS, len(scores)))
    alphas = (scores.values - made.mean - imagined) @ made.precision
    for draw, alpha in enumerate(alphas):
        alone = owners * alpha[:, None]
        weights[draw] += shared * (points.T @ alpha)[:, None] + own * (points.T @ alone)
        levels[draw] += made.mean + _LEVEL * alpha.sum() + own_level * alone.sum(axis=0)
    return weights, levels


def _times(a: Matrix, b: NDArray[np.float32]) -> Matrix:
    # One prompt is too little work for the threads of BLAS.
    made = np.einsum("ij,jk->ik", a.astype(np.float32), b) if len(a) == 1 else a @ b
    return np.asarray(made, dtype=np.float64)

"""Learns how well models answer from feedback: one score of one model's answer at a time.

A Gaussian process over (prompt, model): what all models find hard is learned together, what one model is good at by itself, and both
shrink to the model's mean, which shrinks to the mean of all (intrinsic coregionalisation: Bonilla et al. 2008; Rasmussen and Williams 2006,
2.2 and 5.4.2, for the posterior and the leave-one-out predictions):

    k((x, a), (x', a')) = level + own_level [a = a'] + (shared + own [a = a']) (x.x' / |x|^2 + exp(-|x - x'|^2)) / 2

The strengths are those of a small grid that foretell each score best from all the others. 2,000 scores fit in 0.7 s, and a decision
takes a quarter of a millisecond; older scores are left out.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve

from .score_model import Scaling

Matrix = NDArray[np.float64]

MOST_SCORES = 2_000
_LEVEL, _OWN_LEVEL = 1.0, 0.3
_STRENGTHS = ((0.0, 0.0), (0.1, 0.1), (0.3, 0.3), (1.0, 0.3), (1.0, 1.0), (3.0, 3.0))
"""(shared, own), relative to the noise of a score."""


@dataclass(frozen=True, slots=True)
class Scores:
    """Feedback, oldest first. Row by row: a prompt, the model that answered, and what the answer was worth."""

    features: Matrix
    embeddings: NDArray[np.floating] | None
    models: NDArray[np.intp]
    """Columns of the router's models."""
    values: Matrix
    """0 to 1."""

    def __len__(self) -> int:
        return len(self.values)

    def last(self, count: int) -> "Scores":
        embeddings = None if self.embeddings is None else self.embeddings[-count:]
        return Scores(self.features[-count:], embeddings, self.models[-count:], self.values[-count:])


@dataclass(frozen=True, slots=True)
class FeedbackModel:
    """The posterior after some feedback."""

    scaling: Scaling
    size: float
    """Mean squared length of a column vector."""
    columns: Matrix
    models: NDArray[np.intp]
    count: int
    """Of models."""
    strengths: tuple[float, float]
    mean: float
    noise: float
    """Variance of one score around its prediction."""
    weights: Matrix
    factor: tuple[Matrix, bool]

    def predict(self, features: Matrix, embeddings: NDArray[np.floating] | None) -> Matrix:
        """Expected scores, shape (prompts, models)."""
        return self._expected(self._near(self.scaling.columns(features, embeddings)))

    def sample(self, features: Matrix, embeddings: NDArray[np.floating] | None, random: np.random.Generator) -> Matrix:
        """Scores drawn from the posterior, each model by itself (Thompson 1933), shape (prompts, models)."""
        columns = self.scaling.columns(features, embeddings)
        near, own = self._near(columns), _kernel(columns, columns, self.size).diagonal()
        made = self._expected(near)
        for model in range(self.count):
            covariance = _covariance(near, self.models == model, self.strengths)
            prior = _LEVEL + _OWN_LEVEL + sum(self.strengths) * own
            spread = prior - np.einsum("ij,ij->i", covariance, cho_solve(self.factor, covariance.T).T)
            made[:, model] += np.sqrt(np.maximum(0.0, spread) * self.noise) * random.standard_normal(len(columns))
        return made

    def _near(self, columns: Matrix) -> Matrix:
        return _kernel(columns, self.columns, self.size)

    def _expected(self, near: Matrix) -> Matrix:
        shared = _LEVEL * self.weights.sum() + self.strengths[0] * (near @ self.weights)
        made = np.tile(self.mean + shared[:, None], (1, self.count))
        for model in range(self.count):
            own = self.models == model
            made[:, model] += _OWN_LEVEL * self.weights[own].sum() + self.strengths[1] * (near[:, own] @ self.weights[own])
        return made


def learn(scores: Scores, count: int, strengths: Sequence[tuple[float, float]] = _STRENGTHS) -> FeedbackModel:
    """The posterior after the last `MOST_SCORES` scores, at least one. `count`: of models."""
    recent = scores.last(MOST_SCORES)
    scaling = Scaling.of(recent.features, embedded=recent.embeddings is not None)
    columns = scaling.columns(recent.features, recent.embeddings)
    size = float(max(1e-9, (columns**2).sum(axis=1).mean()))
    near = _kernel(columns, columns, size)
    same = recent.models[:, None] == recent.models[None, :]
    mean = float(recent.values.mean())
    best: tuple[float, FeedbackModel] | None = None
    for pair in strengths:
        covariance = _covariance(near, same, pair)
        covariance[np.diag_indices_from(covariance)] += 1.0
        factor = cho_factor(covariance, lower=True)
        weights = cho_solve(factor, recent.values - mean)
        precision = cho_solve(factor, np.eye(len(recent))).diagonal()
        # Logarithm of the probability of each score given all others, but for a constant, at the noise that fits best.
        residual = weights / precision
        noise = float(max(1e-6, (residual**2 * precision).mean()))
        fitting = float(-0.5 * (np.log(noise / precision)).sum())
        if best is None or fitting > best[0]:
            best = fitting, FeedbackModel(scaling, size, columns, recent.models, count, pair, mean, noise, weights, factor)
    assert best is not None
    return best[1]


def _kernel(a: Matrix, b: Matrix, size: float) -> Matrix:
    inner = a @ b.T
    distance = (a**2).sum(axis=1)[:, None] + (b**2).sum(axis=1) - 2.0 * inner
    return cast(Matrix, 0.5 * inner / size + 0.5 * np.exp(-np.maximum(distance, 0.0)))


def _covariance(near: Matrix, same: NDArray[np.bool_], strengths: tuple[float, float]) -> Matrix:
    found: Matrix = _LEVEL + strengths[0] * near + same * (_OWN_LEVEL + strengths[1] * near)
    return found

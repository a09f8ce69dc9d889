"""Learns how well each model answers a prompt, from prompts that several models answered.

What matters to a router is not how hard a prompt is but which model does better on it, so the target is each model's score less the mean of
all models on the same prompt: difficulty that they share cancels, and one strength of regularisation fits all models.

Two learners are fitted on the embedding and the scaled prompt features, and weighed by non-negative least squares on predictions that
neither has seen in training (stacking: Wolpert 1992, Breiman 1996):

- ridge regression on the columns themselves, and
- ridge regression on a Nyström approximation of the Gaussian kernel (Williams and Seeger 2001), which sees neighbourhoods as kNN does, for
  a hundredth of its time per prompt.

Where nothing can be learned both weights go to 0, and what is left is each model's mean.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import cast

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve
from scipy.optimize import nnls

Matrix = NDArray[np.float64]
Folds = NDArray[np.intp]

LANDMARKS = 1_000
"""Of the kernel: 1.5 MB of state, a tenth of a millisecond a prompt; 500 lose 0.02 of APGR on nine models, 2,000 gain nothing."""
FOLDS = 5
_FEATURE_SCALE = 0.2
"""Of a standardised feature beside an embedding of length 1: all features together then weigh about as much as the embedding."""
_LINEAR_ALPHAS = (1.0, 3.0, 10.0, 30.0, 100.0, 300.0)
_KERNEL_ALPHAS = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
_ROUNDS_WITH_GAPS = 3
_FEWEST = 20
"""Prompts; below it there is nothing but the means."""


@dataclass(frozen=True, slots=True)
class Scaling:
    """Makes the columns of the learners from features and embeddings."""

    mean: Matrix
    deviation: Matrix
    embedded: bool

    @classmethod
    def of(cls, features: Matrix, *, embedded: bool) -> "Scaling":
        deviation = features.std(axis=0)
        return cls(features.mean(axis=0), np.where(deviation > 1e-9, deviation, np.inf), embedded)

    def columns(self, features: Matrix, embeddings: NDArray[np.floating] | None) -> Matrix:
        """Shape (n, columns). Raises ValueError where embeddings are missing that were there in training."""
        scaled = _FEATURE_SCALE * np.clip((features - self.mean) / self.deviation, -4.0, 4.0)
        if not self.embedded:
            return scaled
        if embeddings is None:
            raise ValueError("this model was fitted with embeddings; give them, or fit one without")
        return np.hstack([np.asarray(embeddings, dtype=np.float64), scaled])


@dataclass(frozen=True, slots=True)
class Kernel:
    """Closeness to landmarks: exp(-|x - landmark|^2)."""

    landmarks: Matrix
    squares: Matrix = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "squares", (self.landmarks**2).sum(axis=1))

    @classmethod
    def of(cls, columns: Matrix, random: np.random.Generator) -> "Kernel":
        chosen = random.choice(len(columns), min(LANDMARKS, len(columns)), replace=False)
        return cls(columns[np.sort(chosen)])

    def columns(self, columns: Matrix) -> Matrix:
        # One prompt is too little work for the threads of BLAS: on a busy machine waiting for them took 50 ms.
        inner = np.einsum("ij,kj->ik", columns, self.landmarks) if len(columns) == 1 else columns @ self.landmarks.T
        distance = (columns**2).sum(axis=1)[:, None] + self.squares - 2.0 * inner
        return cast(Matrix, np.exp(-np.maximum(distance, 0.0)))

    def whitening(self) -> Matrix:
        """Maps closeness to coordinates whose inner products approximate the kernel between any two columns."""
        values, vectors = np.linalg.eigh(self.columns(self.landmarks))
        kept = values > 1e-5 * values[-1]
        return cast(Matrix, vectors[:, kept] / np.sqrt(values[kept]))


@dataclass(frozen=True, slots=True)
class Ridge:
    """Linear in its columns; `mean` and `intercept` are those of training."""

    mean: Matrix
    coefficients: Matrix
    """Shape (columns, models)."""
    intercept: Matrix

    def deviations(self, columns: Matrix) -> Matrix:
        """Predictions less the intercept."""
        return (columns - self.mean) @ self.coefficients

    def before(self, whitening: Matrix, mean: Matrix) -> "Ridge":
        """The same, of the columns that `whitening` made its own from; `mean` is theirs."""
        return Ridge(mean, whitening @ self.coefficients, self.intercept)


class _Gram:
    """Sums over rows from which a ridge is solved, so that a fold is left out by subtraction."""

    def __init__(self, columns: Matrix, targets: Matrix) -> None:
        self.rows = len(columns)
        self.columns = columns.sum(axis=0)
        self.targets = targets.sum(axis=0)
        self.squares = columns.T @ columns
        self.products = columns.T @ targets

    def minus(self, other: "_Gram") -> "_Gram":
        made = object.__new__(_Gram)
        made.rows = self.rows - other.rows
        made.columns = self.columns - other.columns
        made.targets = self.targets - other.targets
        made.squares = self.squares - other.squares
        made.products = self.products - other.products
        return made

    def ridges(self, alphas: Sequence[float]) -> list[Ridge]:
        mean, intercept = self.columns / self.rows, self.targets / self.rows
        squares = self.squares - self.rows * np.outer(mean, mean)
        products = self.products - self.rows * np.outer(mean, intercept)
        found: list[Ridge] = []
        for alpha in alphas:
            regularised = squares.copy()
            regularised[np.diag_indices_from(regularised)] += alpha
            found.append(Ridge(mean, cho_solve(cho_factor(regularised, overwrite_a=True), products), intercept))
        return found


@dataclass(frozen=True, slots=True)
class ScoreModel:
    """Predicts the score of every model for a prompt."""

    scaling: Scaling
    kernel: Kernel | None
    linear: Ridge | None
    smooth: Ridge | None
    weights: tuple[float, float]
    """Of the linear and of the kernel's deviations."""
    means: Matrix
    """Each model's mean score in training."""

    def predict(self, features: Matrix, embeddings: NDArray[np.floating] | None) -> Matrix:
        """Shape (n, models), in units of the scores; differences between models are what it is good for."""
        predicted = np.tile(self.means, (len(features), 1))
        if self.linear is None or self.kernel is None or self.smooth is None:
            return predicted
        columns = self.scaling.columns(features, embeddings)
        if self.weights[0] > 0:
            predicted += self.weights[0] * self.linear.deviations(columns)
        if self.weights[1] > 0:
            predicted += self.weights[1] * self.smooth.deviations(self.kernel.columns(columns))
        return predicted

    def only(self, kept: Sequence[int], *, static: bool = False) -> "ScoreModel":
        """The same for some of the models; `static`: only their means."""
        index = list(kept)
        if static or self.linear is None or self.smooth is None:
            return ScoreModel(self.scaling, None, None, None, (0.0, 0.0), self.means[index])
        linear, smooth = (Ridge(r.mean, r.coefficients[:, index], r.intercept[index]) for r in (self.linear, self.smooth))
        return ScoreModel(self.scaling, self.kernel, linear, smooth, self.weights, self.means[index])


@dataclass(frozen=True, slots=True)
class Fitted:
    """A model, and what it would have predicted of its own training prompts had it not seen them."""

    model: ScoreModel
    unseen: Matrix
    """Shape (n, models): predictions for each prompt by learners that were fitted without its fold."""


def fit(features: Matrix, embeddings: NDArray[np.floating] | None, scores: Matrix, folds: Folds, random: np.random.Generator) -> Fitted:
    """`scores`: shape (n, models), NaN where a model was not asked; every model needs one score. `folds`: which prompts belong together.

    The strengths of regularisation and the weights of the learners are those that predict prompts of left-out folds best.
    """
    means = np.nanmean(scores, axis=0)
    scaling = Scaling.of(features, embedded=embeddings is not None)
    names = np.unique(folds)
    if len(features) < _FEWEST or len(names) < 2:
        return Fitted(ScoreModel(scaling, None, None, None, (0.0, 0.0), means), np.tile(means, (len(features), 1)))
    columns = scaling.columns(features, embeddings)
    kernel = Kernel.of(columns, random)
    near, whitening = kernel.columns(columns), kernel.whitening()
    smooth_columns = near @ whitening
    missing = np.isnan(scores)
    unseen = np.tile(means, (len(features), 1))
    # Where scores are missing, each round fills them from the predictions of the round before.
    for _ in range(_ROUNDS_WITH_GAPS if missing.any() else 1):
        full = _without_gaps(scores, unseen)
        targets = full - full.mean(axis=1, keepdims=True)
        linear, unseen_linear = _fit_ridge(columns, targets, folds, _LINEAR_ALPHAS)
        smooth, unseen_smooth = _fit_ridge(smooth_columns, targets, folds, _KERNEL_ALPHAS)
        weights = _stacked(targets - _fold_means(targets, folds), unseen_linear, unseen_smooth)
        unseen = _fold_means(full, folds) + weights[0] * unseen_linear + weights[1] * unseen_smooth
    # Folded into the coefficients, the whitening costs nothing in a decision.
    smooth = smooth.before(whitening, near.mean(axis=0))
    return Fitted(ScoreModel(scaling, kernel, linear, smooth, weights, full.mean(axis=0)), unseen)


def _stacked(targets: Matrix, linear: Matrix, smooth: Matrix) -> tuple[float, float]:
    weights, _ = nnls(np.column_stack([linear.ravel(), smooth.ravel()]), targets.ravel())
    return float(weights[0]), float(weights[1])


def _without_gaps(scores: Matrix, expected: Matrix) -> Matrix:
    """A missing score is taken as expected, moved by how much better or worse than expected the other models did on that prompt."""
    missing = np.isnan(scores)
    unusual = np.where(missing, 0.0, scores - expected)
    shift = unusual.sum(axis=1) / np.maximum(1, (~missing).sum(axis=1))
    return np.where(missing, expected + shift[:, None], scores)


def _fold_means(values: Matrix, folds: Folds) -> Matrix:
    """For each row the mean of all rows of other folds."""
    made = np.empty_like(values)
    for name in np.unique(folds):
        made[folds == name] = values[folds != name].mean(axis=0)
    return made


def _fit_ridge(columns: Matrix, targets: Matrix, folds: Folds, alphas: Sequence[float]) -> tuple[Ridge, Matrix]:
    """The ridge of the best alpha on all rows, and its deviations for rows of folds left out."""
    names = np.unique(folds)
    parts = {name: _Gram(columns[folds == name], targets[folds == name]) for name in names}
    whole = _Gram(columns, targets)
    unseen = np.empty((len(alphas), *targets.shape))
    errors = np.zeros(len(alphas))
    for name in names:
        out = folds == name
        for i, ridge in enumerate(whole.minus(parts[name]).ridges(alphas)):
            unseen[i, out] = ridge.deviations(columns[out])
            errors[i] += ((targets[out] - ridge.intercept - unseen[i, out]) ** 2).sum()
    best = int(errors.argmin())
    return whole.ridges(alphas[best : best + 1])[0], unseen[best]

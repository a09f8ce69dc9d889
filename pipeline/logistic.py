"""Logistic regression small enough to be fitted again every few hundred requests: Newton's method in numpy, milliseconds."""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_STEPS = 15
_BIAS_PENALTY = 1e-3
_LARGEST = 35.0


def sigmoid(z: Floats) -> Floats:
    out: Floats = 1.0 / (1.0 + np.exp(-np.clip(z, -_LARGEST, _LARGEST)))
    return out


def fit(rows: Floats, labels: Floats, row_weights: Floats, start: Floats, penalty: float, base: Floats | float = 0.0) -> Floats:
    """Weights of shape (d,) that fit `rows` (n, d; the first column is 1) to `labels` (n,) of 0 and 1. `base` is added to the log odds.

    L2 penalised, so that it has an answer also where all labels are equal or a line separates them; the bias hardly is. Newton's
    steps are halved until the loss falls. Deterministic.
    """
    ridge = np.full(rows.shape[1], penalty)
    ridge[0] = min(penalty, _BIAS_PENALTY)

    def loss(weights: Floats) -> float:
        z = rows @ weights + base
        return float((row_weights * (np.logaddexp(0.0, z) - labels * z)).sum() + 0.5 * (ridge * weights * weights).sum())

    weights, best = start, loss(start)
    for _ in range(_STEPS):
        p = sigmoid(rows @ weights + base)
        slope = rows.T @ (row_weights * (p - labels)) + ridge * weights
        curve = (rows * (row_weights * p * (1.0 - p))[:, None]).T @ rows + np.diag(ridge)
        step, size = np.linalg.solve(curve, slope), 1.0
        while size > 1e-3 and (found := loss(weights - size * step)) > best:
            size /= 2.0
        if size <= 1e-3 or best - found < 1e-7 * (1.0 + abs(best)):
            break
        weights, best = weights - size * step, found
    return weights


def shrunk_offsets(log_odds: Floats, labels: Floats, row_weights: Floats, group_of: NDArray[np.int64], ridge: float) -> Floats:
    """What is to be added to the log odds of each group of rows, shape (groups,), so that they fit its labels; near 0 where it is small.

    `group_of`: each row's group, 0 to groups - 1. All groups at once: there may be thousands.
    """
    groups = int(group_of.max()) + 1 if len(group_of) else 0
    offsets = np.zeros(groups)
    for _ in range(_STEPS):
        p = sigmoid(log_odds + offsets[group_of])
        slope = np.bincount(group_of, row_weights * (labels - p), groups) - ridge * offsets
        curve = np.bincount(group_of, row_weights * p * (1.0 - p), groups) + ridge
        # A logistic's curvature vanishes far out: a whole step could overshoot for ever.
        offsets = offsets + np.clip(slope / curve, -1.0, 1.0)
    return offsets

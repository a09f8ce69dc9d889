"""How far a mean over some prompts may lie from the mean over others like them."""

from typing import cast

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, stdtrit

Matrix = NDArray[np.float64]
Clusters = NDArray[np.intp]
"""Shape (rows,), 0 to the number of clusters - 1: rows of one cluster vary together."""


def standard_error(values: Matrix, clusters: Clusters, served: float = np.inf) -> Matrix:
    """Of the mean over rows, robust to clusters (Liang and Zeger 1986). Shapes (rows, columns), (rows,) -> (columns,).

    Never below that of rows by themselves: residuals add up to 0, so that one cluster would leave no error at all, and few too little
    (corrected by groups / (groups - 1): Cameron and Miller 2015).
    `served`: rows of which another mean will be taken; the error is then that of the difference of both.
    """
    count = len(values)
    residual = values - values.mean(axis=0)
    groups = int(clusters.max()) + 1
    variance = (residual**2).mean(axis=0)
    if 1 < groups < count:
        sums = np.zeros((groups, values.shape[1]))
        np.add.at(sums, clusters, residual)
        variance = np.maximum(variance, (sums**2).sum(axis=0) / count * groups / (groups - 1))
    return cast(Matrix, np.sqrt(variance * (1.0 / count + 1.0 / max(1.0, served))))


def widened(errors: float, clusters: Clusters) -> float:
    """So many standard errors, where their own size is known from few clusters: the quantile of Student's t for the normal one."""
    freedom = max(1, int(clusters.max()))
    return float(stdtrit(freedom, ndtr(errors)))


def each_alone(count: int) -> Clusters:
    """No two rows vary together."""
    return np.arange(count)

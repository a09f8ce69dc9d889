"""Models that are never to be chosen: some other one costs no more and is better."""

import numpy as np
from numpy.typing import NDArray

from .routing_curve import Predictions
from .routing_table import Table
from .sampling_error import Clusters, standard_error, widened

_SURE = 2.0
"""Standard errors by which a model must be better on the whole to drop another."""


def dominated(unseen: Predictions, table: Table, clusters: Clusters, *, whole: bool = False) -> NDArray[np.bool_]:
    """Shape (models,). `unseen`: what was expected of the table's complete rows by models that had not seen them. `whole`: these are all
    scores that there will be, so that of two models the dearer one has to be better at all.

    One model dominates another that costs no less and is worse by two standard errors. The other is dropped, unless it costs no more than
    the best single model and, out of sample, prompts were told on which it beat its master: of nine public models only three are
    dominated by no other on the whole, and these three alone save 46 % at 99 % quality, all nine 77 %.
    """
    quality, cost = table.scores.mean(axis=0), table.costs.mean(axis=0)
    best = int(quality.argmax())
    drop = np.zeros(len(quality), dtype=np.bool_)
    sure = 0.0 if whole and len(quality) == 2 else _SURE
    for model in range(len(quality)):
        for other in range(len(quality)):
            if other == model or cost[other] > cost[model] or not _better(table.scores[:, other] - table.scores[:, model], clusters, sure):
                continue
            if cost[model] > cost[best] or len(quality) == 2 or not _has_niche(unseen, table, model, other):
                drop[model] = True
    return drop


def _better(gain: NDArray[np.float64], clusters: Clusters, sure: float) -> bool:
    error = standard_error(gain[:, None], clusters)[0]
    return bool(gain.mean() > widened(sure, clusters) * error)


def _has_niche(unseen: Predictions, table: Table, model: int, other: int) -> bool:
    """Whether prompts on which `model` was expected to be better were answered better by it."""
    chosen = unseen.scores[:, model] > unseen.scores[:, other]
    return bool((table.scores[chosen, model] - table.scores[chosen, other]).sum() > 0)

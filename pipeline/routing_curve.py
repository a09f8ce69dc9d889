"""Cost against quality: what a routing policy buys as its price of a dollar moves, and the measures taken from that curve.

A policy predicts a score and a cost for every model and prompt; at a price of lambda it takes the model with the greatest predicted score -
lambda x cost. Lambda from 0 to infinity is its curve from the best that it can to the cheapest. Between two lambdas it may toss a coin, so
points between two points of a curve are reached too.

APGR and CPT are those of RouteLLM (Ong et al. 2024, arXiv 2406.18665). With two models, weak and strong by mean score:

    PGR  = (score - weak's) / (strong's - weak's)          performance gap recovered
    APGR = mean PGR over shares of calls to strong from 0 to 1, prompts sent there in the order of the policy's predicted gain
    CPT(50 %) = least share of calls to strong with a PGR of 0.5

With more than two models there is no such share, and the axis is money: the share of the extra cost, (cost - cheapest's) / (best's -
cheapest's), where cheapest and best are the single models of least mean cost and of greatest mean score. PGR is taken between the same two.
Tossing a coin between them has APGR 0.5, as with two models; a mix of all models lies above it, and PGR may pass 1 where models are good at
different things.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]

_LAMBDAS = 160
_MIXES = 60
"""Points of a curve, at least, along its range of cost."""


@dataclass(frozen=True, slots=True)
class Predictions:
    """What a policy expects. Shapes (prompts, models)."""

    scores: Matrix
    costs: Matrix


@dataclass(frozen=True, slots=True)
class Grid:
    """Operating points, dearest first: the choices at `prices[low]` with probability 1 - share, else those at `prices[high]`."""

    prices: Matrix
    low: NDArray[np.intp]
    high: NDArray[np.intp]
    share: Matrix


@dataclass(frozen=True, slots=True)
class Outcomes:
    """Expected score and cost of each prompt at each operating point. Shapes (prompts, points)."""

    scores: Matrix
    costs: Matrix


def choices(predicted: Predictions, price: float) -> NDArray[np.intp]:
    """The model of each prompt at a price; of equals the cheaper one. Shape (prompts,)."""
    if np.isinf(price):
        return _first_best(-predicted.costs, predicted.scores)
    return _first_best(predicted.scores - price * predicted.costs, -predicted.costs)


def _first_best(values: Matrix, tie: Matrix) -> NDArray[np.intp]:
    best = values.max(axis=1, keepdims=True)
    chosen: NDArray[np.intp] = np.where(values >= best - 1e-12 * np.maximum(1.0, np.abs(best)), tie, -np.inf).argmax(axis=1)
    return chosen


def grid(predicted: Predictions) -> Grid:
    """Operating points from lambda 0 to infinity, close enough that a step costs little."""
    prices = np.concatenate([[0.0], _prices(predicted), [np.inf]])
    rows = np.arange(len(predicted.scores))
    spent = np.array([predicted.costs[rows, choices(predicted, price)].mean() for price in prices])
    step = max((spent.max() - spent.min()) / _MIXES, 1e-300)
    low, high, share = [0], [0], [0.0]
    for i in range(1, len(prices)):
        parts = max(1, min(_MIXES, int(np.ceil(abs(spent[i] - spent[i - 1]) / step))))
        for part in range(1, parts + 1):
            low.append(i - 1)
            high.append(i)
            share.append(part / parts)
    return Grid(prices, np.array(low), np.array(high), np.array(share))


def _prices(predicted: Predictions) -> Matrix:
    """Lambdas at which many prompts change their model: quantiles of the exchange rates between the best and each other model."""
    scores, costs = predicted.scores, predicted.costs
    rows = np.arange(len(scores))
    best, cheapest = choices(predicted, 0.0), choices(predicted, np.inf)
    found = []
    for model in range(scores.shape[1]):
        for better, worse in ((best, np.full_like(best, model)), (np.full_like(best, model), cheapest)):
            gain = scores[rows, better] - scores[rows, worse]
            extra = costs[rows, better] - costs[rows, worse]
            useful = (gain > 1e-12) & (extra > 0)
            found.append(gain[useful] / extra[useful])
    rates = np.concatenate(found)
    rates = rates[np.isfinite(rates) & (rates > 0)]
    if not len(rates):
        return np.empty(0)
    edges = np.unique(np.quantile(rates, np.linspace(0.0, 1.0, _LAMBDAS)))
    # Just below the least and above the greatest rate nothing else changes; between two equal ones lies the choice of either.
    return np.unique(np.concatenate([[edges[0] * 0.999], (edges[1:] + edges[:-1]) / 2, [edges[-1] * 1.001]]))


def outcomes(predicted: Predictions, points: Grid, scores: Matrix, costs: Matrix) -> Outcomes:
    """What the choices at each point are really worth and cost."""
    rows = np.arange(len(scores))
    chosen = [choices(predicted, price) for price in points.prices]
    score = np.column_stack([scores[rows, c] for c in chosen])
    cost = np.column_stack([costs[rows, c] for c in chosen])
    share = points.share
    return Outcomes(
        score[:, points.low] * (1 - share) + score[:, points.high] * share, cost[:, points.low] * (1 - share) + cost[:, points.high] * share
    )


def least_cost(quality: Matrix, cost: Matrix, target: Matrix) -> Matrix:
    """Cost of the cheapest point that reaches the target, infinity where none does. Shapes (b, points), (b, points), (b,) -> (b,)."""
    found: Matrix = np.where(quality >= target[:, None] - 1e-12, cost, np.inf).min(axis=1)
    return found


@dataclass(frozen=True, slots=True)
class Ends:
    """The single models between which the gap is measured: columns of the table."""

    cheapest: int
    best: int

    @classmethod
    def of(cls, scores: Matrix, costs: Matrix) -> "Ends":
        """Best: greatest mean score, of equals the cheapest. Cheapest: least mean cost, of equals the best. Of two models the other one."""
        quality, price = scores.mean(axis=0), costs.mean(axis=0)
        best = int(np.lexsort((price, -np.round(quality, 12)))[0])
        if len(quality) == 2:
            return cls(1 - best, best)
        return cls(int(np.lexsort((-quality, price))[0]), best)


def share_curve(gain: Matrix, weights: Matrix, weak: Matrix, strong: Matrix) -> tuple[Matrix, Matrix]:
    """RouteLLM's curve of two models: share of calls to strong, and PGR, prompts sent there by predicted gain, equals together.

    `weights`: shape (b, prompts), how often each prompt counts in each resample. Returns shapes (b, points).
    """
    order = np.argsort(-gain, kind="stable")
    ordered = gain[order]
    ends = np.flatnonzero(np.append(ordered[1:] != ordered[:-1], True))
    counted = weights[:, order]
    share = np.cumsum(counted, axis=1)[:, ends]
    gained = np.cumsum(counted * (strong - weak)[order], axis=1)[:, ends]
    start = np.zeros((len(weights), 1))
    share = np.hstack([start, share / share[:, -1:]])
    with np.errstate(divide="ignore", invalid="ignore"):
        return share, np.hstack([start, gained / gained[:, -1:]])


def cost_curve(quality: Matrix, cost: Matrix, cheapest: tuple[Matrix, Matrix], best: tuple[Matrix, Matrix]) -> tuple[Matrix, Matrix]:
    """The curve of more models: share of the extra cost, and PGR. `cheapest`, `best`: (mean score, mean cost), shape (b,) each.

    Past its dearest point a policy may buy the best single model for a share of prompts.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        x = (cost - cheapest[1][:, None]) / (best[1] - cheapest[1])[:, None]
        y = (quality - cheapest[0][:, None]) / (best[0] - cheapest[0])[:, None]
    order = np.argsort(x, axis=1, kind="stable")
    x, y = np.take_along_axis(x, order, axis=1), np.take_along_axis(y, order, axis=1)
    last = np.maximum(1.0, y[:, -1:])
    return np.hstack([x, np.maximum(1.0, x[:, -1:])]), np.hstack([y, last])


def area(x: Matrix, y: Matrix) -> float:
    """Mean of y over x from 0 to 1, straight between points; NaN where the curve is not defined."""
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        return float("nan")
    at = np.linspace(0.0, 1.0, 1001)
    return float(np.trapezoid(np.interp(at, x, y), at))


def least_share(x: Matrix, y: Matrix, recovered: float) -> float:
    """Least x from 0 to 1 at which the curve reaches `recovered`; NaN where it never does or is not defined."""
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        return float("nan")
    at = np.linspace(0.0, 1.0, 1001)
    reached = np.flatnonzero(np.interp(at, x, y) >= recovered - 1e-12)
    return float(at[reached[0]]) if len(reached) else float("nan")

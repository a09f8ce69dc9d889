"""Measures routing policies on a table, honestly: what a policy learns from is never what it is measured on.

    table -> splits (5 folds of rows or of groups, or train and test as given)
          -> every policy fitted on each training part and played on each test part (`table_policies`)
          -> Result per policy

In hindsight: the one operating point of the policy's curve over all test parts that reaches the target for least. Validated: in each split
the point is chosen on the training part alone, from predictions that were unseen there, with a margin; what it then does on the test part
counts.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .routing_curve import (
    Ends,
    Matrix,
    Outcomes,
    Predictions,
    area,
    cost_curve,
    grid,
    least_cost,
    least_share,
    outcomes,
    share_curve,
)
from .sampling_error import Clusters, standard_error, widened
from .score_model import FOLDS, Folds
from .table_policies import LEARNS, ORDERS, PLAYS, Played, Rows, constant, ranks_among, tossed

MARGIN = 1.64
"""Standard errors that a validated threshold stays above its target: with one, 76 to 94 % of 50 random splits of two tables met it, with
1.64 94 to 100 %.
"""
RESAMPLES = 400
TARGETS = (0.95, 0.99)
_KINDS_TO_RESAMPLE = 20
"""From so many groups on, resamples draw groups; fewer say nothing about groups that are not there."""


@dataclass(frozen=True, slots=True)
class Split:
    train: Rows
    folds: Folds
    """Of the training part."""
    test: Rows
    """Complete rows only."""


@dataclass(frozen=True, slots=True)
class Result:
    """Of one policy. Shares lie between 0 and 1; None where a measure is not defined."""

    apgr: float | None
    cpt50: float | None
    cpt80: float | None
    saved_at_95: float | None
    """Share of the best single model's dollars; None where the policy reaches no such quality."""
    saved_at_99: float | None
    saved_at_95_validated: float
    quality_vs_best: float
    """Mean score over the best single model's, at the validated threshold for 95 %."""
    saved_at_99_validated: float
    quality_vs_best_at_99: float
    intervals: Mapping[str, tuple[float, float] | None]
    """95 % bootstrap intervals by measure."""
    curve: tuple[tuple[float, float], ...]
    """(cost over the best single model's, quality over the best single model's), dearest first."""
    note: str = ""


def fold_of(kinds: NDArray[np.intp], random: np.random.Generator, count: int = FOLDS) -> Folds:
    """Rows of one kind fall into one fold; folds are about equally large."""
    unique, index, sizes = np.unique(kinds, return_inverse=True, return_counts=True)
    order = random.permutation(len(unique))
    order = order[np.argsort(-sizes[order], kind="stable")]
    filled = np.zeros(min(count, len(unique)))
    fold = np.empty(len(unique), dtype=np.intp)
    for name in order:
        smallest = int(filled.argmin())
        fold[name] = smallest
        filled[smallest] += sizes[name]
    return np.asarray(fold[index])


def cross_splits(rows: Rows, random: np.random.Generator) -> list[Split]:
    """Five folds, each the test part once; fewer where there are fewer kinds."""
    fold = fold_of(rows.kinds, random)
    return [one_split(rows.rows(fold != f), rows.rows(fold == f), random) for f in range(int(fold.max()) + 1)]


def one_split(train: Rows, test: Rows, random: np.random.Generator) -> Split:
    return Split(train, fold_of(train.kinds, random), test.complete)


def evaluate(
    splits: Sequence[Split],
    policies: Sequence[str],
    random: np.random.Generator,
    *,
    margin: float = MARGIN,
    resamples: int = RESAMPLES,
    progress: Callable[[str], None] = lambda line: None,
) -> dict[str, Result]:
    """Results by policy. `splits`: at least one, with a complete row in every test part."""
    test = _Test.of(splits, random, resamples)
    results = {}
    for name in policies:
        played = []
        for i, split in enumerate(splits):
            if name in LEARNS:
                progress(f"{name}: part {i + 1} of {len(splits)}")
            played.append(PLAYS[name](split.train, split.folds, split.test, random))
        results[name] = _result(name, splits, played, test, margin)
    return results


@dataclass(frozen=True, slots=True)
class _Test:
    """All test parts together."""

    scores: Matrix
    costs: Matrix
    ends: Ends
    weights: Matrix
    """Shape (1 + resamples, rows), each adding up to 1; the first is the table itself."""

    @classmethod
    def of(cls, splits: Sequence[Split], random: np.random.Generator, resamples: int) -> "_Test":
        scores = np.concatenate([s.test.table.scores for s in splits])
        costs = np.concatenate([s.test.table.costs for s in splits])
        unique, index = np.unique(np.concatenate([s.test.kinds for s in splits]), return_inverse=True)
        if len(unique) < _KINDS_TO_RESAMPLE:
            unique, index = np.arange(len(scores)), np.arange(len(scores))
        counts = random.multinomial(len(unique), np.full(len(unique), 1 / len(unique)), size=resamples)
        weights = np.vstack([np.ones(len(scores)), counts[:, index]]).astype(np.float64)
        return cls(scores, costs, Ends.of(scores, costs), weights / np.maximum(1.0, weights.sum(axis=1, keepdims=True)))

    def means(self, values: Matrix) -> Matrix:
        return self.weights @ values

    @property
    def priced(self) -> bool:
        """Whether the better of the two ends costs more, so that there is something to trade."""
        return bool(self.costs[:, self.ends.best].mean() > self.costs[:, self.ends.cheapest].mean())


def _result(name: str, splits: Sequence[Split], played: Sequence[Played], test: _Test, margin: float) -> Result:
    curve = _pooled(name, splits, played, test)
    quality, cost = test.means(curve.scores), test.means(curve.costs)
    best = test.means(test.scores[:, [test.ends.best]])[:, 0], test.means(test.costs[:, [test.ends.best]])[:, 0]
    measures = _gap_measures(name, quality, cost, splits, played, test)
    reached = quality, cost
    if name in LEARNS:
        # Beside what it learned it has the static choices, which it takes where they reach a target for less.
        mix = _static_in_hindsight(test)
        reached = np.hstack([quality, test.means(mix.scores)]), np.hstack([cost, test.means(mix.costs)])
    for target in TARGETS:
        measures[f"saved_at_{target:.0%}".rstrip("%")] = 1.0 - _ratio(least_cost(*reached, target * best[0]), best[1])
        spent = _validated(splits, played, target, margin)
        measures[f"saved_at_{target:.0%}".rstrip("%") + "_validated"] = 1.0 - _ratio(test.means(spent.costs)[:, 0], best[1])
        measures["quality_vs_best" + ("" if target == TARGETS[0] else "_at_99")] = _ratio(test.means(spent.scores)[:, 0], best[0])
    values = {key: _finite(found[0]) for key, found in measures.items()}
    order = np.argsort(-cost[0], kind="stable")
    return Result(
        **values,  # type: ignore[arg-type]
        intervals={key: _interval(found[1:]) if values[key] is not None else None for key, found in measures.items()},
        curve=tuple(zip(_ratio(cost[0], best[1][0])[order].tolist(), _ratio(quality[0], best[0][0])[order].tolist(), strict=True)),
        note=next((p.note for p in played if p.note), ""),
    )


def _pooled(name: str, splits: Sequence[Split], played: Sequence[Played], test: _Test) -> Outcomes:
    """The policy's curve over all test parts, each prompt by the policy that had not seen it.

    What only knows the models' means takes them in hindsight, which flatters it: fold by fold they would move against those of the part
    left out, and a mix would look worse than the coin that it is.
    """
    if name == "random":
        return tossed(test.scores, test.costs, test.ends)
    if any(p.expected is None for p in played):
        return Outcomes(np.concatenate([p.test.scores for p in played]), np.concatenate([p.test.costs for p in played]))
    scores, costs = test.scores.mean(axis=0), test.costs.mean(axis=0)
    made = []
    for split, p in zip(splits, played, strict=True):
        if name in ORDERS:
            made.append(Predictions(_ranks(name, split)[:, None] * scores, constant(costs, len(split.test))))
        elif p.static or p.expected is None:
            made.append(Predictions(constant(scores, len(split.test)), constant(costs, len(split.test))))
        else:
            made.append(p.expected)
    expected = Predictions(np.concatenate([m.scores for m in made]), np.concatenate([m.costs for m in made]))
    return outcomes(expected, grid(expected), test.scores, test.costs)


def _static_in_hindsight(test: _Test) -> Outcomes:
    shape = len(test.scores)
    expected = Predictions(constant(test.scores.mean(axis=0), shape), constant(test.costs.mean(axis=0), shape))
    return outcomes(expected, grid(expected), test.scores, test.costs)


def _ranks(name: str, split: Split) -> Matrix:
    return ranks_among(ORDERS[name](split.test), ORDERS[name](split.train))


def _gap_measures(
    name: str, quality: Matrix, cost: Matrix, splits: Sequence[Split], played: Sequence[Played], test: _Test
) -> dict[str, Matrix]:
    """APGR, CPT50 and CPT80 of the table and of each resample."""
    count = len(test.weights)
    undefined = np.full(count, np.nan)
    if name == "best_single" or not test.priced:
        return {"apgr": undefined, "cpt50": undefined, "cpt80": undefined}
    weak, strong = test.scores[:, test.ends.cheapest], test.scores[:, test.ends.best]
    if test.scores.shape[1] == 2:
        x, y = share_curve(_gain(name, splits, played, test), test.weights, weak, strong)
    else:
        cheapest = test.means(weak[:, None])[:, 0], test.means(test.costs[:, [test.ends.cheapest]])[:, 0]
        best = test.means(strong[:, None])[:, 0], test.means(test.costs[:, [test.ends.best]])[:, 0]
        x, y = cost_curve(quality, cost, cheapest, best)
    return {
        "apgr": np.array([area(x[b], y[b]) for b in range(count)]),
        "cpt50": np.array([least_share(x[b], y[b], 0.5) for b in range(count)]),
        "cpt80": np.array([least_share(x[b], y[b], 0.8) for b in range(count)]),
    }


def _gain(name: str, splits: Sequence[Split], played: Sequence[Played], test: _Test) -> Matrix:
    """How much better the policy expects the strong of two models to be; equal for all prompts where it does not look at them."""
    gap = float(test.scores[:, test.ends.best].mean() - test.scores[:, test.ends.cheapest].mean())
    made = []
    for split, p in zip(splits, played, strict=True):
        if name in ORDERS:
            made.append(gap * _ranks(name, split))
        elif p.static or p.expected is None:
            made.append(np.full(len(split.test), gap))
        else:
            made.append(p.expected.scores[:, test.ends.best] - p.expected.scores[:, test.ends.cheapest])
    return np.concatenate(made)


def _validated(splits: Sequence[Split], played: Sequence[Played], target: float, margin: float) -> Outcomes:
    """What the points chosen on the training parts do on the test parts; one column."""
    scores, costs = [], []
    for split, p in zip(splits, played, strict=True):
        known = split.train.complete
        best = Ends.of(known.table.scores, known.table.costs).best
        point = threshold(p.train, known.table.scores[:, best], target, len(split.test), margin, _clusters(known))
        table = split.test.table
        scores.append(table.scores[:, best] if point is None else p.test.scores[:, point])
        costs.append(table.costs[:, best] if point is None else p.test.costs[:, point])
    return Outcomes(np.concatenate(scores)[:, None], np.concatenate(costs)[:, None])


def _clusters(rows: Rows) -> Clusters:
    return np.unique(rows.kinds, return_inverse=True)[1]


def threshold(seen: Outcomes, best: Matrix, target: float, served: int, margin: float, clusters: Clusters) -> int | None:
    """The cheapest operating point whose quality is above target x best by `margin` standard errors; None where no point is.

    The error is that of the difference between the prompts that it was measured on and `served` more: what is seen later varies too.
    `best`: scores of the best single model on the same prompts, which are compared prompt by prompt.
    """
    above = seen.scores - target * best[:, None]
    error = standard_error(above, clusters, served)
    enough = np.flatnonzero(above.mean(axis=0) - widened(margin, clusters) * error >= 0)
    if not len(enough):
        return None
    return int(enough[seen.costs.mean(axis=0)[enough].argmin()])


def _ratio(part: Matrix, whole: Matrix) -> Matrix:
    """1 where there is nothing on either side, infinite where a policy pays and the best single model costs nothing."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where((part == 0) & (whole == 0), 1.0, part / whole)


def _finite(value: float) -> float | None:
    return _plain(value) if np.isfinite(value) else None


def _plain(value: float) -> float:
    """Without the last digits of its arithmetic: 0 rather than -0 or -2e-16."""
    return round(float(value), 12) + 0.0


def _interval(values: Matrix) -> tuple[float, float] | None:
    known = values[np.isfinite(values)]
    if len(known) < len(values) / 2:
        return None
    low, high = np.quantile(known, [0.025, 0.975])
    return _plain(low), _plain(high)

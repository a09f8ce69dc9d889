"""Routing policies as they play on a table: learned on one part of it, played on another.

random         a coin between the cheapest and the best single model
prompt_length  longer prompts to better models
best_single    the model that was best in training, for everything
static_mix     the best mix of models that looks at no prompt
oracle         knows every score: what nobody can reach
heuristic      the design document's complexity score orders the prompts
quantile       the cold start's ranking (`pipeline.quantile`) orders them
learned        `pipeline.score_model`, dominated models dropped, the static mix where it is not above that
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from .prompt_features import PROMPT_FEATURES
from .quantile import difficulty
from .routing_curve import Ends, Matrix, Outcomes, Predictions, choices, grid, outcomes
from .routing_table import Table
from .score_model import Folds, fit

_EXCLUDED = 1e6
_NICHE_ERRORS = 2.0
"""Standard errors by which a model must be better somewhere to be kept although another one costs no more and is better on the whole."""


@dataclass(frozen=True, slots=True)
class Rows:
    """A part of a table with what policies see of its prompts. Row by row the same prompts."""

    table: Table
    features: Matrix
    embeddings: NDArray[np.floating] | None
    complexity: Matrix
    """The design document's score, shape (prompts,)."""

    def __len__(self) -> int:
        return len(self.table)

    def rows(self, chosen: NDArray[np.intp] | NDArray[np.bool_]) -> "Rows":
        embeddings = None if self.embeddings is None else self.embeddings[chosen]
        return Rows(self.table.rows(chosen), self.features[chosen], embeddings, self.complexity[chosen])

    @property
    def complete(self) -> "Rows":
        return self.rows(self.table.complete)


@dataclass(frozen=True, slots=True)
class Played:
    """A policy on one split: the same operating points on the training part, as if it were unseen, and on the test part."""

    train: Outcomes
    test: Outcomes
    expected: Predictions | None = None
    """For the test part, where the policy ranks prompts."""
    static: bool = False
    """The same models, whatever the prompt."""
    note: str = ""


Play = Callable[[Rows, Folds, Rows, np.random.Generator], Played]
"""(training part, its folds, complete rows of the test part, random source) -> what happened."""


def mean_scores(table: Table) -> Matrix:
    return np.asarray(np.nanmean(table.scores, axis=0))


def mean_costs(table: Table) -> Matrix:
    return np.asarray(np.nanmean(table.costs, axis=0))


def expected_costs(train: Rows, rows: Rows) -> Matrix:
    """Cost of each model as a straight line of the prompt's length: an answer's own length is not known before it is paid.

    Never below the least cost seen. Shape (prompts, models).
    """
    characters = PROMPT_FEATURES.index("characters")
    length, wanted = np.expm1(train.features[:, characters]), np.expm1(rows.features[:, characters])
    made = np.empty((len(rows), len(train.table.models)))
    for model in range(made.shape[1]):
        known = ~np.isnan(train.table.costs[:, model])
        x, y = length[known], train.table.costs[known, model]
        spread = x.var()
        slope = max(0.0, ((x - x.mean()) * (y - y.mean())).mean() / spread) if spread > 1e-9 else 0.0
        made[:, model] = np.maximum(y.mean() + slope * (wanted - x.mean()), y.min())
    return made


def constant(values: Matrix, rows: int) -> Matrix:
    return np.tile(values, (rows, 1))


def ordered_by(ranks: Matrix, train: Table) -> Predictions:
    """What a policy that only orders prompts expects: the harder one is, the more a better model gains over a lesser one.

    `ranks`: 0 easiest to 1. With two models lambda cuts the order anywhere; with more, each step of the static mix is cut in turn.
    """
    return Predictions(ranks[:, None] * mean_scores(train)[None, :], constant(mean_costs(train), len(ranks)))


def ranks_among(values: Matrix, known: Matrix) -> Matrix:
    """Share of the known values that are no greater, above 0."""
    return (np.searchsorted(np.sort(known), values, side="right") + 0.5) / (len(known) + 1)


def play(train: Rows, on_train: Predictions, test: Rows, on_test: Predictions) -> Played:
    """Operating points of the training part, played on both."""
    whole = train.table.complete
    seen = Predictions(on_train.scores[whole], on_train.costs[whole])
    points = grid(seen)
    known = train.table.rows(whole)
    return Played(
        outcomes(seen, points, known.scores, known.costs), outcomes(on_test, points, test.table.scores, test.table.costs), on_test
    )


def _by(order: Callable[[Rows], Matrix]) -> Play:
    def ordered(train: Rows, folds: Folds, test: Rows, random: np.random.Generator) -> Played:
        known = order(train)
        on_train = ordered_by(ranks_among(known, known), train.table)
        return play(train, on_train, test, ordered_by(ranks_among(order(test), known), train.table))

    return ordered


def prompt_length(rows: Rows) -> Matrix:
    return rows.features[:, PROMPT_FEATURES.index("characters")]


def complexity(rows: Rows) -> Matrix:
    # Many prompts have the same score; the longer one is the harder.
    return rows.complexity + 1e-6 * prompt_length(rows)


def cold_start(rows: Rows) -> Matrix:
    return difficulty(rows.features)


def static_mix(train: Rows, folds: Folds, test: Rows, random: np.random.Generator) -> Played:
    scores, costs = mean_scores(train.table), mean_costs(train.table)
    on_train = Predictions(constant(scores, len(train)), constant(costs, len(train)))
    on_test = Predictions(constant(scores, len(test)), constant(costs, len(test)))
    return replace(play(train, on_train, test, on_test), static=True)


def oracle(train: Rows, folds: Folds, test: Rows, random: np.random.Generator) -> Played:
    known = train.complete
    exact = [Predictions(rows.table.scores, rows.table.costs) for rows in (known, test)]
    return play(known, exact[0], test, exact[1])


def coin(train: Rows, folds: Folds, test: Rows, random: np.random.Generator) -> Played:
    known = train.complete
    ends = Ends.of(known.table.scores, known.table.costs)
    return Played(_coin(known.table, ends), _coin(test.table, ends))


def _coin(table: Table, ends: Ends) -> Outcomes:
    share = np.linspace(1.0, 0.0, 101)
    mixed = [table_values[:, [ends.best]] * share + table_values[:, [ends.cheapest]] * (1 - share)
             for table_values in (table.scores, table.costs)]  # fmt: skip
    return Outcomes(mixed[0], mixed[1])


def best_single(train: Rows, folds: Folds, test: Rows, random: np.random.Generator) -> Played:
    known = train.complete
    best = Ends.of(known.table.scores, known.table.costs).best
    made = [Outcomes(rows.table.scores[:, [best]], rows.table.costs[:, [best]]) for rows in (known, test)]
    return Played(made[0], made[1])


def learned(train: Rows, folds: Folds, test: Rows, random: np.random.Generator) -> Played:
    fitted = fit(train.features, train.embeddings, train.table.scores, folds, random)
    unseen = Predictions(fitted.unseen, expected_costs(train, train))
    expected = Predictions(fitted.model.predict(test.features, test.embeddings), expected_costs(train, test))
    known = train.table.complete
    on_known = Predictions(unseen.scores[known], unseen.costs[known])
    dropped = dominated(on_known, train.table.rows(known))
    mix = static_mix(train, folds, test, random)
    above, note = _above_static(_without(on_known, dropped), train.table.rows(known))
    if not above:
        return replace(mix, note=note)
    played = play(train, _without(unseen, dropped), test, _without(expected, dropped))
    # The static mix stands beside it: whichever reaches a target for less is taken.
    return Played(_joined(played.train, mix.train), _joined(played.test, mix.test), played.expected)


def _joined(a: Outcomes, b: Outcomes) -> Outcomes:
    return Outcomes(np.hstack([a.scores, b.scores]), np.hstack([a.costs, b.costs]))


def dominated(unseen: Predictions, table: Table) -> NDArray[np.bool_]:
    """Models that are never to be chosen, shape (models,): some other one costs no more and is better.

    A model that costs more than the best single one is always dropped, as is the lesser of two. Another is kept where, out of sample,
    prompts can be told on which it is better than the model that dominates it: of nine public models three are dominated by no other, and
    these three alone save 46 % at 99 % quality, all nine 77 %.
    """
    quality, cost = mean_scores(table), mean_costs(table)
    ends = Ends.of(table.scores, table.costs)
    drop = np.zeros(len(quality), dtype=bool)
    for model in range(len(quality)):
        over = [o for o in range(len(quality)) if o != model and _dominates(quality, cost, o, model)]
        if not over:
            continue
        if cost[model] > cost[ends.best] or len(quality) == 2:
            drop[model] = True
            continue
        drop[model] = any(not _has_niche(unseen, table, model, other) for other in over)
    return drop


def _dominates(quality: Matrix, cost: Matrix, one: int, other: int) -> bool:
    if cost[one] > cost[other] or quality[one] < quality[other]:
        return False
    return bool(cost[one] < cost[other] or quality[one] > quality[other] or one < other)


def _has_niche(unseen: Predictions, table: Table, model: int, other: int) -> bool:
    """Whether prompts on which `model` was expected to be better really are answered better by it."""
    chosen = unseen.scores[:, model] > unseen.scores[:, other]
    gain = np.where(chosen, table.scores[:, model] - table.scores[:, other], 0.0)
    return bool(gain.mean() > _NICHE_ERRORS * gain.std() / np.sqrt(len(gain)) and gain.any())


def _without(predicted: Predictions, dropped: NDArray[np.bool_]) -> Predictions:
    """So bad and so dear that no price chooses a dropped model."""
    dearest = float(predicted.costs.max()) or 1.0
    return Predictions(np.where(dropped, -_EXCLUDED, predicted.scores), np.where(dropped, _EXCLUDED * dearest, predicted.costs))


def _above_static(unseen: Predictions, table: Table) -> tuple[bool, str]:
    """Whether, at the prices that matter, the learned choice is worth more than the static one by more than one standard error."""
    static = Predictions(constant(mean_scores(table), len(table)), constant(mean_costs(table), len(table)))
    steps = grid(static).prices
    steps = steps[np.isfinite(steps) & (steps > 0)]
    if not len(steps):
        return True, ""
    rows = np.arange(len(table))
    gains = []
    for price in np.geomspace(steps.min() / 3, steps.max() * 3, 9):
        worth = [table.scores[rows, c] - price * table.costs[rows, c] for c in (choices(unseen, price), choices(static, price))]
        scale = max(1e-12, float(np.abs(worth[1]).mean()))
        gains.append((worth[0] - worth[1]) / scale)
    gain = np.mean(gains, axis=0)
    error = gain.std() / np.sqrt(len(gain))
    if gain.mean() - error > 0:
        return True, ""
    return False, "what was learned is not surely above the best static choice, so that is taken"


PLAYS: Mapping[str, Play] = {
    "random": coin,
    "prompt_length": _by(prompt_length),
    "best_single": best_single,
    "static_mix": static_mix,
    "oracle": oracle,
    "heuristic": _by(complexity),
    "quantile": _by(cold_start),
    "learned": learned,
}
POLICIES = ("heuristic", "quantile", "learned")
LEARNS = frozenset({"learned"})
"""Policies that take their time."""
REFERENCES = ("random", "prompt_length", "best_single", "static_mix", "oracle")
ORDERS: Mapping[str, Callable[[Rows], Matrix]] = {"prompt_length": prompt_length, "heuristic": complexity, "quantile": cold_start}
"""Policies that learn nothing from scores but the models' means."""

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

from .dominance import dominated
from .prompt_features import PROMPT_FEATURES
from .quantile import difficulty
from .routing_curve import Ends, Matrix, Outcomes, Predictions, grid, outcomes
from .routing_table import Table
from .sampling_error import Clusters, standard_error, widened
from .score_model import Folds, fit

SURE = 1.64
"""Standard errors by which what was learned must be above the best static choice: 95 %, one-sided."""
_EXCLUDED = 1e6
_COSTS = 9
"""At which the learned choices are compared with the static mix."""


@dataclass(frozen=True, slots=True)
class Rows:
    """A part of a table with what policies see of its prompts. Row by row the same prompts."""

    table: Table
    features: Matrix
    embeddings: NDArray[np.floating] | None
    complexity: Matrix
    """The design document's score, shape (prompts,)."""
    kinds: NDArray[np.intp]
    """What varies together and must not be on both sides of a split: prompts of one group, or the same prompt. Shape (prompts,)."""

    def __len__(self) -> int:
        return len(self.table)

    def rows(self, chosen: NDArray[np.intp] | NDArray[np.bool_]) -> "Rows":
        embeddings = None if self.embeddings is None else self.embeddings[chosen]
        return Rows(self.table.rows(chosen), self.features[chosen], embeddings, self.complexity[chosen], self.kinds[chosen])

    @property
    def complete(self) -> "Rows":
        """Those that policies can be measured on, with every value."""
        made = self.rows(self.table.complete)
        return replace(made, table=self.table.measured())


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


def rows_of(table: Table, features: Matrix, embeddings: NDArray[np.floating] | None, complexity: Matrix, *, by_group: bool) -> Rows:
    """The rows of a whole table; `by_group`: groups vary together, where it has two at least."""
    grouped = by_group and table.groups is not None and len(set(table.groups)) > 1
    names = table.groups if grouped and table.groups is not None else [prompt.strip() for prompt in table.prompts]
    return Rows(table, features, embeddings, complexity, np.unique(np.array(names), return_inverse=True)[1])


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
    known = train.table.measured()
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
    return Played(tossed(known.table.scores, known.table.costs, ends), tossed(test.table.scores, test.table.costs, ends))


def tossed(scores: Matrix, costs: Matrix, ends: Ends) -> Outcomes:
    """A coin between the two ends, from always the best to always the cheapest."""
    share = np.linspace(1.0, 0.0, 101)
    score, cost = (values[:, [ends.best]] * share + values[:, [ends.cheapest]] * (1 - share) for values in (scores, costs))
    return Outcomes(score, cost)


def best_single(train: Rows, folds: Folds, test: Rows, random: np.random.Generator) -> Played:
    known = train.complete
    best = Ends.of(known.table.scores, known.table.costs).best
    made = [Outcomes(rows.table.scores[:, [best]], rows.table.costs[:, [best]]) for rows in (known, test)]
    return Played(made[0], made[1])


def learned(train: Rows, folds: Folds, test: Rows, random: np.random.Generator) -> Played:
    fitted = fit(train.features, train.embeddings, train.table.scores, folds, random)
    unseen = Predictions(fitted.unseen, expected_costs(train, train))
    expected = Predictions(fitted.model.predict(test.features, test.embeddings), expected_costs(train, test))
    whole, known = train.table.complete, train.complete
    on_known = Predictions(unseen.scores[whole], unseen.costs[whole])
    clusters = np.unique(known.kinds, return_inverse=True)[1]
    dropped = dominated(on_known, known.table, clusters, whole=True)
    mix = static_mix(train, folds, test, random)
    above, note = above_static(without(on_known, dropped), known.table, clusters)
    if not above:
        return replace(mix, note=note)
    played = play(train, without(unseen, dropped), test, without(expected, dropped))
    # The static mix stands beside it: whichever reaches a target for less is taken.
    return Played(_joined(played.train, mix.train), _joined(played.test, mix.test), played.expected)


def _joined(a: Outcomes, b: Outcomes) -> Outcomes:
    return Outcomes(np.hstack([a.scores, b.scores]), np.hstack([a.costs, b.costs]))


def without(predicted: Predictions, dropped: NDArray[np.bool_]) -> Predictions:
    """So bad and so dear that no price chooses a dropped model."""
    dearest = float(predicted.costs.max()) or 1.0
    return Predictions(np.where(dropped, -_EXCLUDED, predicted.scores), np.where(dropped, _EXCLUDED * dearest, predicted.costs))


def above_static(unseen: Predictions, table: Table, clusters: Clusters, errors: float = SURE) -> tuple[bool, str]:
    """Whether the learned choices were worth more than the static mix of the same cost, by so many standard errors, out of sample.

    Rows of a cluster count together: what holds for the prompts of two topics need not hold for a third. With a single one nothing is told
    apart (`score_model.fit` has no fold to leave out): on nine models what one of two topics taught had an APGR of 0.10 on the other.
    """
    usual = constant(mean_costs(table), len(table))
    # That short prompts cost less is no sign that prompts are told apart by which model is good at them.
    told = Predictions(unseen.scores, np.where(unseen.scores <= -_EXCLUDED, unseen.costs, usual))
    static = Predictions(constant(mean_scores(table), len(table)), usual)
    made, mix = (outcomes(predicted, grid(predicted), table.scores, usual) for predicted in (told, static))
    gain = _gain_at_equal_costs(made, mix)
    if gain is None:
        # One model is the best and the cheapest: the learned choice has to be better, whatever it costs.
        gain = made.scores[:, 0] - mix.scores[:, 0]
        if not gain.any():
            return True, ""
    if gain.mean() > widened(errors, clusters) * standard_error(gain[:, None], clusters)[0]:
        return True, ""
    return False, "what was learned is not surely above the best static choice, so that is taken"


def _gain_at_equal_costs(made: Outcomes, mix: Outcomes) -> Matrix | None:
    """Sum over some costs all along the mix, shape (prompts,); None where all of it costs the same.

    Where a prompt cost more or less than by the mix, that is worth what the mix gets for a dollar there.
    """
    order = np.argsort(mix.costs.mean(axis=0), kind="stable")
    scores, costs = mix.scores[:, order], mix.costs[:, order]
    worth, paid, spent = scores.mean(axis=0), costs.mean(axis=0), made.costs.mean(axis=0)
    if paid[-1] - paid[0] <= 1e-12 * paid[-1]:
        return None
    gain = np.zeros(len(scores))
    for cost in np.linspace(paid[0], paid[-1], _COSTS + 2)[1:-1]:
        point = int(np.abs(spent - cost).argmin())
        above = int(np.clip(np.searchsorted(paid, spent[point]), 1, len(paid) - 1))
        step = paid[above] - paid[above - 1]
        slope = (worth[above] - worth[above - 1]) / step if step > 0 else 0.0
        gain += made.scores[:, point] - scores[:, above] - slope * (made.costs[:, point] - costs[:, above])
    return gain


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

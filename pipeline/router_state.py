"""What the learned router knows: two score models, with and without embeddings, and the price of a dollar validated for each floor."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from .dominance import dominated
from .ports import Vector
from .prompt_features import feature_rows
from .routing_curve import Ends, Grid, Matrix, Predictions, grid, outcomes
from .routing_evaluation import MARGIN, fold_of, threshold
from .routing_table import Table
from .sampling_error import Clusters
from .score_model import ScoreModel, fit
from .table_policies import Rows, above_static, constant, mean_costs, mean_scores, without

STATE_VERSION = 1
FLOORS = tuple(round(0.8 + 0.01 * i, 2) for i in range(21))
SERVED = 1_000
"""Requests over which a floor is to be kept."""


@dataclass(frozen=True, slots=True)
class RouterState:
    """Immutable; a new one is learned, never changed."""

    models: tuple[str, ...]
    """Those that may be chosen."""
    embedded: ScoreModel | None
    """None where there was no embedder."""
    plain: ScoreModel
    prices: tuple[float | None, ...]
    """By `FLOORS`: score that a dollar is worth; None where only the best is good enough. Infinity: the cheapest is."""
    static: bool
    """What was learned was not surely above the best static choice, so models are chosen by their means."""
    rows: int
    """Prompts that it was learned from."""
    note: str = ""
    costs: tuple[float, ...] = ()
    """Mean dollars of an answer of each model, by which the prices were validated; empty in files that were written before it was kept."""
    column: Mapping[str, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "column", {name: i for i, name in enumerate(self.models)})

    def predict(self, text: str, embedding: Vector | None) -> Matrix:
        """Expected score of each model, shape (models,)."""
        features = feature_rows([text])
        if self.embedded is not None and embedding is not None and embedding.shape[0] == self.dimension:
            return np.asarray(self.embedded.predict(features, embedding[None, :])[0])
        return np.asarray(self.plain.predict(features, None)[0])

    @property
    def dimension(self) -> int | None:
        """Of the embeddings; None without."""
        if self.embedded is None or self.embedded.linear is None:
            return None
        return int(self.embedded.linear.mean.shape[0] - self.embedded.scaling.mean.shape[0])

    def price(self, floor: float) -> float | None:
        """For the nearest validated floor that is no lower. None: only the best expected score is good enough."""
        return price_at(self.prices, floor)


def price_at(prices: Sequence[float | None], floor: float) -> float | None:
    """Of prices by `FLOORS`."""
    return next((price for known, price in zip(FLOORS, prices, strict=True) if known >= floor - 1e-9), None)


def learn_state(rows: Rows, random: np.random.Generator, *, margin: float = MARGIN, floors: Sequence[float] = FLOORS) -> RouterState:
    """Learns from a table of scored answers. A floor's price is the cheapest whose quality stays above it by `margin` standard errors.

    It is validated at each model's mean cost in the table, and applied at that: what an offer says of the length of an answer is a guess,
    and at another length than the table's a dollar of offers would be worth another score.
    """
    known = rows.complete
    folds = fold_of(rows.kinds, random)
    fitted = fit(rows.features, rows.embeddings, rows.table.scores, folds, random)
    plain = fitted if rows.embeddings is None else fit(rows.features, None, rows.table.scores, folds, random)
    whole = rows.table.complete
    seen = Predictions(fitted.unseen[whole], constant(mean_costs(known.table), len(known)))
    clusters = np.unique(known.kinds, return_inverse=True)[1]
    dropped = dominated(seen, known.table, clusters, whole=True)
    above, note = above_static(without(seen, dropped), known.table, clusters)
    if not above:
        seen = Predictions(constant(mean_scores(known.table), len(known)), constant(mean_costs(known.table), len(known)))
        dropped = np.zeros_like(dropped)
    prices = prices_of(without(seen, dropped), known.table, clusters, margin, floors)
    kept = [i for i in range(len(dropped)) if not dropped[i]]
    return RouterState(
        models=tuple(rows.table.models[i] for i in kept),
        embedded=None if rows.embeddings is None else fitted.model.only(kept, static=not above),
        plain=plain.model.only(kept, static=not above),
        prices=prices,
        static=not above,
        rows=len(rows),
        note=note,
        costs=tuple(map(float, mean_costs(known.table)[kept])),
    )


def prices_of(seen: Predictions, table: Table, clusters: Clusters, margin: float, floors: Sequence[float]) -> tuple[float | None, ...]:
    """For each floor the price that costs least, of those whose quality stays above it by `margin` standard errors; of equals the lowest.

    `seen`: foretold out of sample.
    """
    points = grid(seen)
    each = np.arange(len(points.prices))
    pure = Grid(points.prices, each, each, np.zeros(len(each)))
    made = outcomes(seen, pure, table.scores, table.costs)
    best = table.scores[:, Ends.of(table.scores, table.costs).best]
    found = [threshold(made, best, floor, SERVED, margin, clusters) for floor in floors]
    return tuple(None if point is None else float(points.prices[point]) for point in found)

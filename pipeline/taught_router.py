"""What the router was taught by feedback on its own answers, and whether it may be trusted with choosing.

    lessons -> posterior -> doubly robust scores -> status, prices of a dollar by floor

Every prompt was answered by one model only. What the others would have been worth is foretold by a posterior that had not heard of that
prompt, and the answering model's row is set right by what was heard, weighed by how improbable the choice was (doubly robust: Dudík,
Langford and Li 2011; the weight is bounded, as in Wang, Agarwal and Dudík 2017). On these scores the rules of `router_state` apply:
dominated models are dropped, a floor becomes a price with a margin, and what was learned chooses only where it is surely above the best
static choice.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from .dominance import dominated
from .feedback import Lesson
from .feedback_model import JUDGE_NOISE, FeedbackModel, Matrix, Scores, learn
from .ports import Vector
from .prompt_features import feature_rows
from .router_state import FLOORS, price_at, prices_of
from .routing_curve import Predictions
from .routing_evaluation import MARGIN
from .routing_table import Table
from .sampling_error import each_alone
from .table_policies import above_static, constant, without

TAUGHT_VERSION = 1
FIRST_LESSONS = 50
"""Before so many answers were judged, prompts are not told apart."""
FEW = 5
"""A model with fewer judged answers is only chosen to learn."""
TOLD = 20
"""A model with fewer is not told apart by prompt: what is known of its answers is nearly all foretold, and would be judged by itself."""
_MOST_WEIGHT = 20.0
_SHRINKAGE = 10.0
"""Judged answers that the mean of all models counts for in the mean of one."""
_MOSTLY = 0.8

Status = Literal["cold", "static", "learned", "drifted"]


@dataclass(frozen=True, slots=True)
class TaughtRouter:
    """Immutable; of one tenant."""

    version: int
    status: Status
    """cold: too few lessons, somebody else decides. static: what was learned is not surely above the best static choice. drifted: answers
    became worth less than foretold, and too little was heard since."""
    models: tuple[str, ...]
    heard: tuple[int, ...]
    """Lessons by model."""
    dropped: tuple[bool, ...]
    """Models that are dominated by another one: not even explored."""
    means: tuple[float, ...]
    """Expected score of each model over all prompts."""
    model: FeedbackModel | None
    """None before `FIRST_LESSONS`."""
    prices: tuple[float | None, ...]
    """By `FLOORS`: score that a dollar is worth; None where only the best is good enough."""
    lessons: int
    since_ms: int = 0
    """Nothing older was learned from."""
    drifts: int = 0
    note: str = ""
    costs: tuple[float, ...] = ()
    """Mean dollars of each model's offers, by which a static choice is made; empty where none is known."""
    column: Mapping[str, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "column", {name: i for i, name in enumerate(self.models)})

    def price(self, floor: float) -> float | None:
        """For the nearest validated floor that is no lower. None: only the best expected score is good enough."""
        return price_at(self.prices, floor)

    def predict(self, text: str, embedding: Vector | None) -> tuple[Matrix, Matrix | None]:
        """Expected score of each model, shape (models,), and draws from what they may be, shape (draws, models), where there are some."""
        means = np.array(self.means)
        if self.model is None:
            return means, None
        scaling = self.model.basis.scaling
        if scaling.embedded and (embedding is None or len(embedding) != len(self.model.basis.waves) - 1 - len(scaling.mean)):
            return means, None
        rows, vectors = feature_rows([text]), embedding[None, :] if scaling.embedded and embedding is not None else None
        draws = self.model.draws(rows, vectors)[:, 0]
        return (means if self.status != "learned" else self.model.predict(rows, vectors)[0]), draws


def teach(lessons: Sequence[Lesson], random: np.random.Generator, *, version: int = 1, since_ms: int = 0, drifts: int = 0) -> TaughtRouter:
    """`lessons`: oldest first, at least one, none older than `since_ms`; `drifts`: how often answers have changed before."""
    models = tuple(sorted({lesson.model for lesson in lessons} | {name for lesson in lessons for name, _ in lesson.costs}))
    column = {name: i for i, name in enumerate(models)}
    chosen = np.array([column[lesson.model] for lesson in lessons], dtype=np.intp)
    values = np.array([lesson.score for lesson in lessons])
    heard = np.bincount(chosen, minlength=len(models))
    noise = np.array([JUDGE_NOISE if lesson.judged else 1.0 for lesson in lessons])
    sums = np.bincount(chosen, weights=values / noise, minlength=len(models))
    counts = np.bincount(chosen, weights=1.0 / noise, minlength=len(models))
    means = (sums + _SHRINKAGE * np.average(values, weights=1.0 / noise)) / (counts + _SHRINKAGE)
    made = TaughtRouter(
        version=version, status="drifted" if drifts else "cold", models=models, heard=tuple(map(int, heard)),
        dropped=(False,) * len(models), means=tuple(map(float, means)), model=None, prices=(None,) * len(FLOORS), lessons=len(lessons),
        since_ms=since_ms, drifts=drifts, note=f"{len(lessons)} judged answers; prompts are told apart from {FIRST_LESSONS} on",
    )  # fmt: skip
    if len(lessons) < FIRST_LESSONS:
        return made
    return _taught(made, lessons, Scores(*_prompts(lessons), chosen, values, noise), random)


def _taught(made: TaughtRouter, lessons: Sequence[Lesson], scores: Scores, random: np.random.Generator) -> TaughtRouter:
    count, rows = len(made.models), np.arange(len(scores))
    fitted = learn(scores, count, random)
    weight = np.array([0.0 if lesson.chance is None else min(_MOST_WEIGHT, 1.0 / max(1e-9, lesson.chance)) for lesson in lessons])
    robust = fitted.unseen.copy()
    robust[rows, scores.models] += weight * (scores.values - fitted.unseen[rows, scores.models])
    table = Table(("",) * len(scores), made.models, robust, _costs(lessons, made), None)
    clusters = each_alone(len(scores))
    seen = Predictions(fitted.unseen, table.costs)
    unheard = np.array(made.heard) < FEW
    dropped = dominated(seen, table, clusters) & ~unheard
    vague = np.array(made.heard) < TOLD
    above, note = above_static(without(seen, dropped | vague), table, clusters)
    if (~(dropped | vague)).sum() < 2:
        above, note = False, f"fewer than two models have {TOLD} judged answers, by which prompts could be told apart"
    means = fitted.unseen.mean(axis=0)
    if not above:
        seen = Predictions(constant(means, len(scores)), constant(table.costs.mean(axis=0), len(scores)))
    prices = prices_of(without(seen, dropped | (vague if above else unheard)), table, clusters, MARGIN, FLOORS)
    return TaughtRouter(
        version=made.version, status="learned" if above else "drifted" if made.drifts and len(scores) < 2 * FIRST_LESSONS else "static",
        models=made.models, heard=made.heard, dropped=tuple(map(bool, dropped)), means=tuple(map(float, means)), model=fitted.model,
        prices=prices, lessons=made.lessons, since_ms=made.since_ms, drifts=made.drifts, note=note,
        costs=tuple(map(float, table.costs.mean(axis=0))),
    )  # fmt: skip


def _prompts(lessons: Sequence[Lesson]) -> tuple[Matrix, np.ndarray | None]:
    """Features, and embeddings where nearly all have one of the same length; the others' are zeros."""
    features = np.array([lesson.features for lesson in lessons])
    lengths = [0 if lesson.embedding is None else len(lesson.embedding) for lesson in lessons]
    usual = max(set(lengths), key=lengths.count)
    if not usual or lengths.count(usual) < _MOSTLY * len(lessons):
        return features, None
    made = np.zeros((len(lessons), usual))
    for i, lesson in enumerate(lessons):
        if lesson.embedding is not None and len(lesson.embedding) == usual:
            made[i] = lesson.embedding
    return features, made


def _costs(lessons: Sequence[Lesson], made: TaughtRouter) -> Matrix:
    """Dollars, shape (lessons, models); where a model was not on offer, its usual cost."""
    costs = np.full((len(lessons), len(made.models)), np.nan)
    for i, lesson in enumerate(lessons):
        for name, pico in lesson.costs:
            costs[i, made.column[name]] = pico / 1e12
    known = ~np.isnan(costs)
    usual = np.where(known.any(axis=0), np.where(known, costs, 0.0).sum(axis=0) / np.maximum(1, known.sum(axis=0)), 0.0)
    return np.where(known, costs, usual)

"""Routing policies of the engine beside the heuristic one: by quantiles of difficulty before any feedback, and learned from scored answers.

Both weigh what a better model is worth against what it costs; the operator says how much of the best model's quality must be kept.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

import numpy as np

from .ports import Vector
from .prompt_features import feature_rows
from .quantile import difficulty, rank
from .route import Offer, Ranking, RouteFeatures, Strategy
from .router_state import RouterState

_PICO = 10**12
_STEPS = 40
_SHARPEST = 1e6


@dataclass(frozen=True, slots=True)
class Burden:
    """What counts against a model: money, time, or both."""

    strategy: Strategy = "cost_optimal"
    cost_weight: float = 0.7
    """Of `balanced`: 0 looks at latency only, 1 at cost only."""

    @property
    def weight(self) -> float:
        return {"cost_optimal": 1.0, "latency_optimal": 0.0, "balanced": self.cost_weight}[self.strategy]

    def of(self, offers: Sequence[Offer]) -> list[float]:
        """Each offer's share of the dearest and of the slowest one."""
        dearest = max(o.cost_pico for o in offers) or 1
        slowest = max(o.latency for o in offers) or 1.0
        return [self.weight * o.cost_pico / dearest + (1 - self.weight) * o.latency / slowest for o in offers]


@dataclass(frozen=True, slots=True)
class QuantilePolicy:
    """The harder a prompt looks among recent ones, the better a model it gets; by the operator's prior of each model's quality.

    Where to cut is what keeps `min_quality` of the best prior on the average of all prompts for the least.
    """

    burden: Burden = field(default_factory=Burden)
    min_quality: float = 0.95
    recent: Sequence[float] = ()
    """`difficulty` of recent prompts, sorted."""
    fallbacks: int = 3

    def rank(self, features: RouteFeatures, embedding: Vector | None, offers: Sequence[Offer]) -> Ranking:
        hardness = rank(float(difficulty(feature_rows([features.text]))[0]), self.recent)
        qualities = tuple(round(o.model.quality, 4) for o in offers)
        burdens = tuple(round(b, 3) for b in self.burden.of(offers))
        worth = hardness * _sharpness(qualities, burdens, self.min_quality) * np.array(qualities) - np.array(burdens)
        chain = chain_of(offers, worth, np.array(qualities), self.fallbacks)
        return Ranking(
            models=tuple(o.model.name for o in chain),
            reason=f"looks harder than {hardness:.0%} of recent prompts: {chain[0].model.name} is enough to keep {self.min_quality:.0%} of "
            f"the best model's quality on the average (about ${chain[0].cost_pico / _PICO:.6f})",
            complexity=round(hardness, 4),
        )


@lru_cache(maxsize=4096)
def _sharpness(qualities: tuple[float, ...], burdens: tuple[float, ...], floor: float) -> float:
    """How much quality counts against burden: the least with which the mean quality over all difficulties is floor x best."""
    quality, burden = np.array(qualities), np.array(burdens)
    hardness = (np.arange(_STEPS) + 0.5) / _STEPS
    low, high = 1e-3, _SHARPEST
    for _ in range(40):
        middle = float(np.sqrt(low * high))
        chosen = (middle * hardness[:, None] * quality - burden).argmax(axis=1)
        low, high = (low, middle) if quality[chosen].mean() >= floor * quality.max() else (middle, high)
    return high


@dataclass(frozen=True, slots=True)
class LearnedPolicy:
    """What each model's answer is expected to be worth, less the price of its cost that was validated for the floor."""

    state: RouterState
    cold: QuantilePolicy
    """Decides where no model that can take the request was learned."""
    fallbacks: int = 3

    def rank(self, features: RouteFeatures, embedding: Vector | None, offers: Sequence[Offer]) -> Ranking:
        known = [o for o in offers if o.model.name in self.state.column]
        if not known:
            made = self.cold.rank(features, embedding, offers)
            return Ranking(made.models, f"nothing is learned of these models; {made.reason}", made.complexity)
        predicted = self.state.predict(features.text, embedding)
        scores = np.array([predicted[self.state.column[o.model.name]] for o in known])
        weighed = at_usual_costs(known, self.state.column, self.state.costs)
        worth = scores - penalties(self.cold.burden, weighed, self.state.price(self.cold.min_quality))
        chain = chain_of(known, worth, scores, self.fallbacks)
        best = chain[0]
        expected = predicted[self.state.column[best.model.name]]
        what = "best static choice" if self.state.static else f"expected score {expected:.2f} of at most {scores.max():.2f}"
        return Ranking(tuple(o.model.name for o in chain), f"{best.model.name}: {what} (about ${best.cost_pico / _PICO:.6f})")


def at_usual_costs(offers: Sequence[Offer], column: Mapping[str, int], costs: Sequence[float]) -> Sequence[Offer]:
    """The offers at each model's usual dollars, whatever this request would cost; as they are where none are known."""
    return [replace(o, cost_pico=round(costs[column[o.model.name]] * _PICO)) for o in offers] if costs else offers


def penalties(burden: Burden, offers: Sequence[Offer], price: float | None) -> np.ndarray:
    """What each offer's expected score is lessened by, at a price of a dollar; None: nothing, only the best is good enough."""
    if price is None:
        return np.zeros(len(offers))
    dearest = max(o.cost_pico for o in offers) / _PICO
    # At an infinite price only the burden counts.
    return min(price, _SHARPEST / dearest if dearest else 0.0) * dearest * np.array(burden.of(offers))


def chain_of(offers: Sequence[Offer], worth: np.ndarray, quality: np.ndarray, fallbacks: int) -> list[Offer]:
    """The best by worth; then those expected to be no worse, then the others: a worse answer is not what a fallback is for."""
    order = sorted(range(len(offers)), key=lambda i: (-worth[i], offers[i].cost_pico, -quality[i], offers[i].model.name))
    first, others = order[0], order[1:]
    others.sort(key=lambda i: bool(quality[i] < quality[first]))  # stable: within each, by worth
    return [offers[i] for i in (first, *others)][: 1 + fallbacks]

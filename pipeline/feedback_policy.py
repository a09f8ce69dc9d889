"""The learned policy of a running engine: what feedback taught decides, and a small share of requests is spent on learning more."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ..schemas.requests import Chosen
from .ports import Vector
from .route import Offer, Ranking, RouteFeatures, RoutingPolicy
from .routing_policies import QuantilePolicy, at_usual_costs, chain_of, penalties
from .taught_router import FEW, TOLD, Status, TaughtRouter

_WHY: dict[Status, str] = {
    "cold": "too little is heard yet",
    "static": "best static choice: what was learned is not surely above it",
    "learned": "learned from feedback",
    "drifted": "best static choice: answers became worth less than foretold, it learns anew",
}


@dataclass(frozen=True, slots=True)
class FeedbackPolicy:
    """Thompson sampling (Thompson 1933) on a share of the requests; the others get the best known choice.

    Which request explores, and what it takes, follows from its flight alone: delivered again, it is routed in the same way.
    """

    taught: Callable[[str], TaughtRouter | None]
    """By tenant."""
    before: RoutingPolicy
    """Decides until enough was heard."""
    cold: QuantilePolicy
    """What counts against a model, and the floor."""
    exploration: float = 0.05
    """Share of requests that may be answered by another model than the best known choice, at most."""
    fallbacks: int = 3

    def rank(self, features: RouteFeatures, embedding: Vector | None, offers: Sequence[Offer]) -> Ranking:
        state = self.taught(features.tenant)
        known = [] if state is None or state.status == "cold" else [o for o in offers if _heard(state, o)]
        if state is None or not known:
            made = self.before.rank(features, embedding, offers)
            names = [o.model.name for o in offers]
            return self._explored(made, features, offers, {name: 1.0 / len(names) for name in names}, None)
        expected, draws = state.predict(features.text, embedding)
        penalty = self._penalties(state, known)
        scores = np.array([expected[state.column[o.model.name]] for o in known])
        chain = chain_of(known, scores - penalty, scores, self.fallbacks)
        reason = (
            f"{chain[0].model.name}: {_WHY[state.status]} (version {state.version}, expected score {_of(state, expected, chain[0]):.2f})"
        )
        open_to = [o for o in offers if o.model.name in state.column and not state.dropped[state.column[o.model.name]]]
        made = Ranking(tuple(o.model.name for o in chain), reason)
        foretold = {o.model.name: _of(state, expected, o) for o in open_to}
        return self._explored(made, features, offers, self._shares(state, draws, open_to), foretold)

    def _penalties(self, state: TaughtRouter, offers: Sequence[Offer]) -> np.ndarray:
        # At what this request costs, a static choice would turn to the cheap model for the long prompts, and keep no floor.
        weighed = offers if state.status == "learned" else at_usual_costs(offers, state.column, state.costs)
        return penalties(self.cold.burden, weighed, state.price(self.cold.min_quality))

    def _shares(self, state: TaughtRouter, draws: np.ndarray | None, offers: Sequence[Offer]) -> dict[str, float]:
        """How often each offer is the best one, for all that is known; every one has a small chance, which its weight is known by."""
        names = [o.model.name for o in offers]
        if draws is None or not len(draws):
            return {name: 1.0 / len(names) for name in names}
        penalty = self._penalties(state, offers)
        best = (draws[:, [state.column[name] for name in names]] - penalty).argmax(axis=1)
        counts = np.bincount(best, minlength=len(names)) + 1.0 / len(names)
        return dict(zip(names, (counts / counts.sum()).tolist(), strict=True))

    def _explored(
        self,
        made: Ranking,
        features: RouteFeatures,
        offers: Sequence[Offer],
        shares: dict[str, float],
        foretold: dict[str, float] | None,
    ) -> Ranking:
        best, rate = made.models[0], self.exploration
        name = _drawn(shares, features.draw / rate) if features.draw < rate else best
        explored = name != best
        chosen = Chosen(
            model=name,
            expected=None if foretold is None or name not in foretold else round(foretold[name], 4),
            chance=round(rate * shares.get(name, 0.0) + (1.0 - rate) * (not explored), 6),
            explored=explored,
            costs=tuple((o.model.name, o.cost_pico) for o in offers),
        )
        if not explored:
            return Ranking(made.models, made.reason, made.complexity, chosen)
        others = tuple(other for other in made.models if other != name)
        return Ranking((name, *others)[: 1 + self.fallbacks], f"{name}: to learn what its answers are worth, instead of {made.reason}",
                       made.complexity, chosen)  # fmt: skip


def _heard(state: TaughtRouter, offer: Offer) -> bool:
    column = state.column.get(offer.model.name)
    return column is not None and state.heard[column] >= (TOLD if state.status == "learned" else FEW) and not state.dropped[column]


def _of(state: TaughtRouter, expected: np.ndarray, offer: Offer) -> float:
    return float(expected[state.column[offer.model.name]])


def _drawn(shares: dict[str, float], at: float) -> str:
    """The name in whose share `at` (0 to 1) lies."""
    passed = 0.0
    for name, share in shares.items():
        passed += share
        if at < passed:
            return name
    return next(reversed(shares))

"""Experiments: which variant a request is in. The same user, or the same request, always in the same one.

Two independent draws from SHA-256, as good as random and the same everywhere: whether a unit takes part at all, and in which variant.
So a larger `share` moves nobody from one variant to another, and a new experiment divides users anew.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Literal

from ..schemas.requests import Cascade, Dimensions, Identity
from .fingerprint import digest

Unit = Literal["user", "request"]
PolicyName = Literal["heuristic", "quantile", "learned"]


@dataclass(frozen=True, slots=True)
class Variant:
    """One of the things that are compared; with nothing but a name it is what the settings say."""

    name: str
    weight: float = 1.0
    """Of the units, relative to the other variants'."""
    policy: PolicyName | None = None
    model: str | None = None
    """Is tried first; where it can't take a request, or fails, the route goes on as without it."""
    cascade: Cascade | None = None
    """Beside a policy, or alone."""


@dataclass(frozen=True, slots=True)
class Experiment:
    """Variants, the first of which is what the others are compared with."""

    name: str
    variants: tuple[Variant, ...]
    unit: Unit = "request"
    share: float = 1.0
    """Of the units that take part."""
    tenants: frozenset[str] = frozenset()
    """Empty: all."""
    features: frozenset[str] = frozenset()
    """By `feature_name`; empty: all."""

    def __post_init__(self) -> None:
        if len({variant.name for variant in self.variants}) < max(2, len(self.variants)):
            raise ValueError("needs two variants at least, each with a name of its own")
        if not all(0 < variant.weight < float("inf") for variant in self.variants):
            raise ValueError("weights are above 0: leave a variant out that is to get nothing")
        if not 0 <= self.share <= 1:
            raise ValueError("share is between 0 and 1")
        if any((variant.policy or variant.cascade) and variant.model for variant in self.variants):
            raise ValueError("a variant has a model, or a policy and a cascade, not both")

    def variant_of(self, identity: Identity, user_id: str) -> str | None:
        """The variant of the request's unit; None where that does not take part, or is not known."""
        if self.unit == "user":
            if not user_id:
                return None
            unit = [identity.tenant.encode(), user_id.encode()]
        else:
            unit = [identity.key]
        if _draw([b"takes part", self.name.encode(), *unit]) >= self.share:
            return None
        bounds = list(accumulate(variant.weight for variant in self.variants))
        at = bisect_right(bounds, _draw([b"variant", self.name.encode(), *unit]) * bounds[-1])
        return self.variants[min(at, len(self.variants) - 1)].name


@dataclass(frozen=True, slots=True)
class Experiments:
    """All that run, in the order of the file."""

    all: tuple[Experiment, ...] = ()
    _by_name: dict[str, Experiment] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_by_name", {experiment.name: experiment for experiment in self.all})

    def get(self, name: str) -> Experiment | None:
        return self._by_name.get(name)

    def variant(self, dimensions: Dimensions) -> Variant | None:
        """What the request's variant says; None where nothing of this name runs."""
        found = self._by_name.get(dimensions.experiment_id)
        return None if found is None else next((v for v in found.variants if v.name == dimensions.experiment_variant), None)

    def assigned(self, identity: Identity, dimensions: Dimensions, *, free: bool) -> Dimensions:
        """The request's dimensions, with its variant where it is in an experiment.

        `free`: the choice of the model is the engine's. Who names experiment and variant itself keeps them; who names the experiment only
        gets a variant of it; everyone else is in the first experiment that takes them, or in none.
        """
        if dimensions.experiment_variant or not free:
            return dimensions
        for experiment in self._asked(dimensions):
            if experiment.tenants and identity.tenant not in experiment.tenants:
                continue
            if experiment.features and dimensions.feature_name not in experiment.features:
                continue
            variant = experiment.variant_of(identity, dimensions.user_id)
            if variant is not None:
                return dimensions.model_copy(update={"experiment_id": experiment.name, "experiment_variant": variant})
        return dimensions

    def _asked(self, dimensions: Dimensions) -> Sequence[Experiment]:
        if not dimensions.experiment_id:
            return self.all
        found = self._by_name.get(dimensions.experiment_id)
        return () if found is None else (found,)


NO_EXPERIMENTS = Experiments()


def _draw(fields: Sequence[bytes]) -> float:
    """In [0, 1)."""
    return int(digest(fields)[:13], 16) / 16**13

"""Routing: which models to try for a request, best first, and why.

    features, catalogue, price -> offers (models that can, and what they would cost)
    policy(features, offers)   -> ranking
                               -> Route

What a model can do and whether its price is known is settled before any policy is asked: no policy can choose a model that would refuse the
request, or one whose price is not known. The embedding that the caches made is handed to the policy, for those that learn.
"""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

from ..schemas.record import JsonObject
from ..schemas.requests import Cascade, Chosen, Request, Route
from .complexity import Complexity, Weights, estimate
from .errors import EngineError, Rejected, Unpriced
from .grade_question import expected_tokens
from .language import NOT_KNOWN, languages_of
from .models import Catalogue, Model, TierName
from .ports import Vector
from .route_rules import Rules
from .text import last_user_text

Strategy = Literal["cost_optimal", "latency_optimal", "balanced"]
Price = Callable[[Model, int, int], int]
"""(model, input tokens, output tokens) -> pico-dollars of a plain call. Raises `Unpriced`."""

TIERS: tuple[TierName, ...] = ("economy", "standard", "premium")
USUAL_OUTPUT_TOKENS = 300
"""Expected length of an answer where the request says nothing; only the order of prices depends on it."""
_MESSAGE_TOKENS = 4
_RELATIVE_LATENCY: dict[TierName, float] = {"economy": 1.0, "standard": 2.0, "premium": 4.0}


@dataclass(frozen=True, slots=True)
class RouteFeatures:
    """All that routing looks at."""

    requested: str
    """A canonical name, or `auto`."""
    preferred: str | None
    text: str
    """The last user turn; empty where it is not plain text."""
    input_tokens: int
    """Estimated: a token per four ASCII characters, per two others."""
    turns: int
    """Of the user."""
    max_tokens: int | None
    """The request's limit of the answer."""
    tools: bool = False
    images: bool = False
    structured: bool = False
    sampling: bool = False
    """A temperature or top_p other than the providers' default."""
    languages: frozenset[str] = NOT_KNOWN
    """Of the answer, one of these; empty: any."""
    language_said: bool = False
    """The request says so itself."""
    tenant: str = ""
    draw: float = 1.0
    """In [0, 1), as good as drawn at random, and always the same for one flight."""

    @property
    def output_tokens(self) -> int:
        """Expected, for comparing prices."""
        return USUAL_OUTPUT_TOKENS if self.max_tokens is None else min(self.max_tokens, USUAL_OUTPUT_TOKENS)


@dataclass(frozen=True, slots=True)
class Offer:
    """A model that can answer the request."""

    model: Model
    cost_pico: int
    latency: float
    """Expected; in any unit, only compared among offers."""


@dataclass(frozen=True, slots=True)
class Ranking:
    """A policy's choice, best first, and why, for people."""

    models: tuple[str, ...]
    reason: str
    complexity: float | None = None
    chosen: Chosen | None = None
    """Of the first model, where the policy wants to hear what its answer was worth."""


class RoutingPolicy(Protocol):
    """Ranks offers. Deterministic; what it has learned is part of it."""

    def rank(self, features: RouteFeatures, embedding: Vector | None, offers: Sequence[Offer]) -> Ranking:
        """`offers` is not empty. Every name returned is one of them."""
        ...


def features_of(request: Request, *, languages: bool = True) -> RouteFeatures:
    """Reads the features from a request. `languages`: whether a model of the catalogue knows some only."""
    body = request.body
    text = last_user_text(body) or ""
    tokens, turns, images = _measure(body)
    limit = body.get("max_completion_tokens") or body.get("max_tokens")
    form = body.get("response_format")
    return RouteFeatures(
        requested=request.model,
        preferred=request.preferred_model,
        text=text,
        input_tokens=tokens,
        turns=turns,
        max_tokens=limit if isinstance(limit, int) and limit > 0 else None,
        tools=bool(body.get("tools") or body.get("functions")),
        images=images,
        structured=isinstance(form, dict) and form.get("type") in ("json_object", "json_schema"),
        sampling=body.get("temperature") not in (None, 1) or body.get("top_p") not in (None, 1),
        languages=frozenset({request.language}) if request.language else languages_of(text) if languages else NOT_KNOWN,
        language_said=request.language is not None,
        tenant=request.identity.tenant,
        draw=int(request.flight[:13], 16) / 16**13,
    )


def _measure(body: JsonObject) -> tuple[int, int, bool]:
    """Estimated input tokens, user turns, and whether there are images."""
    tokens, turns, images = 0, 0, False
    for message in body["messages"]:
        turns += message.get("role") == "user"
        tokens += _MESSAGE_TOKENS
        content = message.get("content")
        for part in content if isinstance(content, list) else (content,):
            text = part.get("text") if isinstance(part, dict) else part
            if isinstance(text, str):
                tokens += len(text) // (4 if text.isascii() else 2)
            elif isinstance(part, dict) and part.get("type") in ("image_url", "input_image", "image"):
                images = True
    return tokens, turns, images


NO_RULES = Rules()


def route(
    features: RouteFeatures,
    catalogue: Catalogue,
    price: Price,
    policy: RoutingPolicy,
    embedding: Vector | None = None,
    rules: Rules = NO_RULES,
    cascade: Cascade = "off",
    judge: Model | None = None,
) -> Route:
    """An explicit model is honoured, or one that the operator named its equal; `auto` lets the policy choose among the models that can and
    have a price. `cascade`: cheaper models are asked before the policy's choice, and their answers checked, by `judge` where it says so.

    Raises `Rejected` where no model can or may take the request, `Unpriced` where those that can have no known price.
    """
    if features.requested != "auto":
        return _by_name(features, catalogue, price, rules)
    offers, refused = _offers(features, catalogue, price, rules)
    if not offers and features.sampling:
        # Today's models take no temperature; older ones do, and answer rather than refuse what most programs send.
        offers, refused = _offers(features, catalogue, price, rules, named=True)
    if not offers and features.languages and not features.language_said:
        # What a prompt looks like is no reason to leave it without an answer.
        offers, refused = _offers(replace(features, languages=NOT_KNOWN), catalogue, price, rules)
    if not offers:
        raise _nobody(refused)
    ranking = policy.rank(features, embedding, offers)
    check_pico = 0 if cascade != "judge" else _check_pico(features, price, rules, judge)
    return _cascaded(features, offers, _preferring(features, offers, refused, ranking), cascade, check_pico)


def _by_name(features: RouteFeatures, catalogue: Catalogue, price: Price, rules: Rules) -> Route:
    model = catalogue.priced(features.requested)
    why = rules.forbids(model, features.tenant)
    if why is not None:
        raise Rejected(f"{model.name} {why}: the request was not sent; ask for another model, or for auto", code="model_not_allowed")
    costs: dict[str, int] = {}
    refusal: EngineError | None = None
    try:
        costs[model.name] = price(catalogue.get(model.name), features.input_tokens, features.output_tokens)
    except (Rejected, Unpriced) as error:
        refusal = error
    for name in rules.equivalents.get(model.name, ()):
        other = catalogue.priced(name)
        if incapable(other, features) is None and rules.forbids(other, features.tenant) is None:
            with suppress(Unpriced):
                costs[name] = price(other, features.input_tokens, features.output_tokens)
    if refusal is not None and not costs:
        raise refusal
    names = sorted(costs, key=lambda name: (costs[name], name != model.name))
    if names[0] == model.name:
        return Route(models=tuple(names), reason=f"{model.name} was asked for by name")
    why = "costs less" if refusal is None else f"that one can't be: {refusal}"
    return Route(models=tuple(names), reason=f"{names[0]} is named an equal of {model.name}, which was asked for, and {why}")


def _offers(
    features: RouteFeatures, catalogue: Catalogue, price: Price, rules: Rules, *, named: bool = False
) -> tuple[list[Offer], dict[str, str]]:
    """Offers of the models that may be chosen, and why each other one is not. `named`: also those for asking by name only."""
    offers: list[Offer] = []
    refused: dict[str, str] = {}
    for model in catalogue.models:
        why = incapable(model, features) or rules.forbids(model, features.tenant)
        by_name = not (named and model.priced_as != "simulated")  # what exists only here is never chosen for anyone
        if why is None and by_name and not model.auto and model.name != features.preferred:
            why = "is only used where it is asked for by name"
        if why is None:
            try:
                cost = price(model, features.input_tokens, features.output_tokens)
            except Unpriced:
                why = "has no known price"
            else:
                offers.append(Offer(model, cost, _RELATIVE_LATENCY[model.tier]))
        if why is not None:
            refused[model.name] = why
    return offers, refused


def incapable(model: Model, features: RouteFeatures) -> str | None:
    """Why a model can't take a request, or None."""
    if not model.enabled:
        return model.why_disabled or "is disabled"
    if features.tools and not model.supports_tools:
        return "takes no tools"
    if features.images and not (model.supports_images and model.image_tokens is not None):
        return "takes no images"
    if features.structured and not model.supports_structured:
        return "takes no response_format"
    if features.sampling and not model.supports_sampling:
        return "takes no temperature or top_p"
    if model.languages and features.languages and features.languages.isdisjoint(model.languages):
        return f"does not know the language ({', '.join(sorted(features.languages))})"
    if features.max_tokens is not None and features.max_tokens > model.max_output_tokens:
        return f"answers with at most {model.max_output_tokens:,} tokens"
    if features.input_tokens + (features.max_tokens or 0) > model.context_tokens:
        return f"reads at most {model.context_tokens:,} tokens"
    return None


def _nobody(refused: dict[str, str]) -> Rejected | Unpriced:
    what = "; ".join(f"{name} {why}" for name, why in sorted(refused.items())[:8]) or "models.toml has none"
    if "has no known price" in refused.values():
        return Unpriced(f"no model with a known price can take this request, so it is not sent: {what}. Give prices in models.toml")
    return Rejected(f"no model can take this request: {what}. Enable one in models.toml, or ask for one by name", code="no_capable_model")


def _preferring(features: RouteFeatures, offers: Sequence[Offer], refused: dict[str, str], ranking: Ranking) -> Route:
    """Puts the preferred model first where it can take the request; else says why it is not taken."""
    preferred = features.preferred
    if preferred is None:
        return Route(models=ranking.models, reason=ranking.reason, complexity=ranking.complexity, chosen=ranking.chosen)
    if any(o.model.name == preferred for o in offers):
        others = tuple(name for name in ranking.models if name != preferred)
        return Route(models=(preferred, *others), reason=f"{preferred} is preferred; then {ranking.reason}", complexity=ranking.complexity)
    why = refused.get(preferred, "is not in models.toml")
    reason = f"{ranking.reason}; preferred {preferred} {why}"
    return Route(models=ranking.models, reason=reason, complexity=ranking.complexity, chosen=ranking.chosen)


_CHEAP: dict[Cascade, int] = {"off": 0, "structure": 1, "agreement": 2, "judge": 1}


def _check_pico(features: RouteFeatures, price: Price, rules: Rules, judge: Model | None) -> int | None:
    """What grading an answer is expected to cost; None where the judge can't, or may not, see what was asked."""
    if judge is None or rules.forbids(judge, features.tenant) is not None or features.images or not features.text:
        return None
    with suppress(Unpriced):
        return price(judge, *expected_tokens(features.input_tokens, features.output_tokens))
    return None


def _cascaded(features: RouteFeatures, offers: Sequence[Offer], chosen: Route, cascade: Cascade, check_pico: int | None) -> Route:
    """The cheapest models in front of the policy's choice, where there are so many that cost less, their check included, and something to
    check them by."""
    explored = chosen.chosen is not None and chosen.chosen.explored
    checkable = features.structured if cascade == "structure" else not features.tools
    if cascade == "off" or features.preferred is not None or explored or not checkable or check_pico is None:
        return chosen
    price = next(offer.cost_pico for offer in offers if offer.model.name == chosen.models[0])
    cheaper = sorted((o for o in offers if o.cost_pico + check_pico < price), key=lambda o: (o.cost_pico, -o.model.quality, o.model.name))
    names = tuple(offer.model.name for offer in cheaper[: _CHEAP[cascade]])
    if len(names) < _CHEAP[cascade]:
        return chosen
    models = (*names, *(name for name in chosen.models if name not in names))
    reason = f"cascade: {' and '.join(names)}, checked by {cascade}; then {chosen.reason}"
    return chosen.model_copy(update={"models": models, "reason": reason, "cascade": cascade, "cheap": len(names)})


@dataclass(frozen=True, slots=True)
class HeuristicPolicy:
    """The design document's router: a complexity score names the tier, the strategy picks within it."""

    strategy: Strategy = "cost_optimal"
    cost_weight: float = 0.7
    """Of `balanced`: 0 looks at latency only, 1 at cost only."""
    weights: Weights = field(default_factory=Weights)
    fallbacks: int = 3
    """Models to try after the first one."""

    def __post_init__(self) -> None:
        if not 0.0 <= self.cost_weight <= 1.0:
            raise ValueError(f"ROUTING_COST_WEIGHT is {self.cost_weight}, but it lies between 0 (latency) and 1 (cost)")

    def rank(self, features: RouteFeatures, embedding: Vector | None, offers: Sequence[Offer]) -> Ranking:
        complexity = estimate(
            features.text,
            input_tokens=features.input_tokens,
            turns=features.turns,
            max_tokens=features.max_tokens,
            weights=self.weights,
        )
        chain = self._chain(complexity, offers)
        best = chain[0]
        return Ranking(
            models=tuple(o.model.name for o in chain[: 1 + self.fallbacks]),
            reason=f"{complexity} asks for {complexity.tier}: {best.model.name} {_why(self.strategy, best, complexity.tier)}",
            complexity=round(complexity.score, 4),
        )

    def _chain(self, complexity: Complexity, offers: Sequence[Offer]) -> list[Offer]:
        """The tier's own models, then those of the tiers above, then those below, nearest first."""
        wanted = TIERS.index(complexity.tier)
        level = {o.model.name: TIERS.index(o.model.tier) for o in offers}
        own = [o for o in offers if level[o.model.name] == wanted]
        above = [o for o in offers if level[o.model.name] > wanted]
        if own:
            # A better model that costs no more than the tier's cheapest is the better choice in every respect.
            cheapest = min(o.cost_pico for o in own)
            own += [o for o in above if o.cost_pico <= cheapest]
            above = [o for o in above if o.cost_pico > cheapest]
        chain = self._sorted(own)
        for tier in range(wanted + 1, len(TIERS)):
            chain += self._sorted([o for o in above if level[o.model.name] == tier])
        # Down only where nothing better is left: a worse answer is not what a fallback is for.
        for tier in range(wanted - 1, -1, -1) if not chain else ():
            chain += self._sorted([o for o in offers if level[o.model.name] == tier])
        return chain

    def _sorted(self, offers: list[Offer]) -> list[Offer]:
        if not offers:
            return []
        weight = {"cost_optimal": 1.0, "latency_optimal": 0.0, "balanced": self.cost_weight}[self.strategy]
        dearest = max(o.cost_pico for o in offers) or 1
        slowest = max(o.latency for o in offers) or 1.0

        def order(offer: Offer) -> tuple[Any, ...]:
            score = weight * offer.cost_pico / dearest + (1 - weight) * offer.latency / slowest
            return (round(score, 12), offer.cost_pico, -offer.model.quality, offer.model.name)

        return sorted(offers, key=order)


def _why(strategy: Strategy, best: Offer, tier: TierName) -> str:
    how = {"cost_optimal": "costs least", "latency_optimal": "is fastest", "balanced": "is the best balance of cost and latency"}[strategy]
    note = "" if best.model.tier == tier else f", a {best.model.tier} model"
    return f"{how} of those that can{note} (about ${best.cost_pico / 10**12:.6f})"

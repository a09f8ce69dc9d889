"""The router of a worker: its policy from the settings, its prices from the table of the day."""

from bisect import insort
from collections import deque
from collections.abc import Iterable
from dataclasses import replace

import structlog

from ..connectors.data_folder import DataFolder
from ..connectors.router_file import ROUTER_FILE, load_router
from ..pipeline.billing import counterfactual
from ..pipeline.complexity import Weights
from ..pipeline.errors import ConfigError, Rejected, Unpriced
from ..pipeline.experiments import NO_EXPERIMENTS, Experiments, PolicyName, Variant
from ..pipeline.feedback_policy import FeedbackPolicy
from ..pipeline.models import Catalogue, Model
from ..pipeline.ports import Vector
from ..pipeline.prices import day_of, rates
from ..pipeline.prompt_features import feature_rows
from ..pipeline.quantile import difficulty
from ..pipeline.route import HeuristicPolicy, RouteFeatures, RoutingPolicy, features_of, route
from ..pipeline.route_rules import Rules
from ..pipeline.routing_policies import Burden, LearnedPolicy, QuantilePolicy
from ..schemas.answers import Usage
from ..schemas.requests import Cascade, Request, Route
from .metrics import EXPLORED
from .route import Decide
from .routers import Routers
from .settings import Settings
from .worker import now_ms

log = structlog.get_logger(__name__)

RECENT = 2_000
"""Prompts that a new one is ranked among."""


def price_now(model: Model, input_tokens: int, output_tokens: int) -> int:
    """Pico-dollars of a plain call today. Raises `Unpriced`."""
    return counterfactual(model, Usage(input_tokens=input_tokens, output_tokens=output_tokens), day_of(now_ms()))


class RecentPrompts:
    """How hard the prompts of this worker looked lately, in order."""

    def __init__(self, size: int = RECENT) -> None:
        self._size = size
        self._seen: deque[float] = deque()
        self.sorted: list[float] = []

    def add(self, features: RouteFeatures) -> None:
        value = float(difficulty(feature_rows([features.text]))[0])
        self._seen.append(value)
        insort(self.sorted, value)
        if len(self._seen) > self._size:
            self.sorted.remove(self._seen.popleft())


def policies_of(settings: Settings, experiments: Experiments) -> set[PolicyName]:
    """All that may decide: the setting's, and those of variants."""
    of_variants = (variant.policy for experiment in experiments.all for variant in experiment.variants)
    return {settings.routing.policy, *(name for name in of_variants if name is not None)}


def policy_of(settings: Settings, recent: RecentPrompts, routers: Routers | None = None, name: PolicyName | None = None) -> RoutingPolicy:
    """The policy of this name, or the one that ROUTING_POLICY names. `routers`: what feedback taught; None: it is not learned from.

    Raises `ConfigError` where the file of the learned one can't be read.
    """
    routing = settings.routing
    name = name or routing.policy
    if name == "heuristic":
        return HeuristicPolicy(strategy=routing.strategy, cost_weight=routing.cost_weight, weights=Weights(**routing.complexity_weights))
    cold = QuantilePolicy(Burden(routing.strategy, routing.cost_weight), routing.min_quality, recent.sorted)
    if name == "quantile":
        return cold
    before = _from_file(settings, cold)
    return before if routers is None else FeedbackPolicy(routers.of, before, cold, routing.exploration)


def _from_file(settings: Settings, cold: QuantilePolicy) -> RoutingPolicy:
    path = DataFolder(settings.data_dir).root / ROUTER_FILE
    state = load_router(path)
    if state is None:
        log.warning(
            "nothing is learned from a table: the quantile policy routes until feedback came or `bootstrap-router` wrote the file",
            file=path,
        )
        return cold
    if settings.embedding_model is not None or settings.embedding_base_url is not None:
        # Vectors of another model mean something else.
        state = replace(state, embedded=None)
    log.info("the learned policy routes", models=state.models, learned_from=state.rows, note=state.note)
    return LearnedPolicy(state, cold)


def rules_of(settings: Settings, catalogue: Catalogue) -> Rules:
    """Under the models' canonical names. Raises `ConfigError` where one is unknown."""
    routing = settings.routing

    def names(given: Iterable[str], setting: str) -> tuple[str, ...]:
        try:
            return tuple(catalogue.priced(name).name for name in given)
        except Rejected as error:
            raise ConfigError(f"{setting}: {error}") from None

    equal = {names([name], "ROUTING_EQUIVALENTS")[0]: names(others, "ROUTING_EQUIVALENTS") for name, others in routing.equivalents.items()}
    models = {tenant: frozenset(names(given, "ROUTING_TENANT_MODELS")) for tenant, given in routing.tenant_models.items()}
    return Rules(equal, models, {tenant: frozenset(given) for tenant, given in routing.tenant_regions.items()})


def _cascade(settings: Settings, request: Request, variant: Variant | None) -> Cascade:
    """As the request says, else its variant, else the settings; off where one model only may be tried, or several answers are wanted, and
    where a judge's calls, each a flight of its own, would come on top of what the request may cost."""
    if not settings.routing.fallback_enabled or request.body.get("n") not in (None, 1):
        return "off"
    found = request.cascade or (variant and variant.cascade) or settings.routing.cascade
    return "off" if found == "judge" and request.max_cost_pico is not None else found


def judge_of(settings: Settings, catalogue: Catalogue) -> Model | None:
    """The model that grades answers; None where none is named. Raises `ConfigError` where it can't be asked, or has no price."""
    name = settings.routing.judge_model
    return None if name is None else asked_model(catalogue, name, "ROUTING_JUDGE_MODEL can't grade answers")


def asked_model(catalogue: Catalogue, name: str, otherwise: str) -> Model:
    """A model that is asked about answers. Raises `ConfigError`, which begins with `otherwise`."""
    try:
        model = catalogue.get(name)
        rates(model, "standard", day_of(now_ms()))
    except (Rejected, Unpriced) as error:
        raise ConfigError(f"{otherwise}: {error}") from None
    return model


def route_with(
    settings: Settings, catalogue: Catalogue, routers: Routers | None = None, experiments: Experiments = NO_EXPERIMENTS
) -> Decide:
    """A decision per request; without fallback only its first model is tried. Raises `ConfigError` where the settings can't work."""
    recent, rules, judge = RecentPrompts(), rules_of(settings, catalogue), judge_of(settings, catalogue)
    if judge is None and any(variant.cascade == "judge" for experiment in experiments.all for variant in experiment.variants):
        raise ConfigError('a variant of an experiment has cascade = "judge", and nobody judges: name a model in ROUTING_JUDGE_MODEL')
    policies = {name: policy_of(settings, recent, routers, name) for name in policies_of(settings, experiments)}
    ranked = policies.keys() != {"heuristic"}
    languages = any(model.languages for model in catalogue.models)

    def decide(request: Request, embedding: Vector | None = None) -> Route:
        features, variant = features_of(request, languages=languages), experiments.variant(request.dimensions)
        if variant is not None and variant.model is not None and features.preferred is None:
            features = replace(features, preferred=variant.model)
        policy = policies[(variant and variant.policy) or settings.routing.policy]
        chosen = route(features, catalogue, price_now, policy, embedding, rules, _cascade(settings, request, variant), judge)
        if ranked and features.requested == "auto":
            recent.add(features)
        if chosen.chosen is not None and chosen.chosen.explored:
            EXPLORED.labels(chosen.chosen.model).inc()
        return chosen if settings.routing.fallback_enabled else chosen.model_copy(update={"models": chosen.models[:1]})

    return decide

"""The router of a worker: its policy from the settings, its prices from the table of the day."""

from ..pipeline.billing import counterfactual
from ..pipeline.complexity import Weights
from ..pipeline.models import Catalogue, Model
from ..pipeline.prices import day_of
from ..pipeline.route import HeuristicPolicy, features_of, route
from ..schemas.answers import Usage
from ..schemas.requests import Request, Route
from .route import Decide
from .settings import Settings
from .worker import now_ms


def price_now(model: Model, input_tokens: int, output_tokens: int) -> int:
    """Pico-dollars of a plain call today. Raises `Unpriced`."""
    return counterfactual(model, Usage(input_tokens=input_tokens, output_tokens=output_tokens), day_of(now_ms()))


def route_with(settings: Settings, catalogue: Catalogue) -> Decide:
    """A decision per request; without fallback only its first model is tried."""
    routing = settings.routing
    policy = HeuristicPolicy(strategy=routing.strategy, cost_weight=routing.cost_weight, weights=Weights(**routing.complexity_weights))

    def decide(request: Request) -> Route:
        chosen = route(features_of(request), catalogue, price_now, policy)
        return chosen if routing.fallback_enabled else chosen.model_copy(update={"models": chosen.models[:1]})

    return decide

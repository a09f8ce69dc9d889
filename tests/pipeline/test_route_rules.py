"""What the operator says of models and tenants holds before any price, and for models asked for by name too."""

import pytest

from inference_engine.pipeline.errors import Rejected, Unpriced
from inference_engine.pipeline.models import Catalogue
from inference_engine.pipeline.route import HeuristicPolicy, RouteFeatures, route
from inference_engine.pipeline.route_rules import Rules
from inference_engine.schemas.requests import Route

from .test_route import COSTS, THREE, auto, catalogue, model, prices


def routed(features: RouteFeatures, rules: Rules, table: Catalogue = THREE, costs: dict[str, int] | None = None) -> Route:
    return route(features, table, prices(costs or COSTS), HeuristicPolicy(), None, rules)


def test_a_named_equal_answers_where_it_costs_less_and_the_asked_model_stays_behind_it() -> None:
    made = routed(auto(requested="large"), Rules(equivalents={"large": ("medium",)}))
    assert made.models == ("medium", "large")
    assert "equal of large" in made.reason


def test_an_equal_that_is_dearer_or_can_not_answer_or_has_no_price_does_not_come_first() -> None:
    rules = Rules(equivalents={"medium": ("large",)})
    assert routed(auto(requested="medium"), rules).models == ("medium", "large")
    table = catalogue(model("plain", "economy", supports_tools=False), model("large", "premium"))
    both = Rules(equivalents={"large": ("plain",)})
    assert routed(auto(requested="large", tools=True), both, table, {"plain": 1, "large": 9}).models == ("large",)
    assert routed(auto(requested="large"), both, table, {"large": 9}).models == ("large",)


def test_an_equal_answers_for_a_model_that_has_no_price_or_no_provider_and_without_one_it_is_refused() -> None:
    rules = Rules(equivalents={"large": ("medium",)})
    made = routed(auto(requested="large"), rules, costs={"medium": 5})
    assert made.models == ("medium",)
    assert "large" in made.reason
    off = catalogue(model("medium", "standard"), model("large", "premium", enabled=False))
    stood = routed(auto(requested="large"), rules, off)
    assert stood.models == ("medium",)
    assert "can't be used" in stood.reason
    with pytest.raises(Rejected, match="can't be used"):
        routed(auto(requested="large"), Rules(), off)
    with pytest.raises(Unpriced):
        routed(auto(requested="large"), Rules(), costs={"medium": 5})


def test_the_door_lets_a_disabled_model_in_only_where_an_enabled_one_is_its_equal() -> None:
    off = catalogue(model("medium", "standard"), model("small", "economy", enabled=False), model("large", "premium", enabled=False))
    assert off.standing_in({"large": ["small", "medium"]}).resolve("large") == "large"
    assert off.standing_in({"large": ["medium"]}).stand_ins == {"large": ("medium",)}
    for equals in ({}, {"large": ["small"]}, {"large": ["nobody"]}, {"medium": ["large"]}):
        with pytest.raises(Rejected, match="can't be used"):
            off.standing_in(equals).resolve("large")


def test_without_a_rule_the_model_that_is_asked_for_is_the_only_one() -> None:
    assert routed(auto(requested="large"), Rules()).models == ("large",)


def test_a_tenant_is_only_ever_answered_by_its_own_models() -> None:
    rules = Rules(models={"acme": frozenset({"medium"})}, equivalents={"medium": ("small",)})
    assert routed(auto(tenant="acme"), rules).models == ("medium",)
    assert routed(auto(tenant="acme", requested="medium"), rules).models == ("medium",)
    assert routed(auto(tenant="acme", preferred="small"), rules).models == ("medium",)
    assert "small" in routed(auto(tenant="other"), rules).models
    with pytest.raises(Rejected, match="not among this tenant's models") as error:
        routed(auto(tenant="acme", requested="large"), rules)
    assert error.value.code == "model_not_allowed"


def test_data_stays_in_its_region_and_a_model_of_no_region_is_nowhere() -> None:
    table = catalogue(model("us", "economy", region="us"), model("none", "economy"), model("eu", "premium", region="eu"))
    costs = {"us": 1, "none": 1, "eu": 50}
    rules = Rules(regions={"acme": frozenset({"eu"})})
    assert routed(auto(tenant="acme"), rules, table, costs).models == ("eu",)
    with pytest.raises(Rejected, match="stays in eu"):
        routed(auto(tenant="acme"), rules, catalogue(model("us", "economy", region="us")), costs)

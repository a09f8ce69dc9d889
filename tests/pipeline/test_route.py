"""Routing: who can and has a price may be chosen, explicit models are honoured, and the reason says why."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference_engine.pipeline.errors import Rejected, Unpriced
from inference_engine.pipeline.models import Catalogue, Model, TierName
from inference_engine.pipeline.ports import Vector
from inference_engine.pipeline.route import (
    TIERS,
    HeuristicPolicy,
    Offer,
    Price,
    Ranking,
    RouteFeatures,
    Strategy,
    features_of,
    incapable,
    route,
)
from inference_engine.pipeline.route_rules import Rules
from inference_engine.schemas.record import Lane
from inference_engine.schemas.requests import Cascade, Identity, Request, Route

HARD = "Analyze, compare and prove the algorithm; explain the distributed protocol and its latency; write a detailed report"


def model(name: str, tier: TierName, **changes: Any) -> Model:
    base = Model(name=name, provider="simulated", provider_model=name, tier=tier, context_tokens=8_000, max_output_tokens=2_000)
    return replace(base, **changes)


def catalogue(*models: Model) -> Catalogue:
    return Catalogue(models, default_premium=models[-1].name)


THREE = catalogue(model("small", "economy"), model("medium", "standard"), model("large", "premium"))
COSTS = {"small": 1, "medium": 10, "large": 100}


def prices(costs: Mapping[str, int]) -> Price:
    def price(model: Model, input_tokens: int, output_tokens: int) -> int:
        if model.name not in costs:
            raise Unpriced(f"no price is known for {model.name}")
        return costs[model.name] * (input_tokens + output_tokens)

    return price


def auto(text: str = "What is the capital of France?", **changes: Any) -> RouteFeatures:
    return replace(RouteFeatures("auto", None, text, input_tokens=20, turns=1, max_tokens=None), **changes)


def chosen(features: RouteFeatures, table: Catalogue = THREE, costs: Mapping[str, int] = COSTS, **options: Any) -> tuple[str, ...]:
    return route(features, table, prices(costs), HeuristicPolicy(**options)).models


def test_a_simple_question_goes_to_the_cheapest_and_falls_back_upwards() -> None:
    assert chosen(auto()) == ("small", "medium", "large")


def test_a_hard_question_goes_up_and_never_falls_back_to_less() -> None:
    hard = auto(HARD, input_tokens=5_000, turns=6)
    assert chosen(hard) == ("large",)
    medium = auto(HARD)
    assert chosen(medium) == ("medium", "large")


def test_the_reason_tells_people_the_score_the_choice_and_the_price() -> None:
    made = route(auto(), THREE, prices(COSTS), HeuristicPolicy())
    assert made.reason.startswith("complexity 0.04 (")
    assert "asks for economy: small costs least of those that can (about $0.000000)" in made.reason
    assert made.complexity == pytest.approx(0.04, abs=0.001)


def test_an_explicit_model_is_honoured_whatever_the_complexity() -> None:
    made = route(auto(HARD, requested="small"), THREE, prices(COSTS), HeuristicPolicy())
    assert made.models == ("small",)
    assert made.reason == "small was asked for by name"


def test_an_explicit_model_without_a_price_or_that_is_disabled_is_an_error() -> None:
    with pytest.raises(Unpriced):
        route(auto(requested="small"), THREE, prices({}), HeuristicPolicy())
    off = catalogue(model("small", "economy", enabled=False), model("large", "premium"))
    with pytest.raises(Rejected, match="small"):
        route(auto(requested="small"), off, prices(COSTS), HeuristicPolicy())


def test_a_model_without_a_price_is_never_chosen() -> None:
    assert chosen(auto(), costs={"medium": 10, "large": 100}) == ("medium", "large")
    with pytest.raises(Unpriced, match="no model with a known price"):
        chosen(auto(), costs={})


def test_a_better_model_that_costs_no_more_is_chosen() -> None:
    assert chosen(auto(), costs={"small": 10, "medium": 100, "large": 9})[0] == "large"


def test_a_preferred_model_goes_first_where_it_can_and_is_explained_where_it_can_not() -> None:
    assert chosen(auto(preferred="large")) == ("large", "small", "medium")
    made = route(auto(preferred="small", images=True), THREE_SEEING, prices(COSTS), HeuristicPolicy())
    assert made.models == ("large",)
    assert "preferred small takes no images" in made.reason


THREE_SEEING = catalogue(
    model("small", "economy"), model("medium", "standard"), model("large", "premium", supports_images=True, image_tokens=1_000)
)


def test_a_preferred_model_may_be_one_that_is_never_chosen_otherwise() -> None:
    table = catalogue(model("old", "economy", auto=False), model("large", "premium"))
    costs = {"old": 1, "large": 100}
    assert chosen(auto(), table, costs) == ("large",)
    assert chosen(auto(preferred="old"), table, costs)[0] == "old"


@pytest.mark.parametrize(
    ("change", "features"),
    [
        ({"supports_tools": False}, {"tools": True}),
        ({"supports_images": False, "image_tokens": 100}, {"images": True}),
        ({"supports_images": True, "image_tokens": None}, {"images": True}),
        ({"supports_structured": False}, {"structured": True}),
        ({"supports_sampling": False}, {"sampling": True}),
        ({"max_output_tokens": 99}, {"max_tokens": 100}),
        ({"context_tokens": 1_000}, {"input_tokens": 901, "max_tokens": 100}),
        ({"enabled": False, "why_disabled": "has no key"}, {}),
    ],
)
def test_what_a_model_can_not_do_excludes_it_before_its_price(change: dict[str, Any], features: dict[str, Any]) -> None:
    table = catalogue(model("small", "economy", **change), model("large", "premium", supports_images=True, image_tokens=100))
    assert incapable(table.models[0], auto(**features))
    assert chosen(auto(**features), table) == ("large",)


def test_where_only_lesser_models_are_left_the_nearest_is_taken() -> None:
    table = catalogue(model("small", "economy"), model("medium", "standard"))
    assert chosen(auto(HARD, input_tokens=5_000, turns=6), table) == ("medium", "small")


def test_where_no_model_can_the_error_names_each_one_and_why() -> None:
    with pytest.raises(Rejected, match="large takes no images; medium takes no images; small takes no images") as caught:
        chosen(auto(images=True))
    assert caught.value.code == "no_capable_model"


def test_a_temperature_that_no_chosen_model_takes_goes_to_one_that_is_only_asked_for_by_name() -> None:
    old = model("old", "economy", auto=False, provider="openai")
    table = catalogue(model("toy", "economy", auto=False), old, model("large", "premium", supports_sampling=False))
    costs = {"toy": 0, "old": 1, "large": 100}  # what exists only in the simulation is chosen for nobody
    assert chosen(auto(sampling=True), table, costs) == ("old",)
    assert chosen(auto(), table, costs) == ("large",)


PAIR = catalogue(model("slow", "premium"), model("quick", "economy"), model("other", "premium"))


@pytest.mark.parametrize(
    ("strategy", "weight", "first"),
    [("cost_optimal", 0.0, "slow"), ("latency_optimal", 1.0, "quick"), ("balanced", 1.0, "slow"), ("balanced", 0.0, "quick")],
)
def test_the_strategy_weighs_cost_against_latency(strategy: Strategy, weight: float, first: str) -> None:
    """A premium model that is cheaper joins the economy tier's choice: it costs least, the small one is fastest."""
    assert chosen(auto(), PAIR, {"slow": 5, "quick": 10, "other": 100}, strategy=strategy, cost_weight=weight)[0] == first


def test_a_weight_outside_zero_and_one_is_refused_by_the_name_of_the_setting() -> None:
    with pytest.raises(ValueError, match="ROUTING_COST_WEIGHT"):
        HeuristicPolicy(cost_weight=1.5)


def test_another_policy_is_given_the_embedding_and_only_what_can_be_chosen() -> None:
    seen: list[tuple[Any, list[str]]] = []

    class Learned:
        def rank(self, features: RouteFeatures, embedding: Vector | None, offers: Any) -> Ranking:
            seen.append((embedding, [o.model.name for o in offers]))
            return Ranking(("large",), "learned so")

    made = route(auto(), THREE, prices({"small": 1, "large": 2}), Learned(), embedding=None)
    assert made.models == ("large",)
    assert seen == [(None, ["small", "large"])]


tables = st.lists(
    st.tuples(st.sampled_from(TIERS), st.booleans(), st.booleans(), st.none() | st.integers(0, 10**6)), min_size=1, max_size=8
)
requests = st.builds(
    auto,
    st.sampled_from(["hi", HARD]),
    input_tokens=st.integers(0, 10_000),
    tools=st.booleans(),
    max_tokens=st.none() | st.integers(1, 3_000),
)


@given(tables, requests, st.sampled_from(["cost_optimal", "latency_optimal", "balanced"]), st.integers(0, 4))
def test_every_choice_is_enabled_capable_priced_and_named_once(
    rows: list[tuple[TierName, bool, bool, int | None]], features: RouteFeatures, strategy: Strategy, fallbacks: int
) -> None:
    models = [model(f"m{i}", tier, enabled=on, supports_tools=tools) for i, (tier, on, tools, _) in enumerate(rows)]
    costs = {f"m{i}": cost for i, (*_, cost) in enumerate(rows) if cost is not None}
    table = catalogue(*models)
    able = {m.name for m in models if incapable(m, features) is None and m.name in costs}
    try:
        names = chosen(features, table, costs, strategy=strategy, fallbacks=fallbacks)
    except (Rejected, Unpriced):
        assert not able
        return
    assert 0 < len(names) <= 1 + fallbacks
    assert len(set(names)) == len(names)
    assert set(names) <= able


def test_an_offer_is_made_at_the_expected_length_of_the_answer() -> None:
    offers: list[Offer] = []

    class Keep:
        def rank(self, features: RouteFeatures, embedding: Vector | None, given: Any) -> Ranking:
            offers.extend(given)
            return Ranking(("small",), "")

    route(auto(max_tokens=50), THREE, prices(COSTS), Keep())
    assert offers[0].cost_pico == 20 + 50


def request(body: dict[str, Any], **changes: Any) -> Request:
    return Request(
        identity=Identity(tenant="acme", job="j", custom_id="1"), body=body, model="auto", fingerprint="0" * 64, scope="1" * 64,
        flight="2" * 64, lane=Lane.STANDARD, accepted_ms=0, cache_ttl_s=60, **changes,
    )  # fmt: skip


def test_features_are_read_from_the_body() -> None:
    body = {
        "messages": [
            {"role": "system", "content": "x" * 400},
            {"role": "user", "content": "hello"},
            {"role": "assistant", "content": "hi"},
            {"role": "user", "content": "explain"},
        ],
        "max_completion_tokens": 77,
        "tools": [{"type": "function"}],
        "response_format": {"type": "json_schema"},
        "temperature": 0,
    }
    made = features_of(request(body, preferred_model="m"))
    assert (made.text, made.turns, made.max_tokens, made.preferred) == ("explain", 2, 77, "m")
    assert (made.tools, made.structured, made.sampling, made.images) == (True, True, True, False)
    assert 100 <= made.input_tokens <= 130


def test_images_are_seen_and_a_plain_body_needs_nothing() -> None:
    image = {"type": "image_url", "image_url": {"url": "data:"}}
    seen = features_of(request({"messages": [{"role": "user", "content": [{"type": "text", "text": "what"}, image]}]}))
    assert (seen.images, seen.text) == (True, "")
    plain = features_of(request({"messages": [{"role": "user", "content": "日本語"}], "temperature": 1, "top_p": 1}))
    assert (plain.tools, plain.images, plain.structured, plain.sampling, plain.max_tokens) == (False, False, False, False, None)


SPEAKS = catalogue(
    model("small", "economy", languages=("en",)), model("medium", "standard", languages=("en", "de")), model("large", "premium")
)


@pytest.mark.parametrize(
    ("languages", "first"),
    [(frozenset(), "small"), (frozenset({"en"}), "small"), (frozenset({"de", "nl"}), "medium"), (frozenset({"th"}), "large")],
)
def test_a_model_that_does_not_know_the_language_is_not_chosen_and_an_unknown_one_leaves_nobody_out(
    languages: frozenset[str], first: str
) -> None:
    assert chosen(auto("Hi", languages=languages), SPEAKS)[0] == first


def test_a_language_that_nobody_knows_is_refused_where_the_request_says_it_and_passed_over_where_it_was_only_told() -> None:
    only = catalogue(model("small", "economy", languages=("en",)))
    assert chosen(auto("Hi", languages=frozenset({"th"})), only) == ("small",)
    with pytest.raises(Rejected, match=r"small does not know the language \(th\)"):
        chosen(auto("Hi", languages=frozenset({"th"}), language_said=True), only)


def test_the_language_is_the_one_that_the_request_says_else_the_one_that_its_last_turn_is_in() -> None:
    def features(language: str | None = None, *, languages: bool = True) -> RouteFeatures:
        asked = Request(
            identity=Identity(tenant="t", job="j", custom_id="1"), model="auto", fingerprint="0" * 64, scope="1" * 64, flight="2" * 64,
            body={"messages": [{"role": "user", "content": "Ποια είναι η πρωτεύουσα;"}]}, lane=Lane.STANDARD, accepted_ms=0, cache_ttl_s=1,
            language=language,
        )  # fmt: skip
        return features_of(asked, languages=languages)

    assert features().languages == {"el"}
    assert not features().language_said
    assert features("de").languages == {"de"}
    assert features("de").language_said
    assert features(languages=False).languages == frozenset()


class Dearest:
    """A policy that spares nothing."""

    def rank(self, features: RouteFeatures, embedding: Vector | None, offers: Sequence[Offer]) -> Ranking:
        return Ranking((max(offers, key=lambda offer: offer.cost_pico).model.name,), "the dearest")


def cascaded(kind: Cascade, table: Catalogue = THREE, **changes: Any) -> Route:
    known: dict[str, Any] = {"structured": True, **changes}
    return route(auto(**known), table, prices(COSTS), Dearest(), cascade=kind, judge=model("small", "economy"))


@pytest.mark.parametrize(
    ("kind", "models", "cheap"),
    [
        ("off", ("large",), 0),
        ("structure", ("small", "large"), 1),
        ("agreement", ("small", "medium", "large"), 2),
        ("judge", ("small", "large"), 1),
    ],
)
def test_a_cascade_puts_the_cheapest_models_in_front_of_the_policys_choice(kind: Cascade, models: tuple[str, ...], cheap: int) -> None:
    made = cascaded(kind)
    assert (made.models, made.cascade, made.cheap) == (models, kind, cheap)


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("structure", {"structured": False}),
        ("agreement", {"tools": True}),
        ("structure", {"preferred": "medium"}),
        ("judge", {"tools": True}),
        ("judge", {"text": ""}),
        ("judge", {"preferred": "medium"}),
    ],
)
def test_what_can_not_be_checked_or_is_the_callers_own_choice_is_no_cascade(kind: Cascade, changes: dict[str, Any]) -> None:
    made = cascaded(kind, **changes)
    assert (made.cascade, made.cheap) == ("off", 0)
    assert made.models[0] == changes.get("preferred", "large")


def test_a_request_that_a_cheap_model_would_get_anyhow_is_no_cascade() -> None:
    made = route(auto("Hi", structured=True), THREE, prices(COSTS), HeuristicPolicy(), cascade="structure")
    assert (made.models[0], made.cascade) == ("small", "off")


def test_two_answers_are_compared_only_where_two_models_cost_less() -> None:
    made = cascaded("agreement", catalogue(model("small", "economy"), model("large", "premium")))
    assert (made.models, made.cascade) == (("large",), "off")


def judged(judge: Model | None, costs: Mapping[str, int], tenant: str = "u") -> Route:
    mine = Rules(models={"t": frozenset({"small", "medium", "large"})})
    return route(auto(tenant=tenant), THREE, prices(costs), Dearest(), rules=mine, cascade="judge", judge=judge)


@pytest.mark.parametrize(("of_the_judge", "first"), [(1, "small"), (4, "small"), (7, "large"), (50, "large"), (None, "large")])
def test_a_judge_checks_a_cheap_answer_only_where_both_cost_less_than_the_policys_choice(of_the_judge: int | None, first: str) -> None:
    costs = {"small": 1, "medium": 5, "large": 10} | ({} if of_the_judge is None else {"grader": of_the_judge})
    made = judged(model("grader", "economy"), costs)
    assert (made.models[0], made.cascade) == (first, "judge" if first == "small" else "off")


def test_without_a_judge_or_where_the_tenant_may_not_use_it_the_policys_choice_is_asked_at_once() -> None:
    costs = {"small": 1, "medium": 5, "large": 10, "grader": 1}
    assert judged(None, costs).models[0] == "large"
    grader = model("grader", "economy")
    seeing = catalogue(*(replace(m, supports_images=True, image_tokens=1_000) for m in THREE.models))
    assert route(auto(images=True), seeing, prices(costs), Dearest(), cascade="judge", judge=grader).cascade == "off"
    assert [judged(grader, costs, tenant).cascade for tenant in ("t", "u")] == ["off", "judge"]

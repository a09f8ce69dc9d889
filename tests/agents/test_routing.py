"""The router of a worker: the policy that the settings name, the embedding that the caches made, the file that was learned."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from inference_engine.agents.routers import Routers
from inference_engine.agents.routing import RecentPrompts, policies_of, policy_of, route_with
from inference_engine.agents.settings import Settings
from inference_engine.connectors.router_file import ROUTER_FILE, save_router
from inference_engine.pipeline.errors import ConfigError
from inference_engine.pipeline.experiments import Experiment, Experiments, Variant
from inference_engine.pipeline.feedback_policy import FeedbackPolicy
from inference_engine.pipeline.models import Catalogue, Model, Prices
from inference_engine.pipeline.route import TIERS, HeuristicPolicy, RouteFeatures
from inference_engine.pipeline.router_state import learn_state
from inference_engine.pipeline.routing_policies import LearnedPolicy, QuantilePolicy
from inference_engine.schemas.record import Lane
from inference_engine.schemas.requests import Dimensions, Identity, Request, Route

from ..pipeline.routing_support import KINDS, easy_and_hard, rows


def settings(home: Path, **routing: Any) -> Settings:
    return Settings(home=home, routing=routing)  # type: ignore[arg-type]


def request(text: str) -> Request:
    return Request(
        identity=Identity(tenant="acme", job="j", custom_id="1"), body={"messages": [{"role": "user", "content": text}]}, model="auto",
        fingerprint="0" * 64, scope="1" * 64, flight="2" * 64, lane=Lane.STANDARD, accepted_ms=0, cache_ttl_s=60,
    )  # fmt: skip


def catalogue() -> Catalogue:
    def model(name: str, quality: float, price: str) -> Model:
        from decimal import Decimal

        return Model(
            name, "simulated", name, "economy", context_tokens=8_000, max_output_tokens=2_000, quality=quality,
            prices=Prices(Decimal(price), Decimal(price)),
        )  # fmt: skip

    return Catalogue((model("small", 0.5, "3"), model("large", 0.9, "30")), default_premium="large")


def test_the_setting_names_the_policy(tmp_path: Path) -> None:
    assert isinstance(policy_of(settings(tmp_path), RecentPrompts()), HeuristicPolicy)
    quantile = policy_of(settings(tmp_path, policy="quantile", min_quality=0.8), RecentPrompts())
    assert isinstance(quantile, QuantilePolicy)
    assert quantile.min_quality == 0.8
    assert isinstance(policy_of(settings(tmp_path, policy="learned"), RecentPrompts()), QuantilePolicy)  # nothing is learned yet


def test_what_was_learned_routes_from_its_file(tmp_path: Path) -> None:
    made = settings(tmp_path, policy="learned", min_quality=0.96)
    save_router(made.data_dir / ROUTER_FILE, learn_state(rows(easy_and_hard(600)), np.random.default_rng(0)))
    decide = route_with(made, catalogue())
    assert decide(request(f"{KINDS[0]}river stone 7")).models[0] == "small"
    hard = decide(request(f"{KINDS[1]}river stone 7"))
    assert hard.models[0] == "large"
    assert "expected score" in hard.reason


def test_vectors_of_another_embedder_are_not_shown_to_what_was_learned(tmp_path: Path) -> None:
    made = rows(easy_and_hard(100))
    vectors = np.eye(100, 16, dtype=np.float32)
    state = learn_state(replace(made, embeddings=vectors), np.random.default_rng(0))
    path = tmp_path / ROUTER_FILE
    save_router(path, state)
    own = policy_of(settings(tmp_path, policy="learned"), RecentPrompts())
    other = policy_of(Settings(home=tmp_path, routing={"policy": "learned"}, embedding_model="/other"), RecentPrompts())  # type: ignore[arg-type]
    assert isinstance(own, LearnedPolicy)
    assert isinstance(other, LearnedPolicy)
    assert other.state.embedded is None


def test_recent_prompts_are_kept_in_order_and_the_oldest_leave() -> None:
    recent = RecentPrompts(size=3)
    for text in ("a" * 1000, "b", "c" * 100, "d" * 10, "e" * 5000):
        recent.add(RouteFeatures("auto", None, text, input_tokens=1, turns=1, max_tokens=None))
    assert len(recent.sorted) == 3
    assert recent.sorted == sorted(recent.sorted)


def test_the_quantile_policy_learns_what_is_usual_here(tmp_path: Path) -> None:
    """Among 200 longer prompts the same one looks easy."""
    decide = route_with(settings(tmp_path, policy="quantile", min_quality=0.8), catalogue())
    text = "Compare the two reports and tell me which one is right. " * 8
    before = decide(request(text)).complexity or 0.0
    for i in range(200):
        decide(request(text * 3 + str(i)))
    assert (decide(request(text)).complexity or 0.0) < before


@pytest.mark.parametrize("policy", ["heuristic", "quantile", "learned"])
def test_without_fallback_only_the_first_model_is_tried(tmp_path: Path, policy: str) -> None:
    decide = route_with(settings(tmp_path, policy=policy, fallback_enabled=False), catalogue())
    assert len(decide(request("hi")).models) == 1


def test_rules_may_name_models_by_alias_and_a_misspelt_one_is_an_error(tmp_path: Path) -> None:
    decide = route_with(settings(tmp_path, equivalents={"large": ["small"]}), catalogue())
    assert decide(request("hi").model_copy(update={"model": "large"})).models == ("small", "large")
    with pytest.raises(ConfigError, match="ROUTING_TENANT_MODELS"):
        route_with(settings(tmp_path, tenant_models={"acme": ["smal"]}), catalogue())


def test_feedback_routes_only_where_the_learned_policy_is_named(tmp_path: Path) -> None:
    learned = policy_of(settings(tmp_path, policy="learned", exploration=0.02), RecentPrompts(), Routers())
    assert isinstance(learned, FeedbackPolicy)
    assert learned.exploration == 0.02
    made = route_with(settings(tmp_path, policy="learned"), catalogue(), Routers())(request("hi"))
    assert made.chosen is not None
    assert made.chosen.model == made.models[0]
    assert route_with(settings(tmp_path, policy="quantile"), catalogue())(request("hi")).chosen is None


def test_a_variant_is_routed_by_its_own_policy_or_model(tmp_path: Path) -> None:
    variants = (Variant("as-now"), Variant("ranked", policy="quantile"), Variant("fixed", model="large"))
    running = Experiments((Experiment("exp", variants),))
    decide = route_with(settings(tmp_path), catalogue(), None, running)

    def routed(variant: str, **more: Any) -> Route:
        dimensions = Dimensions(experiment_id="exp", experiment_variant=variant)
        return decide(request("What is a cat?").model_copy(update={"dimensions": dimensions, **more}))

    assert "asks for" in routed("as-now").reason
    assert "recent prompts" in routed("ranked").reason
    assert routed("fixed").models == ("large", "small")
    assert routed("fixed", preferred_model="small").models[0] == "small"
    assert routed("fixed", model="small").models == ("small",)
    assert "asks for" in routed("unknown").reason


def test_a_variant_that_learns_is_told_what_feedback_taught(tmp_path: Path) -> None:
    running = Experiments((Experiment("exp", (Variant("a"), Variant("b", policy="learned"))),))
    assert policies_of(settings(tmp_path), running) == {"heuristic", "learned"}
    assert isinstance(policy_of(settings(tmp_path), RecentPrompts(), Routers(), "learned"), FeedbackPolicy)


def test_a_cascade_is_as_the_request_says_else_its_variant_else_the_settings(tmp_path: Path) -> None:
    running = Experiments((Experiment("exp", (Variant("a"), Variant("b", cascade="structure"))),))
    hard = "Analyze, compare and prove the algorithm; explain the distributed protocol and its latency; write a detailed report"

    def routed(variant: str = "", said: str | None = None, n: int = 1, max_cost_pico: int | None = None, **routing: Any) -> str:
        asked = request(hard)
        body = {**asked.body, "response_format": {"type": "json_object"}, "n": n}
        dimensions = Dimensions(experiment_id="exp", experiment_variant=variant)
        changed = asked.model_copy(update={"body": body, "dimensions": dimensions, "cascade": said, "max_cost_pico": max_cost_pico})
        models = Catalogue(tuple(replace(m, tier=tier) for m, tier in zip(catalogue().models, TIERS[::2], strict=True)), "large")
        return route_with(settings(tmp_path, **routing), models, None, running)(changed).cascade

    assert routed() == "off"
    assert routed(said="structure") == "structure"
    assert routed(cascade="structure") == "structure"
    assert routed("b") == "structure"
    assert routed("b", said="off") == "off"
    assert routed("b", n=2) == "off"
    assert routed("b", fallback_enabled=False) == "off"
    assert routed(cascade="judge", judge_model="small") == "judge"
    assert routed("b", said="judge", judge_model="small") == "judge"
    assert routed(said="judge") == "off", "nobody judges"
    assert routed(said="judge", judge_model="small", max_cost_pico=10**12) == "off"


def test_a_cascade_by_a_judge_that_nobody_named_or_knows_ends_the_start(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="ROUTING_JUDGE_MODEL"):
        settings(tmp_path, cascade="judge")
    running = Experiments((Experiment("exp", (Variant("a"), Variant("b", cascade="judge"))),))
    with pytest.raises(ConfigError, match="ROUTING_JUDGE_MODEL"):
        route_with(settings(tmp_path), catalogue(), None, running)
    with pytest.raises(ConfigError, match="ROUTING_JUDGE_MODEL"):
        route_with(settings(tmp_path, judge_model="smal"), catalogue())
    route_with(settings(tmp_path, judge_model="small"), catalogue(), None, running)

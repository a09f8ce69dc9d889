"""What the settings say about the caches reaches the stages of a worker."""

from pathlib import Path

import pytest
from pydantic import SecretStr

from inference_engine.agents.compose import catalogue_of, compose, grading_of, sharing_of
from inference_engine.agents.settings import CachingConfig, RoutingConfig, Settings
from inference_engine.agents.worker_parts import Grading, Learning
from inference_engine.connectors.models_toml import load_catalogue
from inference_engine.pipeline.errors import ConfigError
from inference_engine.pipeline.semantic import StaticPolicy


def shared_by(caching: CachingConfig, routing: RoutingConfig | None = None) -> StaticPolicy | Learning:
    settings = Settings(kafka_brokers="127.0.0.1:9", caching=caching, routing=routing or RoutingConfig())
    return sharing_of(settings, load_catalogue().for_providers(["openai"]))


@pytest.mark.parametrize(("enabled", "size"), [(True, 7), (False, 1_000)])
def test_cache_prefix_settings_are_the_workers(enabled: bool, size: int, tmp_path: Path) -> None:
    caching = CachingConfig(prefix_enabled=enabled, prefix_cache_size=size, semantic_enabled=False)
    parts = compose(Settings(kafka_brokers="127.0.0.1:9", caching=caching, home=tmp_path), tmp_path)
    assert (parts.prefix_enabled, parts.prefix_cache_size) == (enabled, size)


@pytest.mark.parametrize(
    ("tenant", "feature", "bound"),
    [
        ("anybody", "", 0.02),
        ("anybody", "chat", 0.02),
        ("acme", "", 0.005),
        ("anybody", "legal", 0.0),
        ("anybody", "jokes", 0.1),
        ("acme", "jokes", 0.005),
    ],
)
def test_the_error_bound_is_the_features_and_of_two_that_are_named_the_stricter(tenant: str, feature: str, bound: float) -> None:
    caching = CachingConfig(error_bound=0.02, error_bound_tenants={"acme": 0.005}, error_bound_features={"legal": 0.0, "jokes": 0.1})
    found = shared_by(caching)
    assert isinstance(found, Learning)
    assert found.bounds(tenant, feature).bound == bound


def test_the_default_policy_is_the_one_that_keeps_a_bound_and_static_is_the_threshold() -> None:
    learning = shared_by(CachingConfig())
    assert isinstance(learning, Learning)
    assert (learning.bounds("t", "").bound, learning.settings.per) == (0.01, "request")
    static = shared_by(CachingConfig(policy="static", similarity_threshold=0.95))
    assert static == StaticPolicy(threshold=0.95)


def test_a_model_judges_answers_where_one_is_named_and_only_those_of_tenants_that_may_use_it() -> None:
    assert shared_by(CachingConfig()).judging is None  # type: ignore[union-attr]
    caching = CachingConfig(judge_model="gpt-4o-mini")
    found = shared_by(caching, RoutingConfig(tenant_models={"acme": ("gpt-4o",)}, tenant_regions={"globex": ("eu",)}))
    assert isinstance(found, Learning)
    assert found.judging is not None
    assert found.judging.model.name == "gpt-4o-mini"
    assert [found.judging.may(tenant) for tenant in ("anybody", "acme", "globex")] == [True, False, False]


def test_a_judge_that_nobody_knows_ends_the_start() -> None:
    with pytest.raises(ConfigError, match="CACHE_JUDGE_MODEL"):
        shared_by(CachingConfig(judge_model="gpt-of-nowhere"))


def graded_by(routing: RoutingConfig) -> Grading | None:
    found = Settings(routing=routing, openai_api_key=SecretStr("sk-test"))
    return grading_of(found, catalogue_of(found))


def test_a_model_grades_answers_where_one_is_named_and_only_those_of_tenants_that_may_use_it() -> None:
    assert graded_by(RoutingConfig()) is None
    found = graded_by(RoutingConfig(judge_model="gpt-4o-mini", judge_rate=0.2, tenant_models={"acme": ("gpt-4o",)}))
    assert found is not None
    assert (found.judge.model.name, found.rate) == ("gpt-4o-mini", 0.2)
    assert [found.judge.may(tenant) for tenant in ("anybody", "acme")] == [True, False]
    with pytest.raises(ConfigError, match="ROUTING_JUDGE_MODEL"):
        graded_by(RoutingConfig(judge_model="gpt-of-nowhere"))

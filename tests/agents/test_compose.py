"""What the settings say about the caches reaches the stages of a worker."""

from pathlib import Path

import pytest

from inference_engine.agents.compose import compose, sharing_of
from inference_engine.agents.settings import CachingConfig, Settings
from inference_engine.agents.worker import Learning
from inference_engine.pipeline.semantic import StaticPolicy


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
    found = sharing_of(Settings(kafka_brokers="127.0.0.1:9", caching=caching))
    assert isinstance(found, Learning)
    assert found.bounds(tenant, feature).bound == bound


def test_the_default_policy_is_the_one_that_keeps_a_bound_and_static_is_the_threshold() -> None:
    learning = sharing_of(Settings(kafka_brokers="127.0.0.1:9", caching=CachingConfig()))
    assert isinstance(learning, Learning)
    assert (learning.bounds("t", "").bound, learning.settings.per) == (0.01, "request")
    static = sharing_of(Settings(kafka_brokers="127.0.0.1:9", caching=CachingConfig(policy="static", similarity_threshold=0.95)))
    assert static == StaticPolicy(threshold=0.95)

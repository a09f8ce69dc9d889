"""What the settings say about prefixes reaches the call stage of a worker."""

from pathlib import Path

import pytest

from inference_engine.agents.compose import compose
from inference_engine.agents.settings import CachingConfig, Settings


@pytest.mark.parametrize(("enabled", "size"), [(True, 7), (False, 1_000)])
def test_cache_prefix_settings_are_the_workers(enabled: bool, size: int, tmp_path: Path) -> None:
    caching = CachingConfig(prefix_enabled=enabled, prefix_cache_size=size, semantic_enabled=False)
    parts = compose(Settings(kafka_brokers="127.0.0.1:9", caching=caching, home=tmp_path), tmp_path)
    assert (parts.prefix_enabled, parts.prefix_cache_size) == (enabled, size)

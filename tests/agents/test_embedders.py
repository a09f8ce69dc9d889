"""Which embedder the settings name, and what it may be asked."""

from typing import Any

import pytest

from inference_engine.agents.embedders import configured_embedder, embedder_of
from inference_engine.agents.settings import CachingConfig, Settings

NOWHERE = "http://127.0.0.1:9/v1"


def settings_of(**said: Any) -> Settings:
    return Settings(embedding_base_url=NOWHERE, **said)


@pytest.mark.parametrize(
    ("said", "most"),
    [
        ({}, 8192),
        ({"embedding_model": "text-embedding-3-large"}, 8192),
        ({"embedding_model": "all-minilm"}, 256),
        ({"embedding_model": "all-minilm", "embedding_max_tokens": 512}, 512),
        ({"embedding_max_tokens": 4000}, 4000),
    ],
)
def test_an_endpoint_is_trusted_with_what_its_model_sees_for_certain(said: dict[str, Any], most: int) -> None:
    found = embedder_of(settings_of(**said)).embedder
    assert found is not None
    assert found.max_tokens == most


def test_with_the_semantic_tier_off_the_engine_has_no_embedder_and_an_evaluation_has_the_one_that_is_set() -> None:
    off = settings_of(caching=CachingConfig(semantic_enabled=False, embedding_dimension=64))
    assert embedder_of(off).embedder is None
    found = configured_embedder(off).embedder
    assert found is not None
    assert found.dimension == 64

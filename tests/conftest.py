"""What all tests share: one real Kafka per session, and a fresh name space on it for each test."""

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from inference_engine.connectors.kafka_embedded import EmbeddedKafka


@pytest.fixture(scope="session")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Bootstrap address of a real broker that lives as long as this pytest session."""
    data_dir: Path = tmp_path_factory.mktemp("kafka")
    embedded = EmbeddedKafka(fast_jit=True, heap=("128m", "512m"))
    try:
        yield embedded.start(data_dir).bootstrap
    finally:
        embedded.stop(data_dir, timeout_s=20)


@pytest.fixture
def topic_prefix() -> str:
    """A prefix for topics and groups that no other test uses: `t-<12 hex>.`"""
    return f"t-{uuid.uuid4().hex[:12]}."

"""What all tests share: one real Kafka per session, and a fresh name space on it for each test."""

import contextlib
import os
import signal
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
    running = embedded.start(data_dir)
    try:
        yield running.bootstrap
    finally:
        # The data is thrown away: no reason to wait for an orderly end.
        with contextlib.suppress(ProcessLookupError):
            os.kill(running.pid, signal.SIGKILL)
        embedded.stop(data_dir, timeout_s=10)


@pytest.fixture
def topic_prefix() -> str:
    """A prefix for topics and groups that no other test uses: `t-<12 hex>.`"""
    return f"t-{uuid.uuid4().hex[:12]}."

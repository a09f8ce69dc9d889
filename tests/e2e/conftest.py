"""A provider and an engine for all tests that leave them alone, and some of their own for those that kill them."""

import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from .engine import Engine
from .provider import Provider

MakeEngine = Callable[..., Engine]


@pytest.fixture
def provider(tmp_path: Path) -> Iterator[Provider]:
    """Slow enough that there are calls in flight whenever something is killed."""
    with Provider(tmp_path, "--latency-ms", "300") as running:
        yield running


@pytest.fixture
def make_engine(kafka: str, tmp_path: Path, provider: Provider) -> Iterator[MakeEngine]:
    """Makes engines that end with the test."""
    made: list[Engine] = []

    def make(**settings: str) -> Engine:
        name = uuid.uuid4().hex[:12]
        engine = Engine.create(kafka, f"e-{name}.", tmp_path / name, provider, **settings)
        made.append(engine)
        return engine

    yield make
    for engine in made:
        engine.close()


@pytest.fixture(scope="session")
def shared(kafka: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """A worker and a sink for all tests that kill nothing: each keeps to its own jobs and prompts."""
    folder = tmp_path_factory.mktemp("engine")
    with Provider(folder, "--latency-ms", "20") as provider:
        # Some tests make one call after another fail: that the model then rests for all of them is proven elsewhere.
        settings = {"CALL_TIMEOUT_SECONDS": "3", "ROUTING_CIRCUIT_BREAKER_THRESHOLD": "1000"}
        engine = Engine.create(kafka, f"e-{uuid.uuid4().hex[:12]}.", folder / "home", provider, **settings)
        try:
            worker, sink = engine.start_worker(wait=False), engine.start_sink(wait=False)
            worker.ready()
            sink.ready()
            yield engine
        finally:
            engine.close()

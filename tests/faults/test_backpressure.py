"""More work than the provider takes: intake slows down, memory stays bounded, and nobody starves behind somebody else's flood."""

import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from inference_engine.connectors.heap import GIVE_BACK_S

from ..e2e.waiting import until
from .stage import MODEL, TENANTS, Stage

IN_FLIGHT = {"express": 1, "standard": 4, "batch": 3}
KILOBYTES = 16
CHUNK = 2_000
"""Rows of one helping, 32 MB; three of them are more than a worker may hold."""


REST_S = 1.0
PER_MINUTE = 120


@pytest.fixture
def stages(kafka: str, tmp_path: Path) -> Iterator[Callable[..., Stage]]:
    """Stages with eight permits; they end with the test."""
    made: list[Stage] = []

    def make(**how: Any) -> Stage:
        made.append(Stage.create(kafka, tmp_path / uuid.uuid4().hex, MAX_IN_FLIGHT="8", CALL_TIMEOUT_SECONDS="10", **how))
        return made[-1]

    yield make
    for stage in made:
        stage.close()


@pytest.fixture
def stage(stages: Callable[..., Stage]) -> Stage:
    """A provider that takes half a second for each of eight calls."""
    return stages(latency_ms=500)


def test_a_slow_provider_slows_the_intake_and_bounds_memory(stage: Stage) -> None:
    """Once a worker holds what it may hold, a longer backlog takes no more memory, and no more calls are sent at once."""
    a_longer_backlog_takes_no_more(stage)


@pytest.mark.parametrize("limit", ["told to come later", "so many a minute"])
def test_a_provider_that_limits_calls_slows_the_intake_and_bounds_memory_and_calls(
    stages: Callable[..., Stage], tmp_path: Path, limit: str
) -> None:
    """The same where each call is told to come back in a second (429, Retry-After), and where the operator has set how many a minute there
    may be: calls come as fast as that allows, however many wait."""
    models = tmp_path / "models.toml"
    models.write_text(f'[models."{MODEL}"]\nrequests_per_minute = {PER_MINUTE}\n')
    if limit == "told to come later":
        stage = stages(latency_ms=20)
        stage.provider.fail("429", retry_after=REST_S)
    else:
        stage = stages(latency_ms=20, MODELS_FILE=str(models))
    begin = time.monotonic()
    a_longer_backlog_takes_no_more(stage)
    calls = stage.provider.summary()["asked"]["openai"]
    passed_s = time.monotonic() - begin
    # Between two times of rest every permit may be used once; at a limit, what half a second of rest allows may be caught up.
    most = sum(IN_FLIGHT.values()) * (1 + passed_s / REST_S) if limit == "told to come later" else PER_MINUTE / 60 * passed_s + 2
    assert 0 < calls <= most
    stage.provider.heal()
    stage.wait_for(len(stage.responded()) + 5)


def a_longer_backlog_takes_no_more(stage: Stage) -> None:
    worker = stage.start_worker(0)
    memory = psutil.Process(worker.popen.pid).memory_info
    stage.ask(3 * CHUNK, mark="x" * KILOBYTES * 1024, repeats=0, priority="standard")
    settled(stage)
    first = least(memory)
    stage.ask(4 * CHUNK, mark="x" * KILOBYTES * 1024, repeats=0, priority="standard")
    settled(stage)
    assert least(memory) - first < 4 * CHUNK * KILOBYTES * 1024 / 4
    health = worker.health()
    assert all(count <= IN_FLIGHT[lane] for lane, count in health["calls_in_flight"].items())
    assert health["in_work"]["call.standard"] * KILOBYTES * 1024 <= 16 * 2**20
    assert stage.provider.summary()["most_in_flight"] <= sum(IN_FLIGHT.values())


def least(memory: Callable[[], Any]) -> int:
    """Resident bytes, without what is freed already: the least in a time in which that goes back to the system twice."""
    end = time.monotonic() + 2 * GIVE_BACK_S + 1
    found = int(memory().rss)
    while time.monotonic() < end:
        time.sleep(0.2)
        found = min(found, int(memory().rss))
    return found


def settled(stage: Stage) -> None:
    """Everything waits for the provider: on its way there it takes memory of its own, for a moment."""
    until(lambda: stage.passed_the_door() == len(stage.asked), "all requests have passed the door", within_s=90)
    until(stage.all_called, "all requests are calls", within_s=90)


@pytest.mark.parametrize("flood", [2_000, 20_000])
def test_a_flood_of_one_tenant_does_not_starve_another(stage: Stage, flood: int) -> None:
    """Twenty requests behind thousands, more than a worker reads ahead into memory, are answered as if half of the provider were theirs."""
    greedy, other = TENANTS
    stage.start_worker(0)
    stage.ask(flood, mark="x" * 2 * 1024, tenant=greedy, repeats=0, priority="standard")
    stage.wait_for(20)
    stage.ask(20, tenant=other, repeats=0, priority="standard")
    mine = {a.key for a in stage.asked if a.tenant == other}
    until(lambda: mine <= stage.responded(), "the other tenant has its answers", within_s=60)
    assert len(stage.responded()) < 20 + 20 + 100

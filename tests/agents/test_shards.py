"""A vector index that is down or slow costs hits, never time."""

import asyncio
import threading
from collections.abc import Callable

import numpy as np
import pytest

from inference_engine.agents import shards as module
from inference_engine.agents.shards import Shards
from inference_engine.connectors.vector_index import BruteForceIndex
from inference_engine.pipeline.errors import Unavailable
from inference_engine.pipeline.ports import Neighbour, VectorIndex, Vectors

from ..pipeline.support import NOW
from .support import KeepAll
from .test_flow import NoTail

QUERY = np.ones((1, 8), dtype=np.float32)


def shards_of(make_index: Callable[[int], VectorIndex]) -> Shards:
    return Shards(make_index, NoTail(), KeepAll(), lambda: NOW)  # type: ignore[arg-type]


class Down(BruteForceIndex):
    """Fails once asked."""

    def __init__(self) -> None:
        super().__init__(8)
        self.asked = 0

    def search(self, tenant: str, scope: str, queries: Vectors, limit: int) -> list[list[Neighbour]]:
        self.asked += 1
        raise Unavailable("down")


async def test_an_index_that_takes_long_to_open_holds_up_no_partition(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "OPEN_WAIT_S", 0.05)
    gate = threading.Event()

    def slow(_: int) -> VectorIndex:
        gate.wait(30)
        return BruteForceIndex(8)

    shards = shards_of(slow)
    await shards.assigned([0, 1, 2])
    with pytest.raises(Unavailable):
        await shards.search(0, "t", "s", QUERY, 3)
    gate.set()
    await asyncio.wait(shards._opening.values())
    assert await shards.search(0, "t", "s", QUERY, 3) == [[]]
    await shards.stop()


async def test_an_index_that_could_not_be_opened_is_opened_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "REST_S", 0.1)
    tries: list[int] = []

    def third_time_lucky(partition: int) -> VectorIndex:
        tries.append(partition)
        if len(tries) < 3:
            raise Unavailable("down")
        return BruteForceIndex(8)

    shards = shards_of(third_time_lucky)
    await shards.assigned([5])
    await asyncio.wait(shards._opening.values())
    assert tries == [5, 5, 5]
    assert await shards.search(5, "t", "s", QUERY, 3) == [[]]
    await shards.stop()


async def test_an_index_that_failed_is_left_alone_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each try may take its whole timeout, in the one thread of all partitions."""
    index = Down()
    shards = shards_of(lambda _: index)
    await shards.assigned([0])
    for _ in range(5):
        with pytest.raises(Unavailable):
            await shards.search(0, "t", "s", QUERY, 3)
    assert index.asked == 1
    await shards.stop()


async def test_a_partition_that_is_lost_while_its_index_opens_leaves_it_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """And closed before it is opened again: an index has a folder to itself."""
    monkeypatch.setattr(module, "OPEN_WAIT_S", 0.05)
    gate, story = threading.Event(), list[str]()

    class Told(BruteForceIndex):
        def close(self) -> None:
            story.append("closed")
            super().close()

    def slow(_: int) -> VectorIndex:
        gate.wait(30)
        story.append("opened")
        return Told(8)

    shards = shards_of(slow)
    await shards.assigned([0])
    await shards.revoked([0])
    await shards.assigned([0])
    gate.set()
    await asyncio.wait(shards._opening.values())
    await shards.stop()
    assert story == ["opened", "closed", "opened", "closed"]

"""A server outlives its workers: what expired, was evicted or was taken back is deleted there, too, by whoever owns the partition now."""

import asyncio
import warnings

import numpy as np
import pytest
from qdrant_client import QdrantClient

from inference_engine.agents import shards as module
from inference_engine.agents.keeper import EvictionKeeper
from inference_engine.agents.shards import Shards
from inference_engine.connectors.qdrant import QdrantServerIndex
from inference_engine.connectors.vector_index import BruteForceIndex
from inference_engine.pipeline import vectors
from inference_engine.pipeline.errors import Unavailable
from inference_engine.pipeline.ports import VectorIndex
from inference_engine.schemas import packets
from inference_engine.schemas.answers import VectorRecord

from .support import Clock
from .test_flow import NoTail

EYE = np.eye(32, dtype=np.float32)
TTL_MS = 1_000


class Server:
    """A Qdrant of this process with one collection, and the workers that come and go in front of it."""

    def __init__(self) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.client = QdrantClient(":memory:")
        self.client.close = lambda **_: None  # type: ignore[method-assign]
        self.clock = Clock()
        self.topic: list[bytes] = []

    def index(self, partition: int) -> VectorIndex:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return QdrantServerIndex(self.client, "semantic_cache", 32, clock=self.clock)

    async def worker(self, *, size: int = 10) -> Shards:
        """Owns the partition, and has read the topic."""
        shards = Shards(self.index, NoTail(), EvictionKeeper("lru", size, None, 1), self.clock)  # type: ignore[arg-type]
        await shards.assigned([0])
        for packet in self.topic:
            shards.apply(0, packet)
        return shards

    def answered(self, shards: Shards, *numbers: int) -> None:
        self.topic.append(packets.vectors.encode([self.record(i) for i in numbers]))
        shards.apply(0, self.topic[-1])

    def record(self, i: int) -> VectorRecord:
        return VectorRecord(tenant="t", scope="s", fingerprint=f"{i:064x}", text=f"q{i}", vector=vectors.pack(EYE[i]),
                            created_ms=self.clock(), expires_ms=self.clock() + TTL_MS)  # fmt: skip

    def held(self) -> set[int]:
        return {int(str((p.payload or {})["text"])[1:]) for p in self.client.scroll("semantic_cache", limit=100)[0]}


async def found(shards: Shards, i: int = 0) -> set[int]:
    near = (await shards.search(0, "t", "s", EYE[i : i + 1], 32))[0]
    return {int(n.point.text[1:]) for n in near}


async def test_whoever_takes_a_partition_over_deletes_what_expired_meanwhile() -> None:
    server = Server()
    for life in range(3):
        shards = await server.worker()
        server.answered(shards, *range(10 * life, 10 * life + 5))
        assert len(await found(shards)) == 5
        assert len(server.held()) == 5
        await shards.stop()
        server.clock.ms += 10 * TTL_MS


async def test_what_is_evicted_after_a_start_is_deleted_on_the_server_although_an_earlier_worker_put_it_there() -> None:
    server = Server()
    first = await server.worker()
    server.answered(first, *range(10))
    await found(first)
    await first.stop()
    assert len(server.held()) == 10
    second = await server.worker(size=4)
    assert await found(second) == {6, 7, 8, 9} == server.held()
    await second.stop()


async def test_an_answer_that_was_taken_back_while_nobody_owned_it_is_deleted_after_the_start() -> None:
    server = Server()
    first = await server.worker()
    server.answered(first, 1, 2)
    await found(first)
    await first.stop()
    second = Shards(server.index, NoTail(), EvictionKeeper("lru", 10, None, 1), server.clock)  # type: ignore[arg-type]
    second.made_before = lambda fingerprint, _: fingerprint == f"{1:064x}"
    await second.assigned([0])
    for packet in server.topic:
        second.apply(0, packet)
    assert await found(second) == {2} == server.held()
    await second.stop()


async def test_expired_points_are_deleted_as_time_goes_by_and_take_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PURGE_S", 0.001)
    purged = asyncio.Event()
    loop = asyncio.get_running_loop()

    class Told(BruteForceIndex):
        def purge(self) -> int:
            gone = super().purge()
            if gone:
                loop.call_soon_threadsafe(purged.set)
            return gone

    clock, keeper = Clock(), EvictionKeeper("lfu", 2, None, 1)
    server = Server()
    server.clock = clock
    index = Told(32, clock=clock)
    shards = Shards(lambda _: index, NoTail(), keeper, clock)  # type: ignore[arg-type]
    await shards.start()
    await shards.assigned([0])
    server.answered(shards, 1, 2)
    assert await found(shards) == {1, 2}
    shards.hit(0, f"{1:064x}")
    clock.ms += 2 * TTL_MS
    await asyncio.wait_for(purged.wait(), 30)
    assert (index.count(), shards.prompts) == (0, 0)
    server.answered(shards, 3, 4)
    assert await found(shards) == {3, 4}
    await shards.stop()


async def test_a_purge_that_fails_is_told_and_tried_again_and_no_deletion_is_forgotten() -> None:
    class Moody(BruteForceIndex):
        down = False

        def delete(self, ids: object) -> None:
            if self.down:
                raise Unavailable("down")
            super().delete(ids)  # type: ignore[arg-type]

    clock, server = Clock(), Server()
    index = Moody(32, clock=clock)
    server.clock = clock
    shards = Shards(lambda _: index, NoTail(), EvictionKeeper("lru", 2, None, 1), clock)  # type: ignore[arg-type]
    await shards.assigned([0])
    server.answered(shards, 1, 2)
    assert await found(shards) == {1, 2}
    server.answered(shards, 3)
    index.down = True
    await shards.purge([0])
    index.down = False
    await shards.purge([0])
    assert index.count() == 2 == shards.prompts
    await shards.stop()


async def test_a_prompt_that_was_evicted_and_is_answered_again_is_found() -> None:
    """Both happen before anything is written to the index: the deletion is not to take the new point along."""
    server = Server()
    shards = await server.worker(size=2)
    server.answered(shards, 1, 2)
    await found(shards)
    server.answered(shards, 3, 1)
    assert await found(shards) == {1, 3}
    await shards.stop()

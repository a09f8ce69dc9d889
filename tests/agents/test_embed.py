"""The queue in front of the embedder."""

import asyncio
import threading
from collections.abc import Sequence

import numpy as np
import pytest

from inference_engine.agents.embed import BATCH, EmbedQueue
from inference_engine.connectors.embedder import HashEmbedder
from inference_engine.pipeline.ports import Embedded, Vector
from inference_engine.schemas.record import Lane


class Held(HashEmbedder):
    """Computes nothing until it is let go; remembers what it was asked together."""

    def __init__(self) -> None:
        super().__init__(16)
        self.go, self.asked = threading.Event(), threading.Event()
        self.batches: list[list[str]] = []

    def embed_whole(self, texts: Sequence[str]) -> Embedded:
        self.batches.append(list(texts))
        self.asked.set()
        assert self.go.wait(30)
        return super().embed_whole(texts)


async def held_queue() -> tuple[Held, EmbedQueue, "asyncio.Future[Vector | None]"]:
    """A queue whose first batch is under way."""
    embedder = Held()
    queue = EmbedQueue(embedder)
    first = asyncio.ensure_future(queue.embed("first", Lane.BATCH, "t"))
    assert await asyncio.to_thread(embedder.asked.wait, 30)
    return embedder, queue, first


async def test_what_arrives_during_a_batch_is_embedded_together_most_urgent_lane_first() -> None:
    embedder, queue, first = await held_queue()
    lanes = (Lane.BATCH, Lane.STANDARD, Lane.EXPRESS)
    later = [queue.embed(f"{lane} {i}", lane, "t") for lane in lanes for i in range(BATCH // 2)]
    embedder.go.set()
    await asyncio.gather(first, *later)
    assert embedder.batches[1] == [f"{lane} {i}" for lane in (Lane.EXPRESS, Lane.STANDARD) for i in range(BATCH // 2)]
    assert embedder.batches[2] == [f"{Lane.BATCH} {i}" for i in range(BATCH // 2)]


async def test_tenants_of_a_lane_take_turns() -> None:
    embedder, queue, first = await held_queue()
    later = [queue.embed(f"{tenant}{i}", Lane.STANDARD, tenant) for tenant, count in (("a", BATCH), ("b", 2)) for i in range(count)]
    embedder.go.set()
    await asyncio.gather(first, *later)
    assert embedder.batches[1][:6] == ["a0", "b0", "a1", "b1", "a2", "a3"]


async def test_every_text_gets_its_own_vector() -> None:
    queue, texts = EmbedQueue(HashEmbedder(16)), [f"text {i}" for i in range(3 * BATCH)]
    found = await asyncio.gather(*(queue.embed(text, Lane.STANDARD, "t") for text in texts))
    assert np.array_equal(np.stack([v for v in found if v is not None]), HashEmbedder(16).embed(texts))


async def test_a_failed_batch_fails_its_own_texts_and_the_next_one_is_embedded() -> None:
    embedder, queue, first = await held_queue()
    embedder.embed = lambda texts: [][0]  # type: ignore[method-assign]
    embedder.go.set()
    with pytest.raises(IndexError):
        await first
    del embedder.embed
    assert await queue.embed("second", Lane.STANDARD, "t") is not None


async def test_a_text_that_nobody_waits_for_any_more_holds_up_nobody() -> None:
    embedder, queue, first = await held_queue()
    gone, kept = queue.embed("gone", Lane.STANDARD, "t"), queue.embed("kept", Lane.STANDARD, "t")
    gone.cancel()
    embedder.go.set()
    assert await kept is not None
    assert await first is not None


async def test_a_closed_queue_embeds_nothing_more() -> None:
    embedder, queue, first = await held_queue()
    waiting = queue.embed("waiting", Lane.STANDARD, "t")
    queue.close()
    embedder.go.set()
    await first
    assert embedder.batches == [["first"]]
    assert not waiting.done()

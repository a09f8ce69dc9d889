"""The batching of cost events: few inserts, and nobody told "stored" before it is."""

import asyncio
import threading
from collections.abc import Sequence

import pytest

from inference_engine.agents.sink import CostSink
from inference_engine.pipeline.errors import Rejected, Unavailable
from inference_engine.schemas.costs import CostEvent


def event(event_id: str) -> CostEvent:
    return CostEvent(event_id=event_id, kind="answer", timestamp_ms=1, request_id="r", tenant_id="t", job="j")


class Store:
    """Records inserts; refuses what it is told to."""

    def __init__(self) -> None:
        self.inserts: list[list[str]] = []
        self.down = False
        self.bad: set[str] = set()
        self.gate: threading.Event | None = None
        self.tried = threading.Event()

    def insert(self, events: Sequence[CostEvent]) -> None:
        if self.gate is not None:
            assert self.gate.wait(10)
        self.tried.set()
        if self.down:
            raise Unavailable("down")
        if any(e.event_id in self.bad for e in events):
            raise Rejected("bad value")
        self.inserts.append([e.event_id for e in events])


async def test_packets_that_come_together_are_one_insert() -> None:
    store = Store()
    sink = CostSink(store.insert, max_wait=0.05)
    await asyncio.gather(*(sink.add([event(f"{p}-{i}") for i in range(3)]) for p in range(5)))
    assert len(store.inserts) == 1
    assert len(store.inserts[0]) == 15


async def test_a_full_batch_does_not_wait() -> None:
    store = Store()
    sink = CostSink(store.insert, max_rows=4, max_wait=3600)
    await asyncio.wait_for(asyncio.gather(*(sink.add([event(f"{p}-{i}") for i in range(2)]) for p in range(2))), 10)
    assert [len(rows) for rows in store.inserts] == [4]


async def test_nobody_is_told_stored_before_the_insert_returned() -> None:
    store = Store()
    store.gate = threading.Event()
    sink = CostSink(store.insert, max_wait=0)
    adding = asyncio.create_task(sink.add([event("a")]))
    done, _ = await asyncio.wait([adding], timeout=0.1)
    assert not done
    store.gate.set()
    await adding
    assert store.inserts == [["a"]]


async def test_while_the_store_is_down_everybody_waits_and_then_all_is_stored() -> None:
    store = Store()
    store.down = True
    sink = CostSink(store.insert, max_wait=0)
    adding = asyncio.gather(sink.add([event("a")]), sink.add([event("b")]))
    assert await asyncio.to_thread(store.tried.wait, 10)
    assert not adding.done()
    store.down = False
    await asyncio.wait_for(adding, 20)
    assert sorted(e for rows in store.inserts for e in rows) == ["a", "b"]
    assert sink.trouble is None


async def test_closing_while_the_store_is_down_tells_nobody_stored() -> None:
    store = Store()
    store.down = True
    sink = CostSink(store.insert, max_wait=0)
    adding = asyncio.create_task(sink.add([event("a")]))
    assert await asyncio.to_thread(store.tried.wait, 10)
    await asyncio.wait_for(sink.close(), 20)
    with pytest.raises(Unavailable):
        await adding


async def test_a_source_that_can_deliver_no_more_is_not_kept_waiting() -> None:
    store = Store()
    sink = CostSink(store.insert, max_packets=3, max_wait=3600)
    await asyncio.wait_for(asyncio.gather(*(sink.add([event(f"{p}")]) for p in range(3))), 10)
    assert [len(rows) for rows in store.inserts] == [3]


async def test_one_bad_event_is_named_and_keeps_no_other_out() -> None:
    store = Store()
    store.bad = {"x"}
    sink = CostSink(store.insert, max_wait=0.02)
    results = await asyncio.gather(
        sink.add([event("a"), event("b")]), sink.add([event("c"), event("x"), event("d")]), sink.add([event("e")]), return_exceptions=True
    )
    assert results[0] is None
    assert results[2] is None
    assert isinstance(results[1], Rejected)
    assert "'x'" in str(results[1])
    assert sorted(e for rows in store.inserts for e in rows) == ["a", "b", "c", "d", "e"]
    assert sink.stored_rows == 5


async def test_whoever_gives_up_waiting_holds_up_nobody() -> None:
    store = Store()
    store.gate = threading.Event()
    sink = CostSink(store.insert, max_wait=0)
    gone, stays = asyncio.create_task(sink.add([event("a")])), asyncio.create_task(sink.add([event("b")]))
    await asyncio.sleep(0)
    gone.cancel()
    store.gate.set()
    await stays
    with pytest.raises(asyncio.CancelledError):
        await gone


async def test_closing_stores_what_was_added() -> None:
    store = Store()
    sink = CostSink(store.insert, max_wait=3600)
    adding = asyncio.create_task(sink.add([event("a")]))
    await asyncio.sleep(0)
    await sink.close()
    await adding
    assert store.inserts == [["a"]]


async def test_flush_does_not_wait_for_more() -> None:
    store = Store()
    sink = CostSink(store.insert, max_wait=3600)
    adding = asyncio.create_task(sink.add([event("a")]))
    await asyncio.sleep(0)
    sink.flush()
    await asyncio.wait_for(adding, 10)


async def test_a_broken_store_frees_those_who_wait() -> None:
    """An error that nobody foresaw must not leave an offset held for ever, nor count as stored."""

    def broken(_: Sequence[CostEvent]) -> None:
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        await CostSink(broken, max_wait=0).add([event("a")])

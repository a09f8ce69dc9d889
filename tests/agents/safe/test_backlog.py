"""Turns by tenant: nobody waits behind a flood, memory is bounded, and no event is lost or begun twice."""

import asyncio
from collections.abc import Mapping, Sequence

import pytest
from aiokafka import TopicPartition
from hypothesis import given, settings
from hypothesis import strategies as st

from inference_engine.agents.safe import Delivered, SafeApp, Turns, backlog
from inference_engine.agents.safe.backlog import BACKLOG_BYTES, InTurns
from inference_engine.agents.safe.claims import Claim, Lease

from .conftest import Bench, until

TP = TopicPartition("calls", 0)
MB = 1024 * 1024


class Log:
    """One partition, its records, and a backlog that reads from it."""

    def __init__(self, *, limit: int = 8, max_bytes: int = 8 * MB, gone: frozenset[int] = frozenset()) -> None:
        self.lease = Lease(1e9)
        self.lease.extend(0)
        self.claim = self.new_claim()
        self.records: list[Delivered] = []
        self.gone, self.reads, self.woken, self.refusals = gone, 0, asyncio.Event(), 0
        self.turns = InTurns(limit, max_bytes, lambda event: event.key or b"", self.reread, self.woken.set)

    def new_claim(self) -> Claim:
        claim = Claim(TP, self.lease)
        claim.settled = claim.ready = True
        return claim

    async def reread(self, tp: TopicPartition, offsets: Sequence[int]) -> Mapping[int, Delivered]:
        self.reads += 1
        await asyncio.sleep(0)
        if self.refusals:
            self.refusals -= 1
            raise ConnectionError("the broker is away")
        return {offset: self.records[offset] for offset in offsets if offset not in self.gone}

    def add(self, tenant: bytes, size: int = 1, count: int = 1) -> None:
        for _ in range(count):
            offset = len(self.records)
            self.records.append(Delivered(TP.topic, 0, offset, tenant, b"x" * size))
            self.claim.hand_out(offset)
            self.turns.offer(Delivered(TP.topic, 0, offset, tenant, b"x" * size, claim=self.claim))

    async def next(self) -> Delivered:
        while (event := self.turns.begin()) is None:
            self.woken.clear()
            await asyncio.wait_for(self.woken.wait(), 5)
        return event

    def finish(self, event: Delivered) -> None:
        self.turns.end(event)
        assert event.claim is not None
        event.claim.finish(event.offset)


async def test_whoever_comes_behind_a_flood_is_next() -> None:
    log = Log()
    log.add(b"flood", size=MB // 4, count=200)
    at_work = [log.turns.begin() for _ in range(6)]
    log.add(b"other")
    log.add(b"third")
    assert [event.key for event in at_work if event] == [b"flood"] * 4  # half of what may be at work
    assert [(await log.next()).key for _ in range(2)] == [b"other", b"third"]


async def test_a_flood_takes_no_more_memory_than_a_backlog_may_and_all_of_it_is_begun_in_order() -> None:
    log = Log(limit=4)
    log.add(b"flood", size=MB // 4, count=200)
    most, begun = log.turns.resident_bytes, list[int]()
    for _ in range(200):
        event = await log.next()
        assert event.value == log.records[event.offset].value
        begun.append(event.offset)
        most = max(most, log.turns.resident_bytes)
        log.finish(event)
    assert begun == list(range(200))
    assert most <= BACKLOG_BYTES
    assert log.reads > 0
    assert log.claim.commit_point == 200
    assert len(log.turns) == 0


async def test_what_waits_is_read_again_though_the_broker_was_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backlog, "RETRY_S", 0.01)
    log = Log(limit=4)
    log.refusals = 3
    log.add(b"flood", size=MB, count=30)
    for _ in range(30):
        log.finish(await log.next())
    assert log.claim.commit_point == 30


async def test_what_retention_deleted_meanwhile_holds_up_nothing() -> None:
    log = Log(limit=4, gone=frozenset(range(20, 25)))
    log.add(b"flood", size=MB, count=30)
    begun = []
    for _ in range(25):
        event = await log.next()
        begun.append(event.offset)
        log.finish(event)
    assert begun == [*range(20), *range(25, 30)]
    assert log.claim.commit_point == 30


async def test_each_tenant_may_have_two_at_work_however_full_the_house_is() -> None:
    log = Log(limit=2)
    log.add(b"flood", count=10)
    log.turns.begin()
    log.turns.begin()
    for tenant in (b"a", b"b", b"c"):
        log.add(tenant, count=3)
    begun = []
    while (event := log.turns.begin()) is not None:
        begun.append(event.key or b"")
    assert sorted(begun) == [b"a", b"a", b"b", b"b", b"c", b"c"]


async def test_events_of_a_lost_partition_are_dropped_even_while_they_are_read_again() -> None:
    log = Log(limit=4)
    log.add(b"flood", size=MB, count=30)
    for _ in range(16):
        log.finish(await log.next())
    assert log.turns.begin() is None  # it is being read again
    log.claim.lose()
    log.turns.forget_lost()
    log.claim = log.new_claim()
    log.claim.position(30)
    log.add(b"flood")
    assert (await log.next()).offset == 30
    assert log.turns.begin() is None
    assert len(log.turns) == 0


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["add", "begin", "end"]), st.integers(0, 3), st.integers(1, 5 * MB)), max_size=60))
def test_whatever_comes_and_ends_each_event_begins_once_and_tenants_in_order(steps: list[tuple[str, int, int]]) -> None:
    async def run() -> None:
        log = Log(limit=3)
        at_work: list[Delivered] = []
        begun: dict[bytes, list[int]] = {}

        def note(event: Delivered) -> None:
            at_work.append(event)
            begun.setdefault(event.key or b"", []).append(event.offset)

        for what, tenant, size in steps:
            if what == "add":
                log.add(b"t%d" % tenant, size=size)
            elif what == "begin" and (event := log.turns.begin()) is not None:
                note(event)
            elif what == "end" and at_work:
                log.finish(at_work.pop(tenant % len(at_work)))
            await asyncio.sleep(0)
        while len(log.turns) or at_work:
            if (event := log.turns.begin()) is not None:
                note(event)
            elif at_work:  # the others may have to wait for just these
                log.finish(at_work.pop())
            else:
                note(await log.next())
        assert sorted(offset for offsets in begun.values() for offset in offsets) == list(range(len(log.records)))
        assert all(offsets == sorted(offsets) for offsets in begun.values())
        assert log.claim.commit_point == max(log.claim.next_offset, 0) or not log.records
        assert (log.turns.resident_bytes, log.turns._count, log.turns._bytes) == (0, 0, 0)

    asyncio.run(run())


async def test_on_a_real_broker_a_flood_is_read_again_and_the_other_tenant_waits_for_a_turn_only(bench: Bench) -> None:
    """40 MB of one tenant before one record of another, 16 MB of them in memory; after a crash all that was not done comes again."""
    bench.create("in", partitions=1, max_message_bytes=str(2 * MB))
    bench.partitions = 1
    flood, value = 80, b"x" * (MB // 2)
    await bench.feed(bench.topic("in"), [*[(b"flood", b"%d " % n + value) for n in range(flood)], (b"other", b"last")])
    done: dict[str, list[int]] = {"w1": [], "w2": []}
    gate = asyncio.Event()

    def handler(name: str) -> object:
        async def handle(event: Delivered) -> None:
            if event.key == b"flood" and len(done["w1"]) >= 30 and name == "w1":
                await gate.wait()
            if event.key == b"flood":
                assert (event.value or b"").startswith(b"%d " % event.offset)
            done[name].append(event.offset)

        return handle

    turns = Turns(lambda event: event.key or b"", 4 * MB)
    first = bench.app("w1")
    bench.agent(first, "in", handler("w1"), limit=8, turns=turns)  # type: ignore[arg-type]
    await bench.start(first)
    await until(lambda: flood in done["w1"] and len(done["w1"]) >= 31, "the other tenant's record is done in the middle of the flood")
    assert len(done["w1"]) < flood
    await bench.kill(first)
    second = bench.app("w2")
    bench.agent(second, "in", handler("w2"), limit=8, turns=turns)  # type: ignore[arg-type]
    async with bench.running(second):
        await until(lambda: {*done["w1"], *done["w2"]} == set(range(flood + 1)), "all of it is done")
        tp = TopicPartition(bench.topic("in"), 0)
        await until(lambda: second.committed()[tp] == flood + 1, "and committed")


async def test_what_waits_for_its_turn_is_told_apart_from_what_is_at_work_and_from_an_agent_that_begins_nothing(bench: Bench) -> None:
    """The watchdog ends a worker for the latter two only."""
    bench.create("in", partitions=1)
    gate = asyncio.Event()

    async def handle(event: Delivered) -> None:
        await gate.wait()

    app = bench.app()
    bench.agent(app, "in", handle, limit=2, turns=Turns(lambda event: event.key or b"", MB))
    tp = TopicPartition(bench.topic("in"), 0)
    async with bench.running(app):
        await bench.feed(bench.topic("in"), [(b"flood", b"x")] * 5)
        await until(lambda: app.waiting()[bench_name(app)] == 3 and app.at_work() == {tp: 0}, "two are at work")
        assert app.begins_nothing() == {}
        app.membership.suspend()
        gate.set()
        await until(lambda: app.begins_nothing() == {bench_name(app): 2}, "three wait, and none begins")
        app.membership.resume()
        await until(lambda: app.committed()[tp] == 5, "all are done")
        assert (app.at_work(), app.begins_nothing()) == ({}, {})


def bench_name(app: SafeApp) -> str:
    """Of its only agent."""
    [intake] = app.consumer_of_records.intakes
    return intake.name

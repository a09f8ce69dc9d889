"""Several workers of one group: nothing lost when they come and go, and equal partition numbers on one worker."""

import asyncio

import pytest
from aiokafka import TopicPartition

from inference_engine.agents.safe import Delivered, SafeApp, Stale

from .conftest import Bench, fill, until


async def _ignore(event: Delivered) -> None:
    pass


async def test_two_workers_starting_together_lose_nothing(bench: Bench) -> None:
    """Plain Faust lost up to 1,546 of 4,000 here, without any crash: it reads on from offsets that it never positioned."""
    bench.create("in")
    workers = [bench.app("w1"), bench.app("w2")]
    seen: dict[bytes | None, int] = {}

    async def note(event: Delivered) -> None:
        await asyncio.sleep(0.002)
        seen[event.value] = seen.get(event.value, 0) + 1

    for worker in workers:
        bench.agent(worker, "in", note)
    ids = [(b"%d" % n, b"%d" % n) for n in range(2000)]
    await bench.feed(bench.topic("in"), ids[:1000])
    await bench.start(workers[0])
    feeding = asyncio.create_task(bench.feed(bench.topic("in"), ids[1000:]))
    await bench.start(workers[1])
    await feeding
    await until(lambda: len(seen) == 2000, "every id")
    assert {int(value or b"") for value in seen} == set(range(2000))
    assert workers[0].partitions | workers[1].partitions == set(range(4))


async def test_equal_partition_numbers_of_topics_and_tables_lie_on_one_worker(bench: Bench) -> None:
    """Faust's assignor treats topics with equal counts and equal subscribers as one; other counts are split on their own."""
    bench.create("a", "b")
    bench.create("few", partitions=2)
    workers = [bench.app("w1", store="memory"), bench.app("w2", store="memory")]
    for worker in workers:
        table = worker.safe_table("rows", partitions=4)
        for topic in ("a", "b", "few"):
            bench.agent(worker, topic, _ignore)
    bench.create_exactly(table.changelog_spec.name, cleanup_policy="compact")
    await bench.start(workers[0])
    await bench.start(workers[1])
    await until(lambda: all(worker.ready.is_set() and worker.partitions != set(range(4)) for worker in workers), "both settled")
    held = [_by_topic(worker) for worker in workers]
    for one in held:
        assert one[bench.topic("a")] == one[bench.topic("b")] == one[table.changelog_spec.name]
        assert len(one[bench.topic("a")]) == 2
        assert len(one[bench.topic("few")]) == 1
    assert held[0][bench.topic("a")] | held[1][bench.topic("a")] == set(range(4))


def _by_topic(worker: SafeApp) -> dict[str, set[int]]:
    found: dict[str, set[int]] = {}
    for tp in worker.membership.claims:
        found.setdefault(tp.topic, set()).add(tp.partition)
    return found


async def test_event_of_a_kept_partition_survives_a_rebalance_and_of_a_lost_one_is_abandoned(bench: Bench) -> None:
    """Whoever kept a partition goes on with its event (no second delivery); whoever lost it raises Stale and is let go."""
    bench.create("in")
    first, second = bench.app("w1"), bench.app("w2")
    gate = asyncio.Event()
    begun: list[tuple[str, int]] = []
    ended: list[tuple[str, int]] = []
    doubted: list[int] = []

    def handler(worker: str):  # type: ignore[no-untyped-def]
        async def wait_for_gate(event: Delivered) -> None:
            begun.append((worker, event.partition))
            await gate.wait()
            if not event.current:
                doubted.append(event.partition)
                raise Stale("the partition moved on")
            ended.append((worker, event.partition))

        return wait_for_gate

    bench.agent(first, "in", handler("w1"))
    bench.agent(second, "in", handler("w2"))
    await bench.start(first)
    for number in range(4):
        await fill(first, bench.topic("in"), [number], partition=number)
    await until(lambda: len(begun) == 4, "one event of each partition in flight")
    await bench.start(second)
    await until(lambda: first.ready.is_set() and len(first.partitions) == 2, "two partitions moved")
    await until(lambda: len(begun) == 6, "the two that moved begin again on their new owner")
    gate.set()
    await until(lambda: len(ended) == 4, "each event ends once")
    assert sorted(number for _, number in ended) == [0, 1, 2, 3]
    assert {number for worker, number in ended if worker == "w1"} == first.partitions
    assert set(doubted) == second.partitions
    await until(lambda: first.in_flight()["in"] == 0, "abandoned handlers are gone")


async def test_callbacks_name_partitions_after_recovery_and_before_their_first_event(bench: Bench) -> None:
    bench.create("in")
    first, second = bench.app("w1", store="memory"), bench.app("w2", store="memory")
    story: list[str] = []
    for worker in (first, second):
        table = worker.safe_table("rows", partitions=4)
        bench.agent(worker, "in", _ignore)
    bench.create_exactly(table.changelog_spec.name, cleanup_policy="compact")
    async with bench.running(first):
        await first.safe_tables[0].write(2, {b"k": b"v"})
        await fill(first, bench.topic("in"), range(4))
        await until(lambda: sum(offset or 0 for offset in first.committed().values()) == 4, "all done")

    @second.on_assigned
    async def gained(partitions: frozenset[int]) -> None:
        assert second.safe_tables[0].read(2, b"k") == b"v"
        assert not seen
        await second.safe_tables[0].write(2, {b"from callback": b"1"})
        story.append(f"gained {sorted(partitions)}")

    seen: list[int] = []
    third = bench.app("w3", store="memory")
    third.safe_table("rows", partitions=4)
    bench.agent(third, "in", _ignore)

    @second.on_revoked
    async def lost(partitions: frozenset[int]) -> None:
        story.append(f"lost {len(partitions)}")

    await bench.start(second)
    await bench.start(third)
    await until(lambda: second.ready.is_set() and len(second.partitions) == 2, "two moved on")
    assert story == ["gained [0, 1, 2, 3]", "lost 2"]
    assert any(third.safe_tables[0].read(p, b"from callback") == b"1" for p in third.partitions) == (2 in third.partitions)


async def test_worker_that_was_stopped_past_its_session_does_not_believe_in_its_claims(bench: Bench) -> None:
    """`current` ends with the lease, whether or not the group has told us so."""
    bench.create("in")
    app, events = bench.app(), []

    async def keep(event: Delivered) -> None:
        events.append(event)

    bench.agent(app, "in", keep)
    async with bench.running(app):
        await fill(app, bench.topic("in"), [0], partition=0)
        await until(lambda: events, "an event")
        assert events[0].current
        app.membership.lease._until = 0.0  # as after a long SIGSTOP
        assert not events[0].current
        await until(lambda: events[0].current, "the next answered heartbeat")


async def test_rows_and_events_on_different_workers_are_refused(bench: Bench) -> None:
    """Workers that subscribe to different topics break the co-location on which tables rest."""
    bench.create("a", "b")
    first, second = bench.app("w1"), bench.app("w2")
    for topic in ("a", "b"):
        bench.agent(first, topic, _ignore)
    bench.agent(second, "a", _ignore)
    await bench.start(first)
    await bench.start(second, ready=False)
    with pytest.raises(Exception, match="same version with the same topics"):
        await asyncio.wait_for(bench._ends[id(first)][1], 15)


async def test_commit_past_the_end_of_a_topic_made_anew_reads_from_its_beginning(bench: Bench) -> None:
    bench.create("in")
    app, seen = bench.app(), []

    async def note(event: Delivered) -> None:
        seen.append(event.value)

    bench.agent(app, "in", note)
    tp = TopicPartition(bench.topic("in"), 0)
    async with bench.running(app):
        await fill(app, bench.topic("in"), range(2), partition=0)
        await until(lambda: app.committed()[tp] == 2, "both done")
        app.membership.claims[tp].position(1000)
        await app.consumer_of_records.commit()
    again = bench.app("w2")
    bench.agent(again, "in", note)
    async with bench.running(again):
        await until(lambda: len(seen) == 4, "everything again")

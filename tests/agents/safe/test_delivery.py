"""Every hazard of plain Faust between a record's delivery and its acknowledgement."""

import asyncio

import pytest
from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.errors import MessageSizeTooLargeError
from confluent_kafka import Producer

from inference_engine.agents.safe import DeadLetter, Delivered, Stale, consumer

from .conftest import Bench, fill, until


async def test_event_in_flight_is_delivered_again_after_a_crash_though_later_ones_finished(bench: Bench) -> None:
    """Commits stay below the lowest unfinished offset."""
    bench.create("in")
    first, done = bench.app(), set()

    async def stuck_on_3(event: Delivered) -> None:
        if event.value == b"3":
            await asyncio.Event().wait()
        done.add(event.value)

    bench.agent(first, "in", stuck_on_3)
    await bench.start(first)
    await fill(first, bench.topic("in"), range(10), partition=0)
    tp = TopicPartition(bench.topic("in"), 0)
    await until(lambda: len(done) == 9 and first.committed()[tp] == 3, "all but one done, and the commit up to it")
    assert first.lowest_unfinished()[tp] == 3
    await bench.kill(first)

    again: list[bytes] = []
    second = bench.app("w2")

    async def note(event: Delivered) -> None:
        again.append(event.value or b"")

    bench.agent(second, "in", note)
    async with bench.running(second):
        await until(lambda: len(again) == 7, "redelivery from offset 3 on")
    assert sorted(again) == [b"%d" % n for n in range(3, 10)]


async def test_exception_is_retried_and_never_acknowledges(bench: Bench) -> None:
    bench.create("in")
    app, attempts = bench.app(), []

    async def third_time_lucky(event: Delivered) -> None:
        attempts.append(event.offset)
        if len(attempts) < 3:
            assert app.lowest_unfinished()[TopicPartition(event.topic, event.partition)] == event.offset
            raise ValueError("not yet")

    bench.agent(app, "in", third_time_lucky)
    async with bench.running(app):
        await fill(app, bench.topic("in"), [0], partition=1)
        await until(lambda: app.committed()[TopicPartition(bench.topic("in"), 1)] == 1, "commit after the third attempt")
    assert attempts == [0, 0, 0]


async def test_refused_append_keeps_the_event_unfinished(bench: Bench) -> None:
    """The broker's refusal reaches the handler; the source is acknowledged only once an append was accepted."""
    bench.create("in")
    bench.create("small", max_message_bytes="2000")
    app, refusals = bench.app(), list[Exception]()

    async def too_big_at_first(event: Delivered) -> None:
        size = 5000 if len(refusals) < 2 else 10
        try:
            await app.append(bench.topic("small"), event.key, b"x" * size)
        except MessageSizeTooLargeError as exc:
            assert app.lowest_unfinished()[TopicPartition(event.topic, event.partition)] == event.offset
            refusals.append(exc)
            raise

    bench.agent(app, "in", too_big_at_first)
    async with bench.running(app):
        await fill(app, bench.topic("in"), [0], partition=0)
        await until(lambda: app.committed()[TopicPartition(bench.topic("in"), 0)] == 1, "commit once the append was accepted")
    assert len(refusals) == 2
    assert [record.value for record in await bench.read("small")] == [b"x" * 10]


async def test_a_refusal_does_not_close_the_partition_for_what_follows(bench: Bench) -> None:
    """aiokafka's sequence numbers run ahead of the broker's after a refusal: everything behind it would be out of order, for ever."""
    bench.create("in")
    bench.create("small", max_message_bytes="2000")
    app, small = bench.app(), bench.topic("small")

    async def ignore(event: Delivered) -> None:
        pass

    bench.agent(app, "in", ignore)
    async with bench.running(app):
        await app.append(small, None, b"before", partition=0)
        refused = await asyncio.gather(*(app.append(small, None, b"x" * 5000, partition=0) for _ in range(3)), return_exceptions=True)
        assert all(isinstance(error, MessageSizeTooLargeError) for error in refused)
        await app.append(small, None, b"after", partition=0)
        with pytest.raises(MessageSizeTooLargeError):
            await app.append_batch(small, 0, [(b"key", b"x" * 5000)])
        assert (await app.append_batch(small, 0, [(b"key", b"last")]))[0] == 1
    assert [record.value for record in await bench.read("small")] == [b"before", b"after", b"last"]


async def test_an_intake_that_has_room_again_waits_for_no_record_of_another_topic(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The fetch that leaves its partitions out would else end only with its timeout, once for each full backlog."""
    bench.create("in", "quiet")
    monkeypatch.setattr(consumer, "FETCH_TIMEOUT_MS", 3_600_000)
    app, done, free = bench.app(), list[int](), asyncio.Event()
    full = 256

    async def wait_at_first(event: Delivered) -> None:
        await free.wait()
        done.append(event.offset)

    async def ignore(event: Delivered) -> None:
        pass

    bench.agent(app, "in", wait_at_first, limit=1)
    bench.agent(app, "quiet", ignore)
    async with bench.running(app):
        await fill(app, bench.topic("in"), range(4 * full), partition=0)
        await until(lambda: any(intake.full for intake in app.consumer_of_records.intakes), "the backlog is full")
        await fill(app, bench.topic("in"), range(4 * full, 8 * full), partition=0)
        free.set()
        await until(lambda: done == list(range(8 * full)), "all are done")


async def test_dead_letter_is_written_before_the_event_is_released(bench: Bench) -> None:
    """A dead-letter write that fails is tried again like any other."""
    bench.create("in", "dead")
    app, calls = bench.app(), []

    async def reject(event: Delivered) -> None:
        raise DeadLetter("no such model", error_class="rejected")

    async def write_aside(event: Delivered, dead: DeadLetter) -> None:
        calls.append(dead)
        if len(calls) == 1:
            raise ConnectionError("broker away")
        headers = [("error.class", dead.error_class.encode()), ("error.message", str(dead).encode())]
        await app.append(bench.topic("dead"), event.key, event.value, headers=headers)

    bench.agent(app, "in", reject, on_dead=write_aside)
    async with bench.running(app):
        await fill(app, bench.topic("in"), [7], partition=0)
        await until(lambda: app.committed()[TopicPartition(bench.topic("in"), 0)] == 1, "commit after the dead letter")
    (record,) = await bench.read("dead")
    assert record.value == b"7"
    assert dict(record.headers) == {"error.class": b"rejected", "error.message": b"no such model"}
    assert len(calls) == 2


async def test_stale_raised_while_the_partition_is_ours_is_tried_again(bench: Bench) -> None:
    """An event may only be abandoned to another owner: abandoned to nobody it would hold the commit for ever."""
    bench.create("in")
    app, attempts = bench.app(), []

    async def doubtful(event: Delivered) -> None:
        attempts.append(event)
        if len(attempts) == 1:
            raise Stale("the partition moved on")

    bench.agent(app, "in", doubtful)
    async with bench.running(app):
        await fill(app, bench.topic("in"), [0], partition=0)
        await until(lambda: app.committed()[TopicPartition(bench.topic("in"), 0)] == 1, "commit after the second attempt")


async def test_at_most_limit_handlers_at_once_and_all_events_come(bench: Bench) -> None:
    bench.create("in")
    app, seen = bench.app(), []
    at_work = highest = 0

    async def slow(event: Delivered) -> None:
        nonlocal at_work, highest
        at_work += 1
        highest = max(highest, at_work)
        await asyncio.sleep(0.001)
        seen.append(event.value)
        at_work -= 1

    bench.agent(app, "in", slow, limit=3)
    async with bench.running(app):
        await fill(app, bench.topic("in"), range(1500))
        await until(lambda: len(seen) >= 1500, "all events, though the backlog was full many times")
    assert highest == 3
    assert sorted(int(value or b"") for value in seen) == list(range(1500))


async def test_two_agents_on_a_topic_both_hold_its_offset(bench: Bench) -> None:
    bench.create("in")
    app, gate, quick = bench.app(), asyncio.Event(), []

    async def slow(event: Delivered) -> None:
        await gate.wait()

    async def fast(event: Delivered) -> None:
        quick.append(event.offset)

    bench.agent(app, "in", slow)
    bench.agent(app, "in", fast, name="second")
    tp = TopicPartition(bench.topic("in"), 0)
    async with bench.running(app):
        await fill(app, bench.topic("in"), range(5), partition=0)
        await until(lambda: len(quick) == 5, "the fast agent")
        await app.consumer_of_records.commit()
        assert app.lowest_unfinished()[tp] == 0
        gate.set()
        await until(lambda: app.committed()[tp] == 5, "commit once both are done")


async def test_commit_markers_are_not_taken_for_lost_records(bench: Bench) -> None:
    """Transactions leave holes in the offsets: everything behind them is delivered, nothing twice."""
    bench.create("in")
    app, seen = bench.app(), []

    async def note(event: Delivered) -> None:
        seen.append(event.value)

    bench.agent(app, "in", note)
    producer = AIOKafkaProducer(bootstrap_servers=bench.brokers, transactional_id=bench.topic("tx"))
    async with bench.running(app):
        await producer.start()
        for n in range(6):
            async with producer.transaction():
                await producer.send_and_wait(bench.topic("in"), b"%d" % n, partition=0)
            await until(lambda n=n: len(seen) > n, f"transaction {n}")  # type: ignore[misc]
        await producer.stop()
    assert seen == [b"%d" % n for n in range(6)]


async def test_records_lost_on_the_way_are_fetched_again(bench: Bench) -> None:
    """A gap below the first record of a fetch is noticed, and the missing records are sought."""
    bench.create("in")
    app, seen = bench.app(), []

    async def note(event: Delivered) -> None:
        seen.append(event.value)

    bench.agent(app, "in", note)
    tp = TopicPartition(bench.topic("in"), 0)
    async with bench.running(app):
        await fill(app, bench.topic("in"), range(3), partition=0)
        await until(lambda: len(seen) == 3, "first records")
        app.consumer_of_records.kafka.pause(tp)
        await fill(app, bench.topic("in"), range(3, 9), partition=0)
        app.consumer_of_records.kafka.seek(tp, 6)  # as if 3, 4 and 5 had been dropped
        app.consumer_of_records.kafka.resume(tp)
        await until(lambda: len(seen) >= 9, "all records")
    assert seen == [b"%d" % n for n in range(9)]


async def test_records_compressed_by_other_programs_are_delivered(bench: Bench) -> None:
    """Without its codec one such record would stop the worker."""
    bench.create("in")
    app, seen = bench.app(), []

    async def note(event: Delivered) -> None:
        seen.append(event.value)

    bench.agent(app, "in", note)
    for codec in ("gzip", "lz4", "snappy", "zstd"):
        producer = Producer({"bootstrap.servers": bench.brokers, "compression.type": codec, "log_level": 2})
        producer.produce(bench.topic("in"), codec * 200, partition=0)
        assert producer.flush(10) == 0
    async with bench.running(app):
        await until(lambda: len(seen) == 4, "all codecs")
    assert seen == [codec.encode() * 200 for codec in ("gzip", "lz4", "snappy", "zstd")]


async def test_orderly_stop_waits_for_handlers_and_commits(bench: Bench) -> None:
    bench.create("in")
    app, begun, ended = bench.app(), [], []

    async def slow(event: Delivered) -> None:
        begun.append(event.offset)
        await asyncio.sleep(0.3)
        ended.append(event.offset)

    bench.agent(app, "in", slow)
    await bench.start(app)
    await fill(app, bench.topic("in"), range(4), partition=0)
    await until(lambda: len(begun) == 4, "all begun")
    await bench.stop(app)
    assert ended == begun
    assert app.committed()[TopicPartition(bench.topic("in"), 0)] == 4


async def test_agent_that_reads_a_topic_without_consume_is_refused(bench: Bench) -> None:
    """Records that pass outside the commit tracker could be lost."""
    bench.create("in")
    app = bench.app()

    async def plain(stream: object) -> None:
        async for _ in stream:  # type: ignore[attr-defined]
            pass

    app.agent(app.topic(bench.topic("in")), name="plain")(plain)
    with pytest.raises(Exception, match="without consume"):
        await bench.start(app)


async def test_missing_topic_is_refused_at_the_start(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Faust would wait for it in silence."""
    monkeypatch.setattr(consumer, "TOPIC_PATIENCE_S", 0.3)
    app = bench.app()

    async def never(event: Delivered) -> None:
        raise AssertionError

    bench.agent(app, "nowhere", never)
    with pytest.raises(Exception, match="do not exist"):
        await bench.start(app)

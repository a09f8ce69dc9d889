"""Only the owner of a partition can append to it, and what it appended is visible exactly when it is told so."""

import asyncio
from collections.abc import AsyncIterator

import orjson
import pytest
import pytest_asyncio
from confluent_kafka import Producer

from inference_engine.connectors.fenced_log import FencedAppend, FencedLog
from inference_engine.connectors.kafka_admin import create_topics
from inference_engine.connectors.ledger_log import LedgerLog, LedgerReader
from inference_engine.connectors.memory_ledger import MemoryFencedLog, MemoryLedgerTopic
from inference_engine.pipeline.errors import Fenced, Rejected, Stale
from inference_engine.schemas.topics import TopicSpec

Owners = tuple[FencedAppend, FencedAppend]


@pytest_asyncio.fixture(params=["kafka", "memory"])
async def parts(request: pytest.FixtureRequest, topic_prefix: str) -> AsyncIterator[tuple[Owners, LedgerReader]]:
    """Two workers that want the same partitions, and a reader: on a real broker and in memory."""
    if request.param == "memory":
        memory = MemoryLedgerTopic()
        yield (MemoryFencedLog(memory), MemoryFencedLog(memory)), memory
        return
    kafka: str = request.getfixturevalue("kafka")
    topic = f"{topic_prefix}ledger"
    create_topics(kafka, [TopicSpec(topic, 2)])
    pair = FencedLog(kafka, topic, f"{topic}-"), FencedLog(kafka, topic, f"{topic}-")
    log = LedgerLog(kafka, topic)
    yield pair, log
    for owner in pair:
        await owner.close()
    await log.close()


@pytest.fixture
def owners(parts: tuple[Owners, LedgerReader]) -> Owners:
    return parts[0]


@pytest.fixture
def reader(parts: tuple[Owners, LedgerReader]) -> LedgerReader:
    return parts[1]


async def visible(reader: LedgerReader, partition: int = 0, start: int = 0) -> list[object]:
    return [member async for _, packet in reader.replay(partition, start) for member in orjson.loads(packet)]


async def test_appends_are_visible_in_order_and_share_packets(owners: Owners, reader: LedgerReader) -> None:
    log, _ = owners
    await log.acquire(0)
    offsets = await asyncio.gather(*(log.append(0, b"%d" % i) for i in range(300)))
    assert await visible(reader) == list(range(300))
    assert offsets == sorted(offsets)
    assert len(set(offsets)) < 30, "a commit is shared"
    assert 299 in orjson.loads(await reader.fetch(0, offsets[299]))


async def test_the_previous_owner_is_fenced_and_nothing_of_it_becomes_visible_any_more(owners: Owners, reader: LedgerReader) -> None:
    old, new = owners
    await old.acquire(0)
    await old.append(0, b'"before"')
    await new.acquire(0)
    late = await asyncio.gather(*(old.append(0, b'"late"', urgent=i % 2 == 0) for i in range(10)), return_exceptions=True)
    assert [type(r) for r in late] == [Fenced] * 10
    await new.append(0, b'"after"', urgent=True)
    with pytest.raises(Fenced):
        await old.append(0, b'"much later"')
    assert await visible(reader) == ["before", "after"]


async def test_a_fenced_partition_leaves_the_others_alone(owners: Owners, reader: LedgerReader) -> None:
    old, new = owners
    await asyncio.gather(old.acquire(0), old.acquire(1))
    await new.acquire(0)
    with pytest.raises(Fenced):
        await old.append(0, b"0")
    await old.append(1, b"1")
    assert await visible(reader, 1) == [1]


async def test_what_is_queued_when_the_partition_is_given_up_was_never_written(owners: Owners, reader: LedgerReader) -> None:
    log, _ = owners
    await log.acquire(0)
    queued = [asyncio.ensure_future(log.append(0, b"%d" % i)) for i in range(5)]
    await asyncio.sleep(0)
    await log.release(0)
    results = await asyncio.gather(*queued, return_exceptions=True)
    assert [type(r) for r in results] == [Stale] * 5
    with pytest.raises(Stale):
        await log.append(0, b"9")
    assert await visible(reader) == []


async def test_the_same_owner_can_come_back(owners: Owners, reader: LedgerReader) -> None:
    first, second = owners
    for number, log in enumerate((first, second, first)):
        await log.acquire(0)
        await log.append(0, b"%d" % number, urgent=True)
    assert await visible(reader) == [0, 1, 2]


async def test_replay_starts_where_it_is_told_and_passes_over_transaction_markers(owners: Owners, reader: LedgerReader) -> None:
    log, _ = owners
    await log.acquire(0)
    offsets = [await log.append(0, b"%d" % i, urgent=True) for i in range(3)]
    assert await visible(reader, start=offsets[1]) == [1, 2]
    assert await visible(reader, start=offsets[2] + 1) == []
    assert await visible(reader, 1) == []


async def test_a_packet_that_is_not_kept_any_more_is_not_mistaken_for_another(owners: Owners, reader: LedgerReader) -> None:
    log, _ = owners
    await log.acquire(0)
    offset = await log.append(0, b"1", urgent=True)
    with pytest.raises(Rejected, match="not kept any more"):
        await reader.fetch(0, offset + 100)
    assert await reader.fetch(0, offset) == b"[1]"


async def test_an_outcome_behind_an_open_transaction_can_be_read_back(kafka: str, topic_prefix: str) -> None:
    """Whoever asks again is answered from the ledger at once, also while the intent of another call is being committed before it."""
    topic = f"{topic_prefix}ledger"
    create_topics(kafka, [TopicSpec(topic, 1)])
    fenced = Producer({"bootstrap.servers": kafka, "transactional.id": f"{topic}-0"})
    fenced.init_transactions(10)
    fenced.begin_transaction()
    fenced.produce(topic, b"an intent", partition=0)
    assert fenced.flush(10) == 0
    plain = Producer({"bootstrap.servers": kafka, "acks": "all"})
    plain.produce(topic, b"a completion", partition=0)
    assert plain.flush(10) == 0
    log = LedgerLog(kafka, topic)
    try:
        assert await log.fetch(0, 1) == b"a completion"
    finally:
        await log.close()
        fenced.abort_transaction(10)

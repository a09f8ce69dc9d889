"""Views that are read outside a group: cancelled jobs reach every worker, and a tail goes on where it was."""

from typing import Any

import pytest
from aiokafka.errors import CorruptRecordException

from inference_engine.connectors.controls import Controls
from inference_engine.connectors.kafka_admin import create_topics
from inference_engine.connectors.kafka_bulk import BulkProducer
from inference_engine.connectors.tail import Tail
from inference_engine.pipeline.errors import Unavailable
from inference_engine.schemas.controls import Cancel
from inference_engine.schemas.topics import TopicSpec

from ..pipeline.support import NOW, identity, request


def write(brokers: str, topic: str, *values: bytes) -> None:
    producer = BulkProducer(brokers)
    for value in values:
        producer.produce(topic, b"k", value)
    producer.flush(10)
    producer.close()


def cancel(at_ms: int, job: str = "j") -> bytes:
    return Cancel(tenant="t", job=job, at_ms=at_ms).model_dump_json().encode()


async def test_cancelled_jobs_are_known_at_the_start_and_heard_of_later(kafka: str, topic_prefix: str) -> None:
    topic = f"{topic_prefix}controls"
    create_topics(kafka, [TopicSpec(topic, 1)], replication_factor=1)
    write(kafka, topic, b"{not json", cancel(NOW))
    controls = Controls([kafka], topic)
    await controls.start()
    try:
        assert controls.cancelled(request(accepted_ms=NOW))
        assert not controls.cancelled(request(accepted_ms=NOW + 1)), "submitted again later, it runs"
        assert not controls.cancelled(request(who=identity(job="other")))
        write(kafka, topic, cancel(NOW, "other"))
        await controls.caught_up()
        assert controls.cancelled(request(who=identity(job="other")))
    finally:
        await controls.stop()


async def test_a_missing_topic_is_told(kafka: str, topic_prefix: str) -> None:
    controls = Controls([kafka], f"{topic_prefix}nothing")
    with pytest.raises(Unavailable, match="does not exist"):
        await controls.start()
    await controls.stop()


async def test_a_tail_reads_from_the_start_and_goes_on_where_it_was(kafka: str, topic_prefix: str) -> None:
    topic = f"{topic_prefix}view"
    create_topics(kafka, [TopicSpec(topic, 2)], replication_factor=1)
    seen: list[bytes | None] = []
    tail = Tail([kafka], topic, lambda _p, _o, value: seen.append(value))
    await tail.start()
    try:
        assert await tail.partitions() == [0, 1]
        write(kafka, topic, b"1", b"2")
        tail.assign({0: 0, 1: 0})
        await tail.caught_up(10)
        assert seen == [b"1", b"2"]
        tail.assign({0: 0, 1: 0})  # as after a rebalance that changed nothing
        write(kafka, topic, b"3")
        await tail.caught_up(10)
        assert seen == [b"1", b"2", b"3"]
    finally:
        await tail.stop()


async def test_a_partition_that_went_and_came_back_is_read_from_the_start(kafka: str, topic_prefix: str) -> None:
    """Its new owner's view is empty, however soon it came back."""
    topic = f"{topic_prefix}view"
    create_topics(kafka, [TopicSpec(topic, 1)], replication_factor=1)
    write(kafka, topic, b"1", b"2")
    seen: list[bytes | None] = []
    tail = Tail([kafka], topic, lambda _p, _o, value: seen.append(value))
    await tail.start()
    try:
        tail.assign({0: 0})
        await tail.caught_up(30)
        tail.assign({})
        tail.assign({0: 0})
        await tail.caught_up(30)
        assert seen == [b"1", b"2", b"1", b"2"]
    finally:
        await tail.stop()


async def test_a_tail_survives_an_error_of_the_broker(kafka: str, topic_prefix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A view that ended with it would be out of date without a word: jobs cancelled later would be paid."""
    topic = f"{topic_prefix}view"
    create_topics(kafka, [TopicSpec(topic, 1)], replication_factor=1)
    seen: list[bytes | None] = []
    tail = Tail([kafka], topic, lambda _p, _o, value: seen.append(value))
    await tail.start()
    assert tail._consumer is not None
    real, errors = tail._consumer.getmany, [CorruptRecordException("once")]

    async def getmany(**options: Any) -> Any:
        if errors:
            raise errors.pop()
        return await real(**options)

    monkeypatch.setattr(tail._consumer, "getmany", getmany)
    try:
        tail.assign({0: 0})
        write(kafka, topic, b"1")
        await tail.caught_up(30)
        assert (seen, errors) == ([b"1"], [])
    finally:
        await tail.stop()

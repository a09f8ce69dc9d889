"""Reads what stands on a topic, from its beginning to its end as it is at the call."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, Producer, TopicPartition

Headers = list[tuple[str, bytes]]


@dataclass(frozen=True, slots=True)
class Found:
    """One record."""

    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    headers: Headers


class Reader:
    """Follows one topic: `more` returns the records that are new since the last call. Only committed ones."""

    def __init__(self, brokers: str, topic: str) -> None:
        self.topic = topic
        self._consumer = Consumer(
            {
                "bootstrap.servers": brokers,
                "group.id": "tests-without-a-group",
                "enable.auto.commit": False,
                "enable.partition.eof": True,
                "isolation.level": "read_committed",
                "fetch.wait.max.ms": 50,
                "log_level": 2,
            }
        )
        self._next = {p: OFFSET_BEGINNING for p in self._consumer.list_topics(topic, timeout=15).topics[topic].partitions}

    def more(self) -> list[Found]:
        return list(self._to_the_end())

    def _to_the_end(self) -> Iterator[Found]:
        self._consumer.assign([TopicPartition(self.topic, p, offset) for p, offset in self._next.items()])
        open_partitions = set(self._next)
        deadline = time.monotonic() + 30
        while open_partitions:
            assert time.monotonic() < deadline, f"{self.topic} could not be read to its end"
            messages: list[Any] = self._consumer.consume(1000, 0.2)
            for message in messages:
                error = message.error()
                if error is None:
                    self._next[message.partition()] = message.offset() + 1
                    yield Found(message.partition(), message.offset(), message.key(), message.value(), message.headers() or [])
                elif error.code() == KafkaError._PARTITION_EOF:
                    self._next[message.partition()] = message.offset()
                    open_partitions.discard(message.partition())
                else:
                    raise AssertionError(error.str())

    def close(self) -> None:
        self._consumer.close()


class Writer:
    """Produces records that any program could produce."""

    def __init__(self, brokers: str) -> None:
        self._producer = Producer({"bootstrap.servers": brokers, "acks": "all", "message.max.bytes": 8_000_000, "log_level": 2})

    def write(self, topic: str, records: list[tuple[bytes | None, bytes | None, Headers]]) -> None:
        """Returns when the broker has them all."""
        refused: list[str] = []

        def report(error: KafkaError | None, _message: object) -> None:
            if error is not None:
                refused.append(error.str())

        for key, value, headers in records:
            self._producer.produce(topic, value, key, headers=list(headers) or None, on_delivery=report)
        left = self._producer.flush(30)
        assert not left, f"{left} records were not taken"
        assert not refused, refused

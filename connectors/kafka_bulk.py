"""Bulk producing and consuming with librdkafka: ten times aiokafka's rate, for the command line and scripts.

No consumer group: the caller owns the offsets, so reading never disturbs another reader and can start anywhere.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition

from ..pipeline.errors import ConfigError, Rejected, Unavailable

OnDelivered = Callable[[str | None], None]
"""Called once per record from `produce`, `poll` or `flush`: None where the broker acknowledged it, else why it did not."""

MAX_RECORD_BYTES = 1024 * 1024
"""Kafka's own default for a batch of records; key, headers and framing are part of it."""


class BulkProducer:
    """Writes many records, each acknowledged by all in-sync replicas; nothing is dropped silently.

    A record that can't be delivered goes to its `on_delivered`; without one it is raised as `Unavailable` by the next
    `produce`, `poll` or `flush`. Not thread-safe.
    """

    def __init__(self, brokers: str, *, queue_records: int = 20_000, linger_ms: int = 5, delivery_timeout_s: float = 120) -> None:
        self._brokers = brokers
        self._lost: list[str] = []
        self._producer = Producer(
            {
                "bootstrap.servers": brokers,
                "acks": "all",
                "enable.idempotence": True,
                "linger.ms": linger_ms,
                "delivery.timeout.ms": int(delivery_timeout_s * 1000),
                "queue.buffering.max.messages": queue_records,
                "queue.buffering.max.kbytes": 64 * 1024,
                "message.max.bytes": MAX_RECORD_BYTES,
                "compression.type": "lz4",
                "log_level": 2,
            },
            error_cb=self._on_error,
        )
        self.last_error = ""

    def _on_error(self, error: KafkaError) -> None:
        self.last_error = error.str()
        if error.fatal():
            self._lost.append(f"the producer was stopped by the broker: {error.str()}")

    def produce(
        self,
        topic: str,
        key: bytes | None,
        value: bytes | None,
        on_delivered: OnDelivered | None = None,
        headers: Sequence[tuple[str, bytes]] = (),
    ) -> None:
        """Queues one record; waits while the queue is full.

        Raises `Unavailable` where an earlier record without `on_delivered` was not delivered, or the queue did not move
        for as long as a delivery may take; `Rejected` where the record is too large.
        """
        self._raise_lost()
        report = self._reporter(on_delivered)
        stuck_since: float | None = None
        while True:
            try:
                self._producer.produce(topic, value, key, on_delivery=report, headers=list(headers) or None)
                return
            except BufferError:
                now = time.monotonic()
                stuck_since = stuck_since or now
                if self._producer.poll(0.2) > 0:
                    stuck_since = now
                if now - stuck_since > 180:
                    raise Unavailable(self._unreachable("queued records were not taken for 180 s")) from None
            except KafkaException as error:
                reason: KafkaError = error.args[0]
                if reason.code() == KafkaError.MSG_SIZE_TOO_LARGE:
                    raise Rejected(f"a record of {len(value or b''):,} bytes is more than Kafka takes", code="request_too_large") from error
                raise Unavailable(f"the record can't be queued: {reason.str()}") from error

    def _reporter(self, on_delivered: OnDelivered | None) -> Callable[[KafkaError | None, Message], None]:
        if on_delivered is None:
            return self._report_lost
        callback = on_delivered

        def report(error: KafkaError | None, _message: Message) -> None:
            callback(None if error is None else error.str())

        return report

    def _report_lost(self, error: KafkaError | None, message: Message) -> None:
        if error is not None:
            self._lost.append(f"a record for topic {message.topic()!r} was not delivered: {error.str()}")

    def _raise_lost(self) -> None:
        if self._lost:
            first, count = self._lost[0], len(self._lost)
            self._lost.clear()
            raise Unavailable(f"{first} ({count} in all); they were not taken by the broker: send them again")

    def poll(self, seconds: float = 0) -> None:
        """Serves delivery reports that are ready. Raises `Unavailable` as `produce` does."""
        self._producer.poll(seconds)
        self._raise_lost()

    def flush(self, seconds: float) -> None:
        """Returns when every record was reported. Raises `Unavailable` where some are still on their way after `seconds`."""
        left = self._producer.flush(seconds)
        self._raise_lost()
        if left:
            raise Unavailable(self._unreachable(f"{left} records were not acknowledged within {seconds:g} s"))

    def _unreachable(self, what: str) -> str:
        detail = f" ({self.last_error})" if self.last_error else ""
        return f"{what} by Kafka at {self._brokers}{detail}; check that it runs: inference-engine doctor"

    def close(self) -> None:
        """Gives up what is still queued: flush before, where it matters."""
        self._producer.purge()
        self._producer.flush(1)


class BulkConsumer:
    """Reads all partitions of one topic from given offsets, in large batches. Not thread-safe."""

    def __init__(self, brokers: str, topic: str) -> None:
        self._brokers = brokers
        self.topic = topic
        self.last_error = ""
        self._positions: dict[int, int] = {}
        self._consumer = Consumer(
            {
                "bootstrap.servers": brokers,
                "group.id": "inference-engine-bulk",  # demanded by the library; no group is ever joined
                "enable.auto.commit": False,
                "enable.auto.offset.store": False,
                "auto.offset.reset": "earliest",
                "fetch.wait.max.ms": 100,
                "queued.max.messages.kbytes": 32 * 1024,
                "allow.auto.create.topics": False,
                "log_level": 2,
            },
            error_cb=self._on_error,
        )

    def _on_error(self, error: KafkaError) -> None:
        self.last_error = error.str()

    def _metadata(self, timeout: float) -> Any:
        try:
            return self._consumer.list_topics(self.topic, timeout=timeout)
        except KafkaException as error:
            raise Unavailable(
                f"Kafka at {self._brokers} did not answer within {timeout:g} s ({error.args[0].str()}); "
                "check that it runs: inference-engine doctor"
            ) from error

    def partitions(self, timeout: float = 15) -> list[int]:
        """Raises `ConfigError` where the topic does not exist, `Unavailable` where Kafka does not answer."""
        described = self._metadata(timeout).topics[self.topic]
        if described.error is not None or not described.partitions:
            raise ConfigError(f"topic {self.topic!r} does not exist on {self._brokers}; make it: inference-engine topics create")
        return sorted(described.partitions)

    def cluster_id(self, timeout: float = 15) -> str:
        """Tells one Kafka from another one at the same address."""
        return str(self._metadata(timeout).cluster_id or "")

    def end_offsets(self, timeout: float = 15) -> dict[int, int]:
        """For each partition the offset that the next record will have."""
        return {p: high for p, (_low, high) in self._watermarks(timeout).items()}

    def _watermarks(self, timeout: float) -> dict[int, tuple[int, int]]:
        return {p: self._watermark(p, time.monotonic() + timeout) for p in self.partitions(timeout)}

    def _watermark(self, partition: int, deadline: float) -> tuple[int, int]:
        while True:
            try:
                low, high = self._consumer.get_watermark_offsets(
                    TopicPartition(self.topic, partition), timeout=max(0.1, deadline - time.monotonic())
                )
                return low, high
            except KafkaException as error:
                reason: KafkaError = error.args[0]
                # A topic made a moment ago has no leader yet, or another one than the library knows.
                moving = reason.retriable() or reason.code() in (
                    KafkaError.NOT_LEADER_FOR_PARTITION,
                    KafkaError.LEADER_NOT_AVAILABLE,
                    KafkaError.UNKNOWN_TOPIC_OR_PART,
                )
                if not moving or time.monotonic() > deadline:
                    raise Unavailable(f"Kafka at {self._brokers} did not say its offsets: {reason.str()}") from error
                self._metadata(max(0.1, deadline - time.monotonic()))
                time.sleep(0.05)

    def assign(self, offsets: Mapping[int, int] | None = None) -> None:
        """Reads every partition from its offset, from the beginning where none is given or it is gone."""
        wanted = offsets or {}
        marks = self._watermarks(15)
        # An offset beyond the end (another cluster, a topic made anew) would wait for ever: begin again there.
        start = {p: wanted.get(p, low) if low <= wanted.get(p, low) <= high else low for p, (low, high) in marks.items()}
        self._positions = start
        self._consumer.assign([TopicPartition(self.topic, p, o if o else OFFSET_BEGINNING) for p, o in start.items()])

    def poll_batch(self, limit: int, seconds: float) -> list[tuple[bytes | None, bytes | None]]:
        """Up to `limit` (key, value) pairs: what arrived within `seconds`.

        Raises `ConfigError` where the topic is gone or reading is not allowed; a broker that can't be reached is
        waited for, and seen in `last_error`.
        """
        records: list[tuple[bytes | None, bytes | None]] = []
        positions = self._positions
        messages: list[Any] = self._consumer.consume(limit, seconds)
        for message in messages:
            error = message.error()
            if error is None:
                records.append((message.key(), message.value()))
                positions[message.partition()] = message.offset() + 1
            else:
                self._judge(error)
        if records:
            self.last_error = ""
        return records

    def _judge(self, error: KafkaError) -> None:
        refused = {
            KafkaError.UNKNOWN_TOPIC_OR_PART,
            KafkaError._UNKNOWN_TOPIC,
            KafkaError.TOPIC_AUTHORIZATION_FAILED,
        }
        if error.fatal() or error.code() in refused:
            raise ConfigError(f"topic {self.topic!r} can't be read from {self._brokers}: {error.str()}")
        self.last_error = error.str()

    def positions(self) -> dict[int, int]:
        """For each partition the offset after the last record handed out."""
        return dict(self._positions)

    def caught_up(self, ends: Mapping[int, int]) -> bool:
        """True when every record before `ends` was handed out.

        Control records of transactions use offsets that no record has: ask the library where it stands, too.
        """
        if all(self._positions.get(p, 0) >= end for p, end in ends.items()):
            return True
        stands: list[Any] = self._consumer.position([TopicPartition(self.topic, p) for p in ends])
        at = {stand.partition: stand.offset or 0 for stand in stands}
        return all(max(at.get(p, 0), self._positions.get(p, 0)) >= end for p, end in ends.items())

    def close(self) -> None:
        self._consumer.close()


def write_record(brokers: str, topic: str, key: bytes, value: bytes, *, within_s: float = 30.0) -> None:
    """One record of a topic that every worker reads; returns when Kafka has acknowledged it.

    Raises `ConfigError` where there is no such topic, `Unavailable`.
    """
    there, producer = BulkConsumer(brokers, topic), BulkProducer(brokers)
    try:
        there.partitions()
        producer.produce(topic, key, value)
        producer.flush(within_s)
    finally:
        producer.close()
        there.close()

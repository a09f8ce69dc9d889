"""The Faust app of a worker, with everything switched off or replaced that loses records or acts beyond the app."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, cast

import faust
from aiokafka import TopicPartition
from faust.app.base import BootStrategy
from mode.utils.queues import ThrowableQueue

from .channels import LocalChannel
from .consumer import SafeConsumer
from .membership import Membership
from .partitioner import partition_for
from .producer import Headers, SafeProducer, SafeTransport
from .recovery import recover
from .runtime import assert_runtime
from .table import SafeTable
from .tables import SafeTableManager

log = logging.getLogger(__name__)

BATCH_BYTES = 512 * 1024
"""Of one partition in one request to the broker. aiokafka has one request under way, with one batch of each partition: at its
default of 16 KB that was 10 answers per round trip, and the appends behind them waited."""

PartitionsCallback = Callable[[frozenset[int]], Awaitable[None]]
StopCallback = Callable[[], Awaitable[object]]


class _Boot(BootStrategy):
    enable_web = False
    enable_sensors = False


class SafeApp(faust.App):
    """A Faust app; made by `create_app`, run by `run_app`."""

    BootStrategy = _Boot

    def __init__(
        self, app_id: str, *, brokers: Sequence[str], topic_prefix: str, memory: bool, timings: Mapping[str, float], **options: Any
    ) -> None:
        self.brokers = tuple(brokers)
        self.topic_prefix = topic_prefix
        self.safe_tables: list[SafeTable] = []
        self.assigned_callbacks: list[PartitionsCallback] = []
        self.revoked_callbacks: list[PartitionsCallback] = []
        self.stopping_callbacks: list[StopCallback] = []
        self._memory = memory
        self._timings = timings
        self._membership: Membership | None = None
        super().__init__(app_id, **options)

    # -- for agents

    async def append(
        self, topic: str, key: bytes | None, value: bytes | None, *, partition: int | None = None, headers: Headers | None = None
    ) -> int:
        """Appends one record; returns its offset once the broker has acknowledged it. Concurrent appends share batches.

        Without `partition` the key decides, as in Java. Raises aiokafka's KafkaError where the broker or the client
        refuses (MessageSizeTooLargeError and others): then nothing was written, or for a timeout, perhaps.
        """
        return await self.producer_of_records.append(topic, key, value, partition, headers)

    async def append_batch(self, topic: str, partition: int, rows: Sequence[tuple[bytes, bytes | None]]) -> tuple[int, int]:
        """Appends as many rows as fit one batch; returns their number and the first one's offset, once acknowledged."""
        return await self.producer_of_records.append_batch(topic, partition, rows)

    def partition_for(self, key: bytes, partitions: int) -> int:
        """The partition that Java's and every other default client puts `key` on."""
        return partition_for(key, partitions)

    def full_name(self, topic: str) -> str:
        """`topic` with the app's prefix, as `app.topic`, `append` and the topic creation take it."""
        return f"{self.topic_prefix}{topic}"

    def safe_table(self, name: str, *, partitions: int, max_row_bytes: int = 900_000) -> SafeTable:
        """Declares a table; `partitions` must equal those of the topics whose agents use it."""
        table = SafeTable(
            self, name=name, partitions=partitions, memory=self._memory, max_row_bytes=max_row_bytes, prefix=self.topic_prefix
        )
        self.tables.add(table)
        self.safe_tables.append(table)
        return table

    def channel(self, *, maxsize: int | None = None, **kwargs: Any) -> LocalChannel:
        """An in-memory edge between agents of this worker."""
        return LocalChannel(self, maxsize=maxsize, **kwargs)

    def on_assigned(self, callback: PartitionsCallback) -> PartitionsCallback:
        """`callback` is awaited with newly owned partition numbers, after table recovery and before their first event."""
        self.assigned_callbacks.append(callback)
        return callback

    def on_revoked(self, callback: PartitionsCallback) -> PartitionsCallback:
        """`callback` is awaited with partition numbers that are no longer ours, or may have been somebody else's meanwhile."""
        self.revoked_callbacks.append(callback)
        return callback

    def on_stopping(self, callback: StopCallback) -> StopCallback:
        """`callback` is awaited when the worker stops: no new handlers begin, those at work may end, and `append` still works."""
        self.stopping_callbacks.append(callback)
        return callback

    # -- for health and tests

    @property
    def ready(self) -> asyncio.Event:
        """Set while all assigned partitions are recovered, positioned and delivered."""
        return self.membership.ready

    @property
    def partitions(self) -> frozenset[int]:
        """Partition numbers of the agents' topics that this worker holds."""
        return self.membership.partitions

    def committed(self) -> dict[TopicPartition, int | None]:
        """The last committed offset of each partition held."""
        return {tp: claim.committed for tp, claim in self._source_claims()}

    def lowest_unfinished(self) -> dict[TopicPartition, int]:
        """The offset from which each partition held would be delivered again after a crash now."""
        return {tp: claim.commit_point for tp, claim in self._source_claims()}

    def at_work(self) -> dict[TopicPartition, int]:
        """The lowest offset of each partition held whose event has begun and is not done."""
        found: dict[TopicPartition, int] = {}
        for event in (event for intake in self.consumer_of_records.intakes for event in intake.at_work):
            if event.claim is not None and event.claim.alive:
                found[event.claim.tp] = min(event.offset, found.get(event.claim.tp, event.offset))
        return found

    def begins_nothing(self) -> dict[str, int]:
        """Agents whose events wait while none is at work, and how many have ever begun."""
        return {intake.name: intake.begun for intake in self.consumer_of_records.intakes if intake.waiting and not intake.in_flight}

    def oldest_unfinished_ms(self, topics: Iterable[str], partition: int) -> int | None:
        """When the oldest event that these topics' partition holds and that is not done was appended; None where there is none."""
        claims = (self.membership.claims.get(TopicPartition(topic, partition)) for topic in topics)
        return min((ms for claim in claims if claim is not None and (ms := claim.oldest_ms) is not None and ms > 0), default=None)

    def in_flight(self) -> dict[str, int]:
        """Handlers at work, by agent."""
        return {intake.name: intake.in_flight for intake in self.consumer_of_records.intakes}

    def waiting(self) -> dict[str, int]:
        """Events delivered and not begun, by agent."""
        return {intake.name: intake.waiting for intake in self.consumer_of_records.intakes}

    def _source_claims(self) -> Iterable[tuple[TopicPartition, Any]]:
        changelogs = {table.changelog_spec.name for table in self.safe_tables}
        return [(tp, claim) for tp, claim in self.membership.claims.items() if tp.topic not in changelogs and claim.next_offset >= 0]

    # -- parts

    @property
    def membership(self) -> Membership:
        """The worker's part in its group."""
        if self._membership is None:
            self._membership = Membership(
                self, session_timeout_s=self.conf.broker_session_timeout, revoke_grace_s=self._timings["revoke_grace_s"]
            )
        return self._membership

    @property
    def consumer_of_records(self) -> SafeConsumer:
        """Faust's `consumer`, with its type."""
        return cast(SafeConsumer, self.consumer)

    @property
    def producer_of_records(self) -> SafeProducer:
        """Faust's `producer`, with its type."""
        return cast(SafeProducer, self.producer)

    async def recover(self, changelogs: set[TopicPartition]) -> None:
        """Makes the tables' partitions complete and usable."""
        await recover(self.safe_tables, changelogs, self.brokers, self.consumer_of_records.kafka)
        by_topic = {table.changelog_spec.name: table for table in self.safe_tables}
        for tp in changelogs:
            by_topic[tp.topic].own(tp.partition, self.membership.claims[tp])

    # -- Faust's life cycle

    def _new_transport(self) -> SafeTransport:
        return SafeTransport(self.conf.broker_consumer, self)

    def _new_producer_transport(self) -> SafeTransport:
        return SafeTransport(self.conf.broker_producer, self)

    def _init_fixups(self) -> list[Any]:
        return []

    def on_init_dependencies(self) -> Iterable[Any]:
        """Without Faust's monitor, which samples every event."""
        return self.boot_strategy.server()

    async def on_first_start(self) -> None:
        self.conf.datadir.mkdir(parents=True, exist_ok=True)
        await super().on_first_start()
        # Rebalances are handled by Membership: Faust's flow control would empty the local channels.
        self.flow_control.resume()

    async def _wait_for_table_recovery_completed(self) -> bool:
        return bool(await self.wait_for_stopped(self.ready))  # type: ignore[arg-type]

    async def _stop_consumer(self) -> None:
        """No new handlers, a limited wait for those at work, then they are ended; the rest is committed by the consumer."""
        if self._consumer is None:
            return
        await self.membership.stop()
        self.membership.suspend()
        intakes = self.consumer_of_records.intakes
        await asyncio.gather(
            *(stopping() for stopping in self.stopping_callbacks), *(intake.idle(self._timings["drain_s"]) for intake in intakes)
        )
        await asyncio.gather(*(intake.cancel() for intake in intakes))
        await asyncio.gather(*(table.finish(self._timings["drain_s"]) for table in self.safe_tables))
        await self.consumer_of_records.commit()

    def FlowControlQueue(self, maxsize: int | None = None, *, clear_on_resume: bool = False) -> ThrowableQueue[Any]:
        """Queues that nothing empties behind an agent's back."""
        return ThrowableQueue(maxsize=maxsize or 0, flow_control=self.flow_control, clear_on_resume=False)


def create_app(
    app_id: str,
    brokers: Sequence[str],
    data_dir: Path,
    *,
    topic_prefix: str = "",
    store: Literal["rocksdb", "memory"] = "rocksdb",
    session_timeout_s: float = 10.0,
    heartbeat_s: float = 1.0,
    rebalance_timeout_s: float = 30.0,
    linger_ms: int = 0,
    commit_interval_s: float = 1.0,
    revoke_grace_s: float = 1.0,
    drain_s: float = 10.0,
    max_request_bytes: int = 1_000_000,
) -> SafeApp:
    """An app of consumer group `app_id` that keeps its tables under `data_dir`, one folder per worker.

    `linger_ms` 0 is for latency, 5 for bulk. `revoke_grace_s` bounds how long a rebalance waits for handlers at work,
    `drain_s` how long the stop does. Raises ConfigError where the installation is not the one this package was made for.
    """
    assert_runtime()
    return SafeApp(
        app_id,
        brokers=brokers,
        topic_prefix=topic_prefix,
        memory=store == "memory",
        timings={"revoke_grace_s": revoke_grace_s, "drain_s": drain_s},
        env={},
        broker=[f"kafka://{broker}" for broker in brokers],
        datadir=data_dir,
        store="memory://" if store == "memory" else "rocksdb://",
        autodiscover=False,
        web_enabled=False,
        topic_allow_declare=False,
        topic_disable_leader=True,
        stream_wait_empty=False,
        cython_optimizations=True,
        key_serializer="raw",
        value_serializer="raw",
        TableManager=SafeTableManager,
        table_standby_replicas=0,
        broker_commit_interval=commit_interval_s,
        broker_session_timeout=session_timeout_s,
        broker_heartbeat_interval=heartbeat_s,
        broker_rebalance_timeout=rebalance_timeout_s,
        broker_request_timeout=max(30.0, session_timeout_s + 5),
        broker_max_poll_interval=7 * 86_400.0,  # a full backlog stops the polling, which is no reason to leave the group
        producer_acks=-1,
        producer_linger=linger_ms / 1000,
        producer_request_timeout=30.0,
        producer_max_request_size=max_request_bytes,
        producer_max_batch_size=BATCH_BYTES,
    )

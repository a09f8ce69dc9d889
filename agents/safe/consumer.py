"""Faust's consumer service over aiokafka, in the worker's own event loop and without Faust's ways of losing records.

Faust fetches in a second thread, hands each record to a queue per agent, and guesses from acknowledgements what may be
committed; between these steps records get dropped at a rebalance. Here the fetch loop hands records straight to the
agents' intakes, and a commit is the lowest unfinished offset of each claim.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from time import monotonic
from typing import TYPE_CHECKING, Any, cast

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.abc import ConsumerRebalanceListener
from aiokafka.errors import CommitFailedError, ConsumerStoppedError, IllegalStateError, KafkaError
from aiokafka.structs import OffsetAndMetadata
from faust.transport.consumer import Consumer
from faust.types import TP
from mode import Service

from ...pipeline.errors import ConfigError
from .claims import Claim
from .delivery import Delivered, Intake
from .rereader import Rereader

if TYPE_CHECKING:
    from .application import SafeApp

log = logging.getLogger(__name__)

POLL_RECORDS = 500
FETCH_MAX_WAIT_MS = 100
FETCH_TIMEOUT_MS = 1000
PREFETCH_BACKOFF_S = 0.05
COMMIT_TIMEOUT_S = 10.0
TOPIC_PATIENCE_S = 5.0


class _Listener(ConsumerRebalanceListener):  # type: ignore[misc]
    """Forwards the group's decisions; awaited by aiokafka within its join."""

    def __init__(self, app: "SafeApp") -> None:
        self._app = app
        self._membership = app.membership

    async def on_partitions_revoked(self, revoked: Iterable[TopicPartition]) -> None:
        try:
            await self._membership.on_revoked()
        except Exception as exc:
            await self._app.crash(exc)  # aiokafka would only log it

    async def on_partitions_assigned(self, assigned: Iterable[TopicPartition]) -> None:
        try:
            await self._membership.on_assigned(frozenset(assigned))
        except Exception as exc:
            await self._app.crash(exc)  # aiokafka would only log it


class SafeConsumer(Consumer):
    """Fetches, delivers and commits for one worker."""

    app: "SafeApp"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.kafka = self._new_kafka()
        self._intakes: dict[str, tuple[Intake, ...]] = {}
        self._room = asyncio.Event()
        self._commit_lock = asyncio.Lock()
        self._rereader = Rereader(self.app.brokers, int(self.app.conf.broker_request_timeout * 1000))
        self._frozen = False

    def _new_kafka(self) -> AIOKafkaConsumer:
        conf = self.app.conf
        return AIOKafkaConsumer(
            client_id=conf.broker_client_id,
            group_id=conf.id,
            bootstrap_servers=list(self.app.brokers),
            partition_assignment_strategy=[self.app.assignor],
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            max_poll_records=POLL_RECORDS,
            max_poll_interval_ms=int(conf.broker_max_poll_interval * 1000),
            max_partition_fetch_bytes=conf.consumer_max_fetch_size,
            fetch_max_wait_ms=FETCH_MAX_WAIT_MS,
            fetch_min_bytes=1,
            request_timeout_ms=int(conf.broker_request_timeout * 1000),
            session_timeout_ms=int(conf.broker_session_timeout * 1000),
            rebalance_timeout_ms=int(conf.broker_rebalance_timeout * 1000),
            heartbeat_interval_ms=int(conf.broker_heartbeat_interval * 1000),
            isolation_level="read_uncommitted",
        )

    # -- life

    async def on_start(self) -> None:
        await self.kafka.start()
        # While data that was not drained yet lies in the buffer, aiokafka holds the next fetch back this long.
        self.kafka._fetcher._prefetch_backoff = PREFETCH_BACKOFF_S
        self._beat = self.kafka._coordinator._do_heartbeat
        self.kafka._coordinator._do_heartbeat = self._heartbeat

    async def _heartbeat(self) -> bool:
        sent_at = monotonic()
        answered = bool(await self._beat())
        if answered:
            self.app.membership.lease.extend(sent_at)
        return answered

    async def on_stop(self) -> None:
        await self.commit()
        await self._rereader.stop()
        await self.kafka.stop()

    async def subscribe(self, topics: Iterable[str]) -> None:
        wanted = set(topics)
        await self._verify(wanted)
        self.kafka.subscribe(topics=sorted(wanted), listener=_Listener(self.app))

    async def _verify(self, wanted: set[str]) -> None:
        """Every topic exists, has an agent that commits safely, and every changelog has its table's partitions.

        A topic that was made a moment ago may not be known to every broker yet, hence the patience.
        """
        changelogs = {table.changelog_spec.name: table.changelog_spec.partitions for table in self.app.safe_tables}
        plain = sorted(wanted - self._intakes.keys() - changelogs.keys())
        if plain:
            raise ConfigError(
                f"agents read {', '.join(plain)} without consume(): their records could be lost. Use consume() as the agent's body."
            )
        until = monotonic() + TOPIC_PATIENCE_S
        while missing := sorted(wanted - (counts := await self._partition_counts()).keys()):
            if monotonic() > until:
                raise ConfigError(
                    f"topics do not exist: {', '.join(missing)}. Nothing would be read from them; create the topics, then start again."
                )
            await asyncio.sleep(0.2)
        for name, partitions in changelogs.items():
            if counts[name] != partitions:
                raise ConfigError(f"changelog {name} has {counts[name]} partitions, its table needs {partitions}: rows would be lost.")

    async def _partition_counts(self) -> dict[str, int]:
        cluster = await self.kafka._client.fetch_all_metadata()
        return {topic: len(cluster.partitions_for_topic(topic) or ()) for topic in cluster.topics(exclude_internal_topics=False)}

    # -- delivery

    def open_intake(self, topics: frozenset[str], intake: Intake) -> None:
        """From now on `intake` gets the records of `topics`."""
        intake.suspended = self.app.membership.suspended
        for topic in topics:
            self._intakes[topic] = (*self._intakes.get(topic, ()), intake)

    async def close_intake(self, topics: frozenset[str], intake: Intake) -> None:
        """Its agent stopped: unfinished events are delivered again if the agent comes back."""
        for topic in topics:
            self._intakes[topic] = tuple(other for other in self._intakes[topic] if other is not intake)
        await intake.cancel()
        if not self.app.should_stop:
            self.app.membership.rewind(topics)

    @property
    def intakes(self) -> tuple[Intake, ...]:
        """Those of all agents, each once."""
        return tuple({id(intake): intake for group in self._intakes.values() for intake in group}.values())

    def room(self) -> None:
        """An intake that was full has room again."""
        self._room.set()

    def freeze(self) -> None:
        """No more deliveries and no more commits: what a crash would leave."""
        self._frozen = True

    @Service.task
    async def _deliver_records(self) -> None:
        try:
            while not self.should_stop and not self._frozen:
                self._room.clear()
                open_tps = self._open_partitions()
                if open_tps is not None and not open_tps:
                    await self._room.wait()
                    continue
                fetched = await self._fetch(open_tps)
                touched: set[Intake] = set()
                for tp, records in fetched.items():
                    touched.update(self._deliver(tp, records))
                for intake in touched:
                    intake.pump()
                if fetched:
                    await asyncio.sleep(0)  # a full buffer never suspends above: let the handlers run
        except ConsumerStoppedError:
            if not self.should_stop:
                raise

    async def _fetch(self, open_tps: list[TopicPartition] | None) -> dict[TopicPartition, list[Any]]:
        """Nothing where an intake that was full has room again: what lies there need not wait for what the others get."""
        if open_tps is None:
            return await self.kafka.getmany(timeout_ms=FETCH_TIMEOUT_MS)  # type: ignore[no-any-return]
        fetching = asyncio.ensure_future(self.kafka.getmany(*open_tps, timeout_ms=FETCH_TIMEOUT_MS))
        room = asyncio.ensure_future(self._room.wait())
        try:
            await asyncio.wait({fetching, room}, return_when=asyncio.FIRST_COMPLETED)
            return fetching.result() if fetching.done() else {}
        finally:
            # Where it is waiting, it has taken nothing out of the client's buffer yet.
            for waiting in (fetching, room):
                waiting.cancel()

    def _open_partitions(self) -> list[TopicPartition] | None:
        """None where nothing is held back, else the partitions whose intakes all have room."""
        full = {topic for topic, intakes in self._intakes.items() if any(intake.full for intake in intakes)}
        if not full:
            return None
        return [tp for tp in self.app.membership.claims if tp.topic not in full]

    def _deliver(self, tp: TopicPartition, records: list[Any]) -> tuple[Intake, ...]:
        claim = self.app.membership.claims.get(tp)
        intakes = self._intakes.get(tp.topic, ())
        if claim is None or not claim.ready or not intakes or self._frozen:
            return ()  # not positioned: it will be sought to the first undelivered record
        for at, record in enumerate(records):
            offset = record.offset
            if offset < claim.next_offset:
                continue  # a rest of a fetch from before a seek
            if at == 0 and not self._gap_is_real(claim, offset):
                return ()
            claim.hand_out(offset, len(intakes), record.timestamp)
            event = Delivered(
                tp.topic, tp.partition, offset, record.key, record.value, record.headers, record.timestamp, claim
            )  # fmt: skip
            for intake in intakes:
                intake.offer(event)
        return intakes

    def _gap_is_real(self, claim: Claim, offset: int) -> bool:
        wanted = claim.next_offset
        if claim.check_gap(offset, self.kafka.seek):
            if offset > wanted + 1:
                log.warning("%s: offsets %d to %d do not exist on the broker", claim.tp, wanted, offset - 1)
            return True
        log.info("%s: wanted offset %d, got %d, seeking back", claim.tp, wanted, offset)
        return False

    async def reread(self, tp: TopicPartition, offsets: Sequence[int]) -> dict[int, Delivered]:
        """Records that were delivered and let go, by offset; those that are gone from the log are missing. Raises KafkaError."""
        return await self._rereader.read(tp, offsets)

    # -- commits

    async def commit(self, topics: Any = None, start_new_transaction: bool = True) -> bool:
        """Commits the lowest unfinished offset of each partition; False where nothing could or had to be committed."""
        async with self._commit_lock:
            if self._frozen:
                return False
            assignment = self.kafka.assignment()
            points = {
                tp: (claim, claim.commit_point)
                for tp, claim in self.app.membership.claims.items()
                if claim.alive and claim.next_offset >= 0 and claim.commit_point != claim.committed and tp in assignment
            }
            if not points:
                return False
            offsets = {tp: OffsetAndMetadata(point, "") for tp, (_, point) in points.items()}
            try:
                async with asyncio.timeout(COMMIT_TIMEOUT_S):
                    await self.kafka.commit(offsets)
            except (CommitFailedError, IllegalStateError) as exc:
                log.info("offsets not committed, the group is rebalancing: %s", exc)
                return False
            except (KafkaError, TimeoutError) as exc:
                log.warning("offsets not committed, their events would be delivered again after a crash: %r", exc)
                return False
            for claim, point in points.values():
                claim.committed = point
            return True

    @Service.task
    async def _commit_livelock_detector(self) -> None:
        """Faust's looks at its own read offsets, which are not used here."""

    async def _commit(self, offsets: Mapping[TP, int]) -> bool:
        return await self.commit()

    # -- what Faust asks of a consumer

    def assignment(self) -> set[TP]:
        return {TP(tp.topic, tp.partition) for tp in self.kafka.assignment()}

    def topic_partitions(self, topic: str) -> int | None:
        found = self.kafka.partitions_for_topic(topic)
        return len(found) if found else None

    async def seek_to_committed(self) -> Mapping[TP, int]:
        return {TP(*tp): claim.committed for tp, claim in self.app.membership.claims.items() if claim.committed is not None}

    async def perform_seek(self) -> None:
        """Positions are set once, on assignment, by `Membership`."""

    async def position(self, tp: TP) -> int | None:
        return cast("int | None", await self.kafka.position(tp))

    async def seek_wait(self, partitions: Mapping[TP, int]) -> None:
        for tp, offset in partitions.items():
            self.kafka.seek(TopicPartition(*tp), offset)

    async def _seek(self, partition: TP, offset: int) -> None:
        self.kafka.seek(TopicPartition(*partition), offset)

    def highwater(self, tp: TP) -> int:
        return cast(int, self.kafka.highwater(TopicPartition(*tp)))

    async def highwaters(self, *partitions: TP) -> Mapping[TP, int]:
        return cast(Mapping[TP, int], await self.kafka.end_offsets([TopicPartition(*tp) for tp in partitions]))

    async def earliest_offsets(self, *partitions: TP) -> Mapping[TP, int]:
        return cast(Mapping[TP, int], await self.kafka.beginning_offsets([TopicPartition(*tp) for tp in partitions]))

    def _new_topicpartition(self, topic: str, partition: int) -> TP:
        return TP(topic, partition)

    def close(self) -> None:
        """Nothing to do beside `stop`."""

    async def create_topic(self, topic: str, partitions: int, replication: int, **kwargs: Any) -> None:
        raise ConfigError(f"topic {topic} is created before the start, not by a worker")

    async def getmany(self, timeout: float) -> AsyncIterator[Any]:
        raise ConfigError("records are delivered by _deliver_records only")
        yield  # an async generator, as Faust's is

    async def _getmany(self, active_partitions: set[TP] | None, timeout: float) -> Any:
        raise ConfigError("records are delivered by _deliver_records only")

    def _to_message(self, tp: TP, record: Any) -> Any:
        raise ConfigError("records are delivered by _deliver_records only")

    def key_partition(self, topic: str, key: bytes | None, partition: int | None = None) -> int | None:
        return partition

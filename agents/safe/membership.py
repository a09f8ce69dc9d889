"""The worker's part in its consumer group: which partitions are claimed, and the steps between two generations.

    revoked    every claim is put in doubt; handlers get a moment to finish; commit
    assigned   claims that nobody else can have had in between are kept with their events in flight, the rest is lost
    settled    (in the background) tables recovered, partitions positioned at max(committed, earliest), agents told

A claim is kept where our generation is followed by the very next one: the group's partitions were ours until it began.
"""

import asyncio
import logging
from collections import defaultdict
from collections.abc import Iterable
from time import monotonic
from typing import TYPE_CHECKING

from aiokafka import TopicPartition
from aiokafka.errors import IllegalStateError, KafkaError

from ...pipeline.errors import ConfigError
from .claims import Claim, Lease

if TYPE_CHECKING:
    from .application import SafeApp

log = logging.getLogger(__name__)

SETTLE_RETRY_S = 1.0


class Membership:
    """All claims of one worker, and their transitions."""

    def __init__(self, app: "SafeApp", *, session_timeout_s: float, revoke_grace_s: float) -> None:
        self.claims: dict[TopicPartition, Claim] = {}
        self.suspended = True
        """No handler may begin: before the first assignment, during a rebalance, after the stop."""
        self.ready = asyncio.Event()
        """All assigned partitions are recovered, positioned and being delivered."""
        self.generation = -1
        self.lease = Lease(session_timeout_s)
        self._app = app
        self._grace_s = revoke_grace_s
        self._decided = asyncio.Event()
        self._settling: asyncio.Task[None] | None = None
        self._announced: frozenset[int] = frozenset()
        self._lapsed: set[int] = set()
        self._changelogs = frozenset(table.changelog_spec.name for table in app.safe_tables)

    @property
    def partitions(self) -> frozenset[int]:
        """Partition numbers of the agents' topics that are ours."""
        return frozenset(tp.partition for tp in self.claims if tp.topic not in self._changelogs)

    async def still_ours(self, claim: Claim | None) -> bool:
        """Waits while `claim` is in doubt, then says whether it holds."""
        while claim is not None and claim.alive and not claim.current:
            await self._decided.wait()
            if claim.alive and not claim.current:
                await asyncio.sleep(0.05)  # recovery, or the next heartbeat, is due
        return claim is None or claim.alive

    def rewind(self, topics: Iterable[str]) -> None:
        """An agent died with events in flight: hand its topics out again from the lowest unfinished offset."""
        wanted = set(topics)
        for tp, old in list(self.claims.items()):
            if tp.topic in wanted and old.ready:
                fresh = self.claims[tp] = old.successor()
                if fresh.settled:
                    self._app.consumer_of_records.kafka.seek(tp, fresh.next_offset)

    # -- the two callbacks of the group

    async def on_revoked(self) -> None:
        """Puts everything in doubt, waits a moment for handlers at work, and commits what is done."""
        self.ready.clear()
        self._decided.clear()
        await self._stop_settling()
        self.suspend()
        await asyncio.gather(*(intake.idle(self._grace_s) for intake in self._app.consumer_of_records.intakes))
        for claim in self.claims.values():
            claim.settled = False
        for table in self._app.safe_tables:
            await table.quiesce()
        await self._app.consumer_of_records.commit()

    async def on_assigned(self, assigned: frozenset[TopicPartition]) -> None:
        """Decides at once what was kept; everything that takes time happens in a task of its own.

        aiokafka sends no heartbeats until this returns.
        """
        consumer = self._app.consumer_of_records
        self.lease.extend(monotonic())
        self._check_colocation(assigned)
        generation = int(consumer.kafka._coordinator.generation)
        consecutive = generation == self.generation + 1
        self.generation = self._app.consumer_generation_id = generation
        kept = {tp for tp, claim in self.claims.items() if consecutive and tp in assigned and claim.alive and claim.ready}
        for tp in set(self.claims) - kept:
            self.claims.pop(tp).lose()
            self._lapsed.add(tp.partition)
        for table in self._app.safe_tables:
            table.forget_lost()
        fresh = assigned - kept
        for tp in fresh:
            self.claims[tp] = Claim(tp, self.lease)
        hold = [tp for tp in assigned if tp in fresh or tp.topic in self._changelogs]
        consumer.kafka.pause(*hold)
        for tp in kept:
            if tp.topic not in self._changelogs:
                consumer.kafka.seek(tp, self.claims[tp].next_offset)
            self.claims[tp].settled = True
        self._decided.set()
        self.resume()
        log.info("generation %d: %d partitions kept, %d new", generation, len(kept), len(fresh))
        self._settling = asyncio.create_task(self._settle(frozenset(fresh)))

    def _check_colocation(self, assigned: frozenset[TopicPartition]) -> None:
        """Topics with equal partition counts must have equal partitions here: an event's rows lie on its own worker."""
        consumer = self._app.consumer_of_records
        numbers: dict[int, dict[str, frozenset[int]]] = defaultdict(dict)
        for topic in consumer.kafka.subscription():
            count = consumer.topic_partitions(topic) or 0
            numbers[count][topic] = frozenset(tp.partition for tp in assigned if tp.topic == topic)
        for count, topics in numbers.items():
            if len(set(topics.values())) > 1:
                found = ", ".join(f"{topic} {sorted(partitions)}" for topic, partitions in sorted(topics.items()))
                raise ConfigError(
                    f"of topics with {count} partitions this worker got different ones ({found}): their records would miss their rows. "
                    "Run the same version with the same topics on all workers."
                )

    # -- between them

    def suspend(self) -> None:
        """No handler begins until `resume`."""
        self.suspended = True
        for intake in self._app.consumer_of_records.intakes:
            intake.suspended = True

    def resume(self) -> None:
        """Handlers begin again; events of lost partitions are dropped."""
        self.suspended = False
        for intake in self._app.consumer_of_records.intakes:
            intake.forget_lost()
            intake.suspended = False
            intake.pump()
        self._app.consumer_of_records.room()

    async def stop(self) -> None:
        """No more transitions."""
        self.ready.clear()
        await self._stop_settling()

    async def _stop_settling(self) -> None:
        task, self._settling = self._settling, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _settle(self, fresh: frozenset[TopicPartition]) -> None:
        """Retried until it succeeds or the next rebalance ends it: without it the new partitions stay silent."""
        while True:
            try:
                await self._settle_once(fresh)
            except IllegalStateError:
                log.info("assignment changed while settling, the next one is on its way")
                return
            except (KafkaError, OSError, TimeoutError) as exc:
                log.warning("new partitions can't be recovered or positioned yet, trying again: %r", exc)
                await asyncio.sleep(SETTLE_RETRY_S)
            except Exception as exc:
                log.exception("new partitions can't be recovered: the worker stops")
                await self._app.crash(exc)
                return
            else:
                self.ready.set()
                return

    async def _settle_once(self, fresh: frozenset[TopicPartition]) -> None:
        await self._announce_lost()
        await self._app.recover({tp for tp in fresh if tp.topic in self._changelogs})
        for tp in fresh:
            if tp.topic in self._changelogs:
                self.claims[tp].settled = self.claims[tp].ready = True
        sources = sorted(tp for tp in fresh if tp.topic not in self._changelogs)
        await self._position(sources)
        new = self.partitions - self._announced
        self._announced |= new
        if new:
            for assigned in self._app.assigned_callbacks:
                await assigned(frozenset(new))
        for tp in sources:
            self.claims[tp].settled = self.claims[tp].ready = True
        self._app.consumer_of_records.kafka.resume(*sources)

    async def _announce_lost(self) -> None:
        lost = self._announced & self._lapsed  # ours again or not: somebody else may have had them in between
        if lost:
            for revoked in self._app.revoked_callbacks:
                await revoked(lost)
        self._announced -= lost
        self._lapsed.clear()

    async def _position(self, sources: list[TopicPartition]) -> None:
        """max(committed, earliest); a commit past the end means that the topic was made anew: from its beginning then."""
        if not sources:
            return
        kafka = self._app.consumer_of_records.kafka
        committed = await asyncio.gather(*(kafka.committed(tp) for tp in sources))
        first, last = await asyncio.gather(kafka.beginning_offsets(sources), kafka.end_offsets(sources))
        for tp, offset in zip(sources, committed, strict=True):
            if offset is not None and offset > last[tp]:
                log.error("%s: committed %d is past the end %d, the topic was made anew: reading from %d", tp, offset, last[tp], first[tp])
                offset = None
            start = max(offset or 0, first[tp])
            if offset is not None and start > offset:
                log.error("%s: offsets %d to %d were deleted by retention before they were done", tp, offset, start - 1)
            self.claims[tp].position(start)
            self.claims[tp].committed = offset
            kafka.seek(tp, start)

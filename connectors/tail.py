"""Follows partitions of a topic from a given offset, outside any consumer group: for views that are rebuilt, never for work."""

import asyncio
from collections.abc import Callable, Mapping, Sequence

import structlog
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError

from ..pipeline.errors import Unavailable

log = structlog.get_logger(__name__)

RETRY_S = 1.0

Apply = Callable[[int, int, bytes | None], None]
"""(partition, offset, value): must not raise for a value that can't be understood."""


class Tail:
    """One consumer without a group. `assign` may be called again as partitions come and go."""

    def __init__(self, brokers: Sequence[str], topic: str, apply: Apply) -> None:
        self._brokers = list(brokers)
        self._topic = topic
        self._apply = apply
        self._consumer: AIOKafkaConsumer | None = None
        self._task: asyncio.Task[None] | None = None
        self._assigned: dict[TopicPartition, int] = {}
        self._caught_up: dict[TopicPartition, int] = {}
        self._begin: set[TopicPartition] = set()
        """Assigned since the last look: read from their offset, even if they were followed before."""
        self._progress = asyncio.Condition()
        self._changed = asyncio.Event()

    async def start(self) -> None:
        consumer = AIOKafkaConsumer(bootstrap_servers=self._brokers, enable_auto_commit=False, auto_offset_reset="earliest")
        await consumer.start()
        self._consumer = consumer
        self._task = asyncio.create_task(self._run(consumer), name=f"tail {self._topic}")

    async def partitions(self) -> list[int]:
        """Of the topic, by the broker's word: a consumer knows only the topics that it follows. Raises `Unavailable`."""
        admin = AIOKafkaAdminClient(bootstrap_servers=self._brokers)
        await admin.start()
        try:
            (topic,) = await admin.describe_topics([self._topic])
        finally:
            await admin.close()
        found = sorted(int(p["partition"]) for p in topic["partitions"])
        if topic["error_code"] != 0 or not found:
            raise Unavailable(f"the topic {self._topic} does not exist: run `inference-engine topics create`")
        return found

    def assign(self, offsets: Mapping[int, int]) -> None:
        """Follows exactly these partitions: new ones from the given offset, known ones from where they are.

        One that went and came back is new: whoever follows it has a new view to fill.
        """
        wanted = {TopicPartition(self._topic, p): offset for p, offset in offsets.items()}
        self._begin |= wanted.keys() - self._assigned.keys()
        self._caught_up = {tp: at for tp, at in self._caught_up.items() if tp not in self._begin}
        self._assigned = wanted
        self._changed.set()

    async def follow_all(self) -> None:
        """Follows the whole topic from its beginning. Raises `Unavailable` where there is no such topic."""
        self.assign(dict.fromkeys(await self.partitions(), 0))

    async def caught_up(self, deadline_s: float) -> None:
        """Returns when everything written before the call has been applied. Raises `Unavailable` after `deadline_s`."""
        assert self._consumer is not None
        wanted = list(self._assigned)
        ends = await self._consumer.end_offsets(wanted) if wanted else {}
        try:
            async with asyncio.timeout(deadline_s), self._progress:
                await self._progress.wait_for(lambda: all(self._caught_up.get(tp, 0) >= end for tp, end in ends.items()))
        except TimeoutError:
            raise Unavailable(f"the topic {self._topic} could not be read within {deadline_s:.0f} s: is the broker reachable?") from None

    async def _reassign(self, consumer: AIOKafkaConsumer) -> None:
        self._changed.clear()
        wanted = dict(self._assigned)
        known = {tp: at for tp, at in self._caught_up.items() if tp in wanted}
        self._begin.clear()
        consumer.assign(list(wanted))
        for tp, start in wanted.items():
            if tp in known:
                consumer.seek(tp, known[tp])
            elif start <= 0:
                await consumer.seek_to_beginning(tp)
            else:
                consumer.seek(tp, start)
        self._caught_up = known

    async def _run(self, consumer: AIOKafkaConsumer) -> None:
        while True:
            try:
                await self._follow(consumer)
            except KafkaError as error:
                # A view that stopped here would be silently out of date for the rest of the worker's life.
                log.warning("a topic can't be read for the moment; what it says is heard later", topic=self._topic, error=repr(error))
                await asyncio.sleep(RETRY_S)

    async def _follow(self, consumer: AIOKafkaConsumer) -> None:
        if self._changed.is_set():
            await self._reassign(consumer)
        if not self._assigned:
            await self._changed.wait()
            return
        for tp, records in (await consumer.getmany(timeout_ms=100, max_records=500)).items():
            for record in records:
                if tp in self._begin:
                    break  # for the view that went
                self._apply(tp.partition, record.offset, record.value)
                await asyncio.sleep(0)  # hundreds of packets of vectors take seconds: others go in between
        async with self._progress:
            for tp in consumer.assignment() - self._begin:
                at = await consumer.position(tp)
                if tp not in self._begin:
                    self._caught_up[tp] = at
            self._progress.notify_all()

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if self._consumer is not None:
            await self._consumer.stop()

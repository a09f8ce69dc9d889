"""Reads records a second time, beside the group: for events that wait for their turn and are not kept in memory."""

import asyncio
from collections.abc import Sequence

from aiokafka import AIOKafkaConsumer, TopicPartition

from .delivery import Delivered

READ_TIMEOUT_S = 30.0
FETCH_BYTES = 1024 * 1024


class Rereader:
    """One consumer without a group, made when it is first needed; it moves no offsets."""

    def __init__(self, brokers: Sequence[str], request_timeout_ms: int) -> None:
        self._brokers = brokers
        self._timeout_ms = request_timeout_ms
        self._kafka: AIOKafkaConsumer | None = None
        self._lock = asyncio.Lock()

    async def read(self, tp: TopicPartition, offsets: Sequence[int]) -> dict[int, Delivered]:
        """Records at these offsets (ascending); missing where the log does not hold them any more.

        Raises KafkaError, or TimeoutError where the broker gives nothing for long: ask again.
        """
        async with self._lock, asyncio.timeout(READ_TIMEOUT_S):
            kafka = await self._started()
            kafka.assign([tp])
            first = int((await kafka.beginning_offsets([tp]))[tp])
            left = [offset for offset in offsets if offset >= first]
            if not left:
                return {}
            kafka.seek(tp, left[0])
            return await self._collect(kafka, tp, left)

    async def _collect(self, kafka: AIOKafkaConsumer, tp: TopicPartition, left: Sequence[int]) -> dict[int, Delivered]:
        wanted, last = set(left), left[-1]
        found: dict[int, Delivered] = {}
        while await kafka.position(tp) <= last:
            for record in (await kafka.getmany(tp, timeout_ms=1000)).get(tp, ()):
                if record.offset in wanted:
                    found[record.offset] = Delivered(
                        tp.topic, tp.partition, record.offset, record.key, record.value, record.headers, record.timestamp
                    )
        return found

    async def _started(self) -> AIOKafkaConsumer:
        if self._kafka is None:
            kafka = AIOKafkaConsumer(
                bootstrap_servers=list(self._brokers),
                enable_auto_commit=False,
                auto_offset_reset="none",
                isolation_level="read_uncommitted",
                max_partition_fetch_bytes=FETCH_BYTES,
                request_timeout_ms=self._timeout_ms,
            )
            try:
                await kafka.start()
            except BaseException:
                await kafka.stop()
                raise
            self._kafka = kafka
        return self._kafka

    async def stop(self) -> None:
        """Ends it; a reading under way fails."""
        kafka, self._kafka = self._kafka, None
        if kafka is not None:
            await kafka.stop()

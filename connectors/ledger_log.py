"""Reads the ledger: a partition from an offset to its end, or one packet.

Replay is `read_committed`: an intent whose transaction was aborted was never sent, since sending waits for the commit. A
reader that sees uncommitted records (Faust's consumer does) may take an aborted intent for an open one; that errs on the
safe side: it is waited for, then booked at its cap.
"""

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Protocol

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError, OffsetOutOfRangeError

from ..pipeline.errors import Rejected, Unavailable

_PACKETS_KEPT = 8


class LedgerReader(Protocol):
    """What the ledger stage needs of it."""

    async def end(self, partition: int) -> int: ...

    def replay(self, partition: int, from_offset: int) -> AsyncIterator[tuple[int, bytes]]: ...

    async def fetch(self, partition: int, offset: int) -> bytes: ...

    async def close(self) -> None: ...


class LedgerLog:
    """The ledger topic of one cluster. A reader without a group: it moves no offsets."""

    def __init__(self, brokers: str, topic: str, *, request_timeout_s: float = 30.0) -> None:
        self._brokers = brokers
        self._topic = topic
        self._timeout_ms = int(request_timeout_s * 1000)
        self._fetcher: AIOKafkaConsumer | None = None
        self._fetching = asyncio.Lock()
        self._fetched: OrderedDict[tuple[int, int], bytes] = OrderedDict()

    async def end(self, partition: int) -> int:
        """The offset behind the last record, open transactions included. Raises `Unavailable`."""
        tp = TopicPartition(self._topic, partition)
        async with self._translated(tp), self._open(tp, isolation="read_uncommitted") as consumer:
            return int((await consumer.end_offsets([tp]))[tp])

    async def replay(self, partition: int, from_offset: int) -> AsyncIterator[tuple[int, bytes]]:
        """All committed packets from `from_offset` (or the oldest kept) to the end as it was at the call, in order.

        Call it as the owner: an open transaction of a previous owner would hold its reader up. Raises `Unavailable`.
        """
        end = await self.end(partition)
        tp = TopicPartition(self._topic, partition)
        async with self._translated(tp), self._open(tp) as consumer:
            oldest = int((await consumer.beginning_offsets([tp]))[tp])
            consumer.seek(tp, max(oldest, from_offset))
            while await consumer.position(tp) < end:
                for record in (await consumer.getmany(tp, timeout_ms=1_000)).get(tp, ()):
                    if record.value is not None:
                        yield record.offset, record.value

    async def fetch(self, partition: int, offset: int) -> bytes:
        """The packet of outcomes at this offset. Raises `Rejected` where it is not kept any more, `Unavailable`."""
        tp = TopicPartition(self._topic, partition)
        async with self._fetching, self._translated(tp):
            # The members of one packet are asked for one after the other.
            packet = self._fetched.get((partition, offset))
            if packet is None:
                packet = await self._fetch(tp, offset)
                self._fetched[partition, offset] = packet
                if len(self._fetched) > _PACKETS_KEPT:
                    self._fetched.popitem(last=False)
            return packet

    async def _fetch(self, tp: TopicPartition, offset: int) -> bytes:
        if self._fetcher is None:
            # Outcomes are not part of any transaction. Readers of committed records see none that lies behind an open one: for a moment
            # it would look as if it were not kept any more.
            consumer = self._consumer("read_uncommitted")
            await consumer.start()
            self._fetcher = consumer
        self._fetcher.assign([tp])
        self._fetcher.seek(tp, offset)
        end = int((await self._fetcher.end_offsets([tp]))[tp])
        try:
            while await self._fetcher.position(tp) < end:
                for record in (await self._fetcher.getmany(tp, timeout_ms=1_000, max_records=1)).get(tp, ()):
                    if record.offset == offset and record.value is not None:
                        return bytes(record.value)
                    raise _gone(tp, offset)
        except OffsetOutOfRangeError:
            raise _gone(tp, offset) from None
        raise _gone(tp, offset)

    async def close(self) -> None:
        if self._fetcher is not None:
            await self._fetcher.stop()

    @asynccontextmanager
    async def _open(self, tp: TopicPartition, isolation: str = "read_committed") -> AsyncIterator[AIOKafkaConsumer]:
        consumer = self._consumer(isolation)
        try:
            await consumer.start()
            consumer.assign([tp])
            yield consumer
        finally:
            await consumer.stop()

    def _consumer(self, isolation: str) -> AIOKafkaConsumer:
        return AIOKafkaConsumer(
            bootstrap_servers=self._brokers,
            isolation_level=isolation,
            enable_auto_commit=False,
            auto_offset_reset="none",
            request_timeout_ms=self._timeout_ms,
            max_partition_fetch_bytes=8 * 1024 * 1024,
        )

    @asynccontextmanager
    async def _translated(self, tp: TopicPartition) -> AsyncIterator[None]:
        try:
            yield
        except KafkaError as error:
            raise Unavailable(f"{tp.topic}/{tp.partition} could not be read ({error!r}): nothing of it is paid until it is") from error


def _gone(tp: TopicPartition, offset: int) -> Rejected:
    return Rejected(
        f"the answer at offset {offset} of {tp.topic}/{tp.partition} is not kept any more: it was paid for, and is not paid again",
        code="answer_expired",
    )

"""The ledger topic in memory, fencing included: for tests, held to the real one's behaviour by one suite."""

import asyncio
from collections.abc import AsyncIterator

from ..pipeline.errors import Fenced, Rejected, Stale
from ..schemas.packets import join


class MemoryLedgerTopic:
    """All partitions; what it holds is visible to every owner and reader made of it."""

    def __init__(self) -> None:
        self.packets: dict[int, list[bytes]] = {}
        self.generation: dict[int, int] = {}

    async def append(self, topic: str, key: bytes | None, value: bytes, *, partition: int | None = None) -> int:
        """The plain append: never fenced."""
        await asyncio.sleep(0)
        packets = self.packets.setdefault(partition or 0, [])
        packets.append(value)
        return len(packets) - 1

    async def end(self, partition: int) -> int:
        return len(self.packets.get(partition, ()))

    async def replay(self, partition: int, from_offset: int) -> AsyncIterator[tuple[int, bytes]]:
        for offset, packet in list(enumerate(self.packets.get(partition, ())))[from_offset:]:
            yield offset, packet

    async def fetch(self, partition: int, offset: int) -> bytes:
        packets = self.packets.get(partition, [])
        if not 0 <= offset < len(packets):
            raise Rejected(
                f"the answer at offset {offset} is not kept any more: it was paid for, and is not paid again", code="answer_expired"
            )
        return packets[offset]

    async def close(self) -> None:
        """Nothing is held."""


class MemoryFencedLog:
    """One owner's way into the topic."""

    def __init__(self, topic: MemoryLedgerTopic) -> None:
        self._topic = topic
        self._mine: dict[int, int] = {}
        self._queued: dict[int, list[tuple[bytes, asyncio.Future[int]]]] = {}

    async def acquire(self, partition: int) -> None:
        generation = self._topic.generation.get(partition, 0) + 1
        self._topic.generation[partition] = self._mine[partition] = generation

    async def append(self, partition: int, member: bytes, *, urgent: bool = False) -> int:
        if partition not in self._mine:
            raise Stale(f"partition {partition} is not owned here: nothing was written")
        queue = self._queued.setdefault(partition, [])
        done: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        queue.append((member, done))
        if len(queue) == 1:
            asyncio.get_running_loop().call_soon(self._commit, partition)
        return await done

    def _commit(self, partition: int) -> None:
        queue = self._queued.pop(partition, [])
        if not queue:
            return
        packets = self._topic.packets.setdefault(partition, [])
        if self._mine[partition] != self._topic.generation[partition]:
            why = Fenced(f"another worker took partition {partition} over: nothing more is paid for it here")
            for _, done in queue:
                done.set_exception(why)
            return
        packets.append(join(member for member, _ in queue))
        for _, done in queue:
            if not done.done():
                done.set_result(len(packets) - 1)

    async def release(self, partition: int) -> None:
        self._mine.pop(partition, None)
        for _, done in self._queued.pop(partition, []):
            if not done.done():
                done.set_exception(Stale(f"partition {partition} was given up: nothing was written"))

    async def close(self) -> None:
        for partition in list(self._mine):
            await self.release(partition)

"""A Kafka topic to which only the owner of a partition can append.

Its records are packets (see schemas/packets.py): the members that are committed together share them.

Each partition has a transactional id of its own: whoever takes it (`acquire`) fences the previous owner at the broker, so
that nothing which that one has not committed by then can ever become visible. Appends are committed in groups: what is
queued while a transaction commits goes into the next one, since a commit costs the same for one record and for hundreds.

librdkafka rather than aiokafka: it tells fenced, fatal, abortable and retriable errors apart (aiokafka ends its sender task
with one exception for all), and commits in a thread, off the event loop.
"""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol, TypeVar

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from ..pipeline.errors import Fenced, Stale, Unavailable
from ..schemas.packets import join

T = TypeVar("T")

_FENCED = frozenset({KafkaError._FENCED, KafkaError.PRODUCER_FENCED, KafkaError.INVALID_PRODUCER_EPOCH})


_GROUP = 1_000
"""Members in one transaction at most: an aborted one takes all of them along."""
_PACKET_BYTES = 512 * 1024


class FencedAppend(Protocol):
    """What the call stage needs of such a log."""

    async def acquire(self, partition: int) -> None: ...

    async def append(self, partition: int, member: bytes, *, urgent: bool = False) -> int: ...

    async def release(self, partition: int) -> None: ...


@dataclass(slots=True)
class _Item:
    member: bytes
    done: asyncio.Future[int]
    urgent: bool


@dataclass(slots=True)
class _Owned:
    """One partition that is ours."""

    producer: Producer
    queue: list[_Item] = field(default_factory=list)
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    hurry: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[None] | None = None
    lost: Stale | None = None


class FencedLog:
    """Appends to `topic`, as the owner of some of its partitions. Use it from one event loop."""

    def __init__(
        self,
        brokers: str,
        topic: str,
        transactional_id_prefix: str,
        *,
        bulk_interval_s: float = 0.05,
        transaction_timeout_s: float = 60.0,
    ) -> None:
        """`bulk_interval_s`: appends that are not urgent wait up to so long for company."""
        self._topic = topic
        self._prefix = transactional_id_prefix
        self._interval = bulk_interval_s
        self._timeout = transaction_timeout_s
        self._config = {
            "bootstrap.servers": brokers,
            "transaction.timeout.ms": int(transaction_timeout_s * 1000),
            # A commit flushes: lingering only keeps a group from being sent in pieces.
            "linger.ms": 100,
            "compression.type": "lz4",
            "log_level": 3,
        }
        self._owned: dict[int, _Owned] = {}
        self._threads = ThreadPoolExecutor(max_workers=32, thread_name_prefix="fenced-log")

    async def acquire(self, partition: int) -> None:
        """Takes the partition over; when it returns, no previous owner's append can become visible any more.

        Raises `Unavailable` where the broker can't be asked in time.
        """
        await self.release(partition)
        config = self._config | {"transactional.id": f"{self._prefix}{partition}"}
        producer = Producer(config)
        try:
            await self._in_thread(producer.init_transactions, self._timeout)
        except KafkaException as error:
            raise Unavailable(
                f"could not take partition {partition} of {self._topic}: {error}; nothing is paid until it is taken"
            ) from error
        owned = _Owned(producer)
        owned.task = asyncio.create_task(self._commit_groups(partition, owned), name=f"fenced-log-{partition}")
        self._owned[partition] = owned

    async def append(self, partition: int, member: bytes, *, urgent: bool = False) -> int:
        """The offset of the packet that holds `member`, once it is committed; -1 where a resend hid it.

        Raises `Fenced` (another owner took over) or `Stale` (not owned): it is not visible and never will be.
        Raises `Unavailable` where the transaction was aborted: it is not visible; append again.
        """
        owned = self._owned.get(partition)
        if owned is None:
            raise Stale(f"partition {partition} of {self._topic} is not owned here: nothing was written")
        if owned.lost is not None:
            raise owned.lost
        item = _Item(member, asyncio.get_running_loop().create_future(), urgent)
        owned.queue.append(item)
        owned.wake.set()
        if urgent:
            owned.hurry.set()
        return await item.done

    async def release(self, partition: int) -> None:
        """Gives the partition up; a commit under way is waited for, what is queued behind it fails with `Stale`."""
        owned = self._owned.pop(partition, None)
        if owned is None:
            return
        self._lose(owned, Stale(f"partition {partition} of {self._topic} was given up: nothing was written"))
        owned.wake.set()
        owned.hurry.set()
        if owned.task is not None:
            await owned.task
        # Closing joins librdkafka's threads: not on the event loop. A fenced producer has nothing to roll back; dropping
        # it is enough, and `close` would complain.
        fenced, producers = isinstance(owned.lost, Fenced), [owned.producer]
        del owned
        await self._in_thread(_close, producers, not fenced)

    async def close(self) -> None:
        for partition in list(self._owned):
            await self.release(partition)
        self._threads.shutdown(wait=False)

    async def _commit_groups(self, partition: int, owned: _Owned) -> None:
        while owned.lost is None:
            await owned.wake.wait()
            await self._gather(owned)
            group, owned.queue = owned.queue[:_GROUP], owned.queue[_GROUP:]
            if not owned.queue:
                owned.wake.clear()
                owned.hurry.clear()
            if group:
                await self._commit(partition, owned, group)

    async def _gather(self, owned: _Owned) -> None:
        if self._interval and not owned.hurry.is_set():
            try:
                async with asyncio.timeout(self._interval):
                    await owned.hurry.wait()
            except TimeoutError:
                return

    async def _commit(self, partition: int, owned: _Owned, group: Sequence[_Item]) -> None:
        packets = _pack([item.member for item in group])
        try:
            offsets = await self._in_thread(
                partial(_transact, owned.producer, self._topic, partition, [join(packet) for packet in packets])
            )
        except _Aborted as aborted:
            _fail(group, Unavailable(f"an append to {self._topic} was aborted, nothing of it is visible: {aborted}"))
        except KafkaException as error:
            self._lose(owned, self._lost(partition, error))
            assert owned.lost is not None
            _fail(group, owned.lost)
        else:
            by_member = [offset for packet, offset in zip(packets, offsets, strict=True) for _ in packet]
            for item, offset in zip(group, by_member, strict=True):
                if not item.done.done():
                    item.done.set_result(offset)

    def _lost(self, partition: int, error: KafkaException) -> Stale:
        cause: KafkaError = error.args[0]
        where = f"partition {partition} of {self._topic}"
        if cause.code() in _FENCED:
            return Fenced(f"another worker took {where} over: nothing more is paid for it here, its events stay unacknowledged")
        # Only taking the id again could help, and that would fence whoever may own the partition by now.
        return Stale(f"{where} can't be written any more ({cause.str()}): it must be assigned again before anything is paid")

    def _lose(self, owned: _Owned, why: Stale) -> None:
        if owned.lost is None:
            owned.lost = why
        queued, owned.queue = owned.queue, []
        _fail(queued, owned.lost)

    async def _in_thread(self, work: Callable[..., T], *args: object) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, partial(work, *args))


class _Aborted(Exception):
    """The transaction was rolled back; the producer can begin another."""


def _transact(producer: Producer, topic: str, partition: int, records: Sequence[bytes]) -> list[int]:
    """One transaction; offsets in the order of the records, -1 where a resend hid it. Blocking."""
    offsets = [-1] * len(records)

    def delivered(index: int, error: KafkaError | None, message: Message) -> None:
        # A record that could not be delivered makes the commit fail: nothing to do here.
        if error is None:
            offset = message.offset()
            offsets[index] = -1 if offset is None else offset

    producer.begin_transaction()
    try:
        for index, value in enumerate(records):
            producer.produce(topic, value, partition=partition, on_delivery=partial(delivered, index))
        _until_done(producer.commit_transaction)
    except (KafkaException, BufferError) as error:
        cause = error.args[0]
        if isinstance(cause, KafkaError) and cause.fatal():
            raise
        _until_done(producer.abort_transaction)
        raise _Aborted(str(error)) from error
    producer.poll(0)
    return [max(offset, -1) for offset in offsets]


def _pack(members: Sequence[bytes]) -> list[list[bytes]]:
    """In packets of up to half a megabyte: well below the broker's limit for a record."""
    packets: list[list[bytes]] = []
    room = 0
    for member in members:
        if not packets or len(member) > room:
            packets.append([])
            room = _PACKET_BYTES
        packets[-1].append(member)
        room -= len(member)
    return packets


def _until_done(step: Callable[[], None]) -> None:
    while True:
        try:
            step()
        except KafkaException as error:
            if not error.args[0].retriable():
                raise
        else:
            return


def _close(producers: list[Producer], orderly: bool) -> None:
    producer = producers.pop()
    producer.purge(blocking=False)
    if orderly:
        producer.close()


def _fail(items: Sequence[_Item], why: Exception) -> None:
    for item in items:
        if not item.done.done():
            item.done.set_exception(why)

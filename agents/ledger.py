"""Runs the ledger: owns its partitions, replays them, writes intents behind the fence and outcomes past it."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import structlog

from ..connectors.fenced_log import FencedAppend
from ..connectors.ledger_log import LedgerReader
from ..pipeline.errors import Rejected, Stale, StoreFailed, Unavailable
from ..pipeline.flights import FlightIndex
from ..pipeline.held import parse
from ..pipeline.ledger import Ledger, Owner, Totals
from ..schemas import packets
from ..schemas.ledger import BatchPrepared, Charged, Completion, Failure, Intent, LedgerRecord, Parked
from ..schemas.requests import Call
from .packer import MAX_MEMBERS, Append, Now, Packer

log = structlog.get_logger(__name__)

UNKNOWN = 2**62
"""Offset of a record that is durable, but where is not known until it is read back: larger than any real one."""

Sleep = Callable[[float], Awaitable[None]]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class LedgerSettings:
    """How often the ledger is saved, and how long it remembers."""

    horizon_ms: int = 7 * 24 * 3600 * 1000
    """A completed flight is not paid again for so long: `dedupe_horizon`. The topic's retention must be longer."""
    checkpoint_rows: int = 500
    checkpoint_ms: int = 5_000
    retry_s: float = 1.0
    """Between tries to reach the broker."""
    take_again_s: float = 20.0
    """After the broker fenced us, and the group did not take the partition away. Longer than the group's session timeout."""


@dataclass(slots=True, eq=False)
class OwnedLedger:
    """One partition of the ledger, while this worker owns it."""

    partition: int
    ledger: Ledger
    index: FlightIndex
    owner: Owner
    saved_ms: int
    read_ms: int = 0
    """All that was in the log at this time has been applied."""
    replayed: bool = False
    reading: asyncio.Lock = field(default_factory=asyncio.Lock)
    lost: Stale | None = None
    intending: set[str] = field(default_factory=set)
    """Flights whose next intent is on its way to the log: the ledger does not know of it yet."""
    _locks: dict[str, tuple[asyncio.Lock, int]] = field(default_factory=dict)
    _news: dict[str, asyncio.Event] = field(default_factory=dict)

    def check(self) -> None:
        """Raises `Stale` where the partition is not ours any more."""
        if self.lost is not None:
            raise self.lost

    @asynccontextmanager
    async def one_at_a_time(self, flight: str) -> AsyncIterator[None]:
        """Calls of one flight follow each other: the second one finds what the first one paid for."""
        lock, users = self._locks.get(flight) or (asyncio.Lock(), 0)
        self._locks[flight] = lock, users + 1
        try:
            async with lock:
                yield
        finally:
            lock, users = self._locks[flight]
            if users == 1:
                del self._locks[flight]
            else:
                self._locks[flight] = lock, users - 1

    async def news(self, flight: str, wait_s: float, sleep: Sleep) -> None:
        """Returns when a record of the flight was seen, the partition is lost, or the time has passed."""
        event = self._news.setdefault(flight, asyncio.Event())
        tasks = [asyncio.ensure_future(event.wait()), asyncio.ensure_future(sleep(wait_s))]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            self._news.pop(flight, None)

    def tell(self, flight: str | None) -> None:
        """A record was seen; None: one of no flight."""
        event = self._news.get(flight) if flight is not None else None
        if event is not None:
            event.set()

    def lose(self, why: Stale) -> None:
        self.lost = self.lost or why
        for event in self._news.values():
            event.set()


class LedgerStage:
    """All ledger partitions of one worker. The ledger has as many partitions as `calls`, and they are owned together."""

    def __init__(
        self,
        *,
        topic: str,
        fenced: FencedAppend,
        reader: LedgerReader,
        append: Append,
        index: Callable[[int], FlightIndex],
        now: Now,
        sleep: Sleep,
        new_epoch: Callable[[], str],
        settings: LedgerSettings = LedgerSettings(),
        max_members: Callable[[], int] = lambda: MAX_MEMBERS,
        end_worker: Callable[[Exception], object] = lambda _: None,
    ) -> None:
        """`append` is awaited until the broker has the record; `index` opens the local checkpoint of a partition. `end_worker` is told
        that a checkpoint can't be written."""
        self._topic = topic
        self._fenced = fenced
        self._reader = reader
        self._packer: Packer[LedgerRecord] = Packer(append, topic, packets.ledger, max_members=max_members)
        self._index = index
        self._now, self._sleep, self._new_epoch = now, sleep, new_epoch
        self._settings = settings
        self._end_worker = end_worker
        self._owned: dict[int, OwnedLedger] = {}
        self._wanted: set[int] = set()
        self._retaking: set[asyncio.Task[None]] = set()
        self._fencing: dict[int, asyncio.Task[OwnedLedger | None]] = {}
        self._dropping: dict[int, asyncio.Task[None]] = {}
        self._ready: dict[int, asyncio.Event] = {}

    # --- ownership ---------------------------------------------------------------------------------------------------

    async def assigned(self, partitions: Iterable[int]) -> None:
        """Fences the previous owners, then reads their ledger to the end: only after that may anything be paid."""
        new = set(partitions) - self._wanted
        self._wanted |= new
        await asyncio.gather(*(self._take(p) for p in new))

    async def _take(self, partition: int) -> None:
        # A task of its own: were taking the fence cut short, its thread would still fence whoever comes after us.
        fencing = self._fencing[partition] = asyncio.create_task(self._fence(partition))
        fencing.add_done_callback(lambda done: _forget(self._fencing, partition, done))
        owned = await asyncio.shield(fencing)
        if owned is None:
            return
        await self._replay(owned)
        if owned.lost is None:
            self._save(owned)
            owned.replayed = True
            self._ready_event(partition).set()

    async def _fence(self, partition: int) -> OwnedLedger | None:
        dropping = self._dropping.get(partition)
        if dropping is not None:
            await asyncio.wait([dropping])  # its files are still open
        while partition in self._wanted:
            try:
                await self._fenced.acquire(partition)
            except Unavailable as error:
                log.warning("the ledger can't be taken yet", partition=partition, reason=str(error))
                await self._sleep(self._settings.retry_s)
                continue
            index = self._index(partition)
            now = self._now()
            owned = OwnedLedger(partition, Ledger(index), index, Owner(self._new_epoch(), now), now)
            self._owned[partition] = owned
            return owned
        return None

    async def _replay(self, owned: OwnedLedger) -> None:
        while owned.lost is None:
            begun_ms = self._now()
            try:
                end = await self._reader.end(owned.partition)
                if owned.lost is not None:
                    return
                if owned.ledger.next_offset > end:
                    log.warning("the ledger's checkpoint is of another topic; it is rebuilt", partition=owned.partition)
                    owned.ledger.restart()
                async for offset, value in self._reader.replay(owned.partition, owned.ledger.next_offset):
                    if owned.lost is not None:
                        return
                    self._learn_packet(owned, offset, value)
                    if owned.ledger.unsaved >= 10 * self._settings.checkpoint_rows:
                        self._checkpoint(owned)
                owned.read_ms = begun_ms
                return
            except Unavailable as error:
                log.warning("the ledger can't be read yet", partition=owned.partition, reason=str(error))
                await self._sleep(self._settings.retry_s)

    def _learn_packet(self, owned: OwnedLedger, offset: int, value: bytes) -> None:
        try:
            entries = parse(value)
        except (ValueError, KeyError, TypeError) as error:
            # Intents are written by owners only, so this is no intent, and nothing can have been paid for it.
            log.error(
                "a record of the ledger can't be read and is passed over", partition=owned.partition, offset=offset, reason=repr(error)
            )
            entries = []
        for entry in entries:
            owned.ledger.apply(entry, offset)
        owned.ledger.advance(offset)

    async def revoked(self, partitions: Iterable[int]) -> None:
        """Stops paying; calls under way still write what they cost."""
        gone = set(partitions) & self._wanted
        self._wanted -= gone
        await asyncio.gather(*(self._drop(p) for p in gone))

    async def _drop(self, partition: int) -> None:
        # A task of its own: a rebalance cuts short whoever told us of the last one, and half a drop leaves files open for ever.
        before = [task for task in (self._dropping.get(partition), self._fencing.get(partition)) if task is not None]
        dropping = self._dropping[partition] = asyncio.create_task(self._give_up(partition, before))
        dropping.add_done_callback(lambda done: _forget(self._dropping, partition, done))
        await asyncio.shield(dropping)

    async def close(self) -> None:
        """Gives up all partitions; what the next owner needs of them is saved."""
        for task in self._retaking:
            task.cancel()
        await asyncio.gather(*self._retaking, return_exceptions=True)
        await self.revoked(self._wanted)
        await self._reader.close()

    async def _give_up(self, partition: int, before: "Sequence[asyncio.Task[Any]]") -> None:
        if before:
            await asyncio.wait(before)
        owned = self._owned.pop(partition, None)
        # Whoever waits for the partition learns that it is gone.
        event = self._ready.pop(partition, None)
        if event is not None:
            event.set()
        if owned is None:
            return
        owned.lose(Stale(f"partition {partition} of {self._topic} was given up: nothing more is paid for it here"))
        await self._fenced.release(partition)
        try:
            owned.ledger.checkpoint()
        except Exception as error:  # rocksdict raises bare Exception
            log.warning("the ledger's last checkpoint is not saved; the next owner reads more of the topic", reason=str(error))
        owned.index.close()

    def _lost(self, owned: OwnedLedger, why: Stale) -> None:
        """The broker fenced us, and the group has not said so: either it will soon, or (a transaction that timed out while
        the broker was away) nobody else has the partition, and only taking it again gets it going."""
        if owned.lost is not None:
            return
        log.warning("the ledger partition was lost", partition=owned.partition, reason=str(why))
        owned.lose(why)
        self._ready.pop(owned.partition, None)
        task = asyncio.create_task(self._take_again(owned), name=f"take ledger {owned.partition} again")
        self._retaking.add(task)
        task.add_done_callback(self._retaking.discard)

    async def _take_again(self, lost: OwnedLedger) -> None:
        # Longer than a session: whoever was replaced has heard of it by then, and does not fence its successor.
        await self._sleep(self._settings.take_again_s)
        if self._owned.get(lost.partition) is lost:
            await self._drop(lost.partition)
            if lost.partition in self._wanted:
                await self._take(lost.partition)

    async def owned(self, partition: int) -> OwnedLedger:
        """The partition, when it is ready to be paid from. Raises `Stale`."""
        while True:
            await self._ready_event(partition).wait()
            owned = self._owned.get(partition)
            if owned is not None and owned.replayed:
                owned.check()
                return owned
            if partition not in self._wanted:
                raise Stale(f"partition {partition} of {self._topic} is not owned here: nothing is paid for it")

    def _ready_event(self, partition: int) -> asyncio.Event:
        return self._ready.setdefault(partition, asyncio.Event())

    @property
    def partitions(self) -> frozenset[int]:
        return frozenset(self._owned)

    def totals(self) -> dict[int, Totals]:
        return {partition: owned.ledger.totals for partition, owned in self._owned.items()}

    # --- records -----------------------------------------------------------------------------------------------------

    def learn(self, partition: int, offset: int, record: LedgerRecord) -> bool:
        """Takes in a record that was read from the topic, in order; a packet's members share its offset. Await `owned` before.

        False: this is a completion of a flight that another attempt had answered before. Raises `Stale`.
        """
        owned = self._owned.get(partition)
        if owned is None:
            raise Stale(f"partition {partition} of {self._topic} is not owned here: its records are the new owner's to read")
        # More members of this packet may follow: only what lies before it is complete.
        owned.ledger.advance(offset - 1)
        self._save_sometimes(owned)
        if not isinstance(record, Intent | BatchPrepared) or record.epoch == owned.owner.epoch:
            owned.ledger.apply(record, offset)
        # Else it is a predecessor's intent: the replay has brought all that were committed. This reader sees those that were rolled
        # back, too, and they were never sent.
        owned.tell(getattr(record, "flight", None))
        return not isinstance(record, Completion) or owned.ledger.answers(record.flight, record.attempt)

    async def intend(self, owned: OwnedLedger, intent: Intent | BatchPrepared, *, urgent: bool) -> None:
        """Returns when the intent, or those of a batch, is committed, and no other worker had taken the partition before.

        Raises `Stale`; `Unavailable` where it was rolled back: nothing may be sent then.
        """
        owned.check()
        try:
            offset = await self._fenced.append(owned.partition, packets.ledger.encode_one(intent), urgent=urgent)
        except Stale as error:
            self._lost(owned, error)
            raise
        owned.ledger.apply(intent, offset)
        owned.check()

    async def book(self, partition: int, record: LedgerRecord, wait_s: float, encoded: bytes | None = None) -> None:
        """Returns when the outcome is durable, however long the broker is away: the money is spent already.

        Not fenced: a worker that lost the partition still owes it what its calls cost. `encoded`: the record, where that is known.
        """
        data = packets.ledger.encode_one(record) if encoded is None else encoded
        while True:
            try:
                offset = await asyncio.shield(self._packer.put_encoded(partition, record, data, wait_s))
                break
            except Exception as error:  # whatever the producer raises, the record must be written
                log.warning("an outcome can't be written to the ledger yet", partition=partition, type=record.type, reason=repr(error))
                await self._sleep(self._settings.retry_s)
        owned = self._owned.get(partition)
        if owned is not None:
            owned.ledger.apply(record, offset if offset >= 0 else UNKNOWN)
            owned.tell(getattr(record, "flight", None))

    async def catch_up(self, owned: OwnedLedger, until_ms: int) -> None:
        """Returns when all that was written until then (a time that is past) has been applied: outcomes of a previous owner
        may be in the log and not have reached us."""
        async with owned.reading:
            if owned.read_ms < until_ms:
                await self._replay(owned)
        owned.check()

    async def fetch(self, partition: int, offset: int, flight: str) -> Completion | Failure:
        """How the flight ended. Raises `Rejected` where it is not kept any more, `Unavailable`."""
        records = packets.ledger.decode(await self._reader.fetch(partition, offset))
        for record in records:
            if isinstance(record, Completion | Failure) and record.flight == flight:
                return record
        raise Unavailable(f"the outcome of {flight} is not at offset {offset} of {self._topic}/{partition}, where it was written")

    async def withheld(self, partition: int, offset: int, attempt: str) -> Charged:
        """The record of this attempt, with its answer. Raises `Rejected` where it is not kept any more, `Unavailable`."""
        for record in packets.ledger.decode(await self._reader.fetch(partition, offset)):
            if isinstance(record, Charged) and record.attempt == attempt:
                return record
        raise Rejected(f"the answer of attempt {attempt} is not at offset {offset} of {self._topic}/{partition}, where it was written")

    async def parked(self, owned: OwnedLedger, offset: int) -> dict[str, Call]:
        """Calls that the ledger owns, of the packet at this offset, by flight. Raises `Rejected` where it is not kept, `Unavailable`."""
        records = packets.ledger.decode(await self._reader.fetch(owned.partition, offset))
        return {record.flight: record.call for record in records if isinstance(record, Parked)}

    # --- checkpoints -------------------------------------------------------------------------------------------------

    def _save_sometimes(self, owned: OwnedLedger) -> None:
        due = self._now() - owned.saved_ms >= self._settings.checkpoint_ms
        if owned.ledger.unsaved >= self._settings.checkpoint_rows or (due and owned.ledger.unsaved):
            self._save(owned)

    def _save(self, owned: OwnedLedger) -> None:
        owned.saved_ms = self._now()
        self._checkpoint(owned)
        owned.ledger.expire(owned.saved_ms - self._settings.horizon_ms)

    def _checkpoint(self, owned: OwnedLedger) -> None:
        try:
            owned.ledger.checkpoint()
        except Exception as error:  # rocksdict raises bare Exception
            failed = StoreFailed(
                f"the checkpoint of ledger partition {owned.partition} can't be written ({error}); nothing is lost, the topic has all of "
                "it; free or enlarge the disk, then start the worker again"
            )
            self._end_worker(failed)
            raise failed from error


def _forget(tasks: dict[int, "asyncio.Task[T]"], partition: int, done: "asyncio.Task[T]") -> None:
    """A younger one may have taken its place."""
    if tasks.get(partition) is done:
        del tasks[partition]

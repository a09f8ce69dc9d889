"""A Faust table with an explicit partition in every call, whose writes are durable when they return.

Rows written and not yet acknowledged lie in an overlay above the store: readers see them at once, the store never holds
what the changelog doesn't. One batch per partition is on its way at a time, so the changelog has the order of the writes.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any, cast

import faust
from aiokafka import TopicPartition

from ...pipeline.errors import StoreFailed
from .claims import Claim
from .outcomes import OversizedRow, Stale
from .stores import ROCKSDB_OPTIONS, DamagedStore, MemoryStore, PartitionedStore, RocksStore

if TYPE_CHECKING:
    from .application import SafeApp

log = logging.getLogger(__name__)

RETRY_S = 0.5
QUIESCE_S = 5.0
SEND_ROWS = 2000
"""Looked at for one batch at most: all that wait, again for every batch, would take time by the square of their number."""
RESERVED_KEY = RocksStore.offset_key


@dataclass(frozen=True, slots=True)
class ChangelogSpec:
    """The topic that has to exist, with exactly these partitions, before the app starts."""

    name: str
    partitions: int
    config: Mapping[str, str] = field(default_factory=lambda: {"cleanup.policy": "compact", "delete.retention.ms": str(7 * 86_400_000)})


@dataclass(slots=True)
class _Write:
    """A caller waiting until `left` of its rows are acknowledged."""

    left: int
    done: "asyncio.Future[None]"


@dataclass(slots=True)
class _Outbox:
    """What a partition has written and not yet got acknowledged, in order."""

    claim: Claim
    rows: deque[tuple[bytes, bytes | None, _Write]] = field(default_factory=deque)
    overlay: dict[bytes, tuple[bytes | None, int]] = field(default_factory=dict)
    """Key to its newest value and the number of its rows on their way."""
    sender: "asyncio.Task[None] | None" = None
    sending: bool = False
    contiguous: bool = True
    """False once somebody else's record was seen in between: the checkpoint stays before it, recovery will read it."""


class SafeTable(faust.Table[bytes, bytes]):
    """Bytes to bytes, partitioned like the topics of the agents that use it."""

    app: "SafeApp"
    partitions: int

    def __init__(self, app: "SafeApp", *, name: str, partitions: int, memory: bool, max_row_bytes: int, prefix: str) -> None:
        self._prefix = prefix
        self._memory = memory
        self._max_row_bytes = max_row_bytes
        self._outboxes: dict[int, _Outbox] = {}
        self._ending: asyncio.Future[None] | None = None
        super().__init__(
            app, name=name, partitions=partitions, key_type=bytes, value_type=bytes, use_partitioner=True, options=dict(ROCKSDB_OPTIONS)
        )

    # -- reading

    def read(self, partition: int, key: bytes) -> bytes | None:
        """The newest value written here or recovered. Raises `Stale` where the partition is not ours."""
        overlay = self._outbox(partition).overlay
        if key in overlay:
            return overlay[key][0]
        try:
            return self.rows_store.read(partition, key)
        except DamagedStore as error:
            self._end_worker(error)
            raise

    def _end_worker(self, error: Exception) -> None:
        """Events that need the rows would be tried again for ever: the next start rebuilds them."""
        self._ending = asyncio.ensure_future(self.app.crash(error))

    def scan(self, partition: int) -> Iterator[tuple[bytes, bytes]]:
        """All rows of a partition, in no particular order, as of the start of the scan where nothing is written meanwhile."""
        overlay = {key: value for key, (value, _) in self._outbox(partition).overlay.items()}
        try:
            for key, value in self.rows_store.rows(partition):
                if key not in overlay:
                    yield key, value
        except DamagedStore as error:
            self._end_worker(error)
            raise
        for key, newest in overlay.items():
            if newest is not None:
                yield key, newest

    # -- writing

    async def write(self, partition: int, changes: Mapping[bytes, bytes | None]) -> None:
        """Visible to readers at once, durable when it returns; None deletes.

        Raises `OversizedRow` before anything is written, `Stale` where the partition is not ours or was lost meanwhile
        (then the rows may or may not have reached the changelog). Cancelling the caller does not take the rows back.
        """
        self._check(changes)
        claim = self._outbox(partition).claim
        if not await self.app.membership.still_ours(claim):
            raise Stale(f"table {self.name}: partition {partition} was lost")
        if not changes:
            return
        outbox = self._outbox(partition)
        write = _Write(len(changes), asyncio.get_running_loop().create_future())
        for key, value in changes.items():
            outbox.rows.append((key, value, write))
            outbox.overlay[key] = (value, outbox.overlay.get(key, (None, 0))[1] + 1)
        if outbox.sender is None:
            outbox.sender = asyncio.create_task(self._send(partition, outbox))
        await asyncio.shield(write.done)
        # Appended is not enough: whoever took the partition meanwhile may have read the changelog before these rows were there.
        if not await self.app.membership.still_ours(claim):
            raise Stale(f"table {self.name}: partition {partition} was lost")

    def _check(self, changes: Mapping[bytes, bytes | None]) -> None:
        for key, value in changes.items():
            size = len(key) + len(value or b"")
            if size > self._max_row_bytes:
                raise OversizedRow(
                    f"table {self.name}: a row of {size} bytes exceeds {self._max_row_bytes}; nothing was written, store it smaller"
                )
            if key == RESERVED_KEY or not key:
                raise ValueError(f"table {self.name}: {key!r} can't be a key")

    def _outbox(self, partition: int) -> _Outbox:
        outbox = self._outboxes.get(partition)
        if outbox is None or not outbox.claim.alive:
            raise Stale(f"table {self.name}: partition {partition} is not ours")
        return outbox

    async def _send(self, partition: int, outbox: _Outbox) -> None:
        """Sends batch after batch until nothing is left; a refused batch is sent again, before anything younger."""
        try:
            while outbox.rows:
                if not await self.app.membership.still_ours(outbox.claim):
                    return
                outbox.sending = True
                try:
                    await self._send_batch(partition, outbox)
                finally:
                    outbox.sending = False
        finally:
            outbox.sender = None
            if outbox.rows:
                self._fail(outbox)

    async def _send_batch(self, partition: int, outbox: _Outbox) -> None:
        try:
            rows = [(key, value) for key, value, _ in islice(outbox.rows, SEND_ROWS)]
            count, base = await self.app.append_batch(self.changelog_spec.name, partition, rows)
        except Exception as exc:
            log.warning("table %s[%d]: %d rows not durable yet, sending again: %r", self.name, partition, len(outbox.rows), exc)
            await asyncio.sleep(RETRY_S)
            return
        if outbox.claim.alive:
            self._acknowledged(partition, outbox, count, base)

    def _acknowledged(self, partition: int, outbox: _Outbox, count: int, base: int) -> None:
        store = self.rows_store
        rows = [outbox.rows.popleft() for _ in range(count)]
        expected = (store.checkpoint(partition) if store.checkpoint(partition) is not None else -1) + 1  # type: ignore[operator]
        if base != expected and outbox.contiguous:
            outbox.contiguous = False
            log.warning(
                "table %s[%d]: changelog offset %d came where %d was due; recovery will read from there",
                self.name,
                partition,
                base,
                expected,
            )
        try:
            store.apply(partition, {key: value for key, value, _ in rows}, base + count - 1 if outbox.contiguous else None)
        except Exception as error:
            # Whoever waits for these rows would wait for ever: they are in the changelog, and not here.
            self._end_worker(
                StoreFailed(
                    f"table {self.name}[{partition}]: the local disk refuses the rows ({error}); nothing is lost, the changelog has them; "
                    "free or enlarge the disk, then start the worker again"
                )
            )
            raise
        for key, _, write in rows:
            value, pending = outbox.overlay[key]
            if pending == 1:
                del outbox.overlay[key]
            else:
                outbox.overlay[key] = (value, pending - 1)
            write.left -= 1
            if not write.left and not write.done.done():
                write.done.set_result(None)

    def _fail(self, outbox: _Outbox) -> None:
        for _, _, write in outbox.rows:
            if not write.done.done():
                write.done.set_exception(Stale(f"table {self.name}: the partition was lost before the row was durable"))
                write.done.exception()  # a cancelled caller no longer asks
        outbox.rows.clear()

    # -- ownership

    async def quiesce(self) -> None:
        """Waits for the batches on their way; the next ones wait for the outcome of the rebalance."""
        senders = {box.sender for box in self._outboxes.values() if box.sender is not None and box.sending}
        if senders:
            await asyncio.wait(senders, timeout=QUIESCE_S)

    def forget_lost(self) -> None:
        """Closes the partitions that are no longer ours."""
        for partition, outbox in list(self._outboxes.items()):
            if not outbox.claim.alive:
                del self._outboxes[partition]
                if outbox.sender is None:
                    self._fail(outbox)
                self.rows_store.close_partition(partition)

    def own(self, partition: int, claim: Claim) -> None:
        """Recovery is complete: reads and writes are allowed from here on."""
        self._outboxes[partition] = _Outbox(claim)

    async def finish(self, timeout: float) -> None:
        """Waits until everything written is acknowledged, then closes."""
        senders = {box.sender for box in self._outboxes.values() if box.sender is not None}
        if senders:
            _, late = await asyncio.wait(senders, timeout=timeout)
            for sender in late:
                sender.cancel()
            await asyncio.gather(*late, return_exceptions=True)
        for outbox in self._outboxes.values():
            outbox.claim.lose()
        self.forget_lost()

    # -- Faust's side

    @property
    def rows_store(self) -> PartitionedStore:
        """The local rows."""
        return cast(PartitionedStore, self.data)

    @property
    def changelog_spec(self) -> ChangelogSpec:
        """The changelog topic to create and verify before the start."""
        return ChangelogSpec(self._changelog_topic_name(), self.partitions)

    def changelog_partition(self, partition: int) -> TopicPartition:
        """The topic partition that backs `partition`."""
        return TopicPartition(self.changelog_spec.name, partition)

    def _changelog_topic_name(self) -> str:
        return f"{self._prefix}{super()._changelog_topic_name()}"

    def _new_store(self) -> Any:
        url, store = ("memory://", MemoryStore) if self._memory else ("rocksdb://", RocksStore)
        return store(url, self.app, self, table_name=self.name, key_type=bytes, value_type=bytes, options=self.options, loop=self.loop)

    def on_key_set(self, key: Any, value: Any) -> None:
        raise TypeError(f"table {self.name}: use write(), which returns when the row is durable")

    def on_key_del(self, key: Any) -> None:
        raise TypeError(f"table {self.name}: use write() with None, which returns when the deletion is durable")

    def apply_changelog_batch(self, batch: Any) -> None:
        raise TypeError("changelogs are applied by the recovery of this package")

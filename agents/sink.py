"""Gathers cost events into few large inserts, and lets nobody acknowledge an event before it is stored.

The sink knows no source: whoever hands it events awaits `add`, and releases its own position only when that returns.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..pipeline.errors import Rejected
from ..schemas.costs import CostEvent

Insert = Callable[[Sequence[CostEvent]], None]
"""Blocking; durable when it returns. Raises `Unavailable` or `Rejected`, as `CostStore.insert` does."""


@dataclass(frozen=True, slots=True)
class _Waiting:
    events: tuple[CostEvent, ...]
    stored: asyncio.Future[None]


class CostSink:
    """Inserts up to `max_rows` events at a time, or what came within `max_wait` seconds. One insert at a time."""

    def __init__(self, insert: Insert, *, max_rows: int = 20_000, max_wait: float = 0.25) -> None:
        self._insert = insert
        self._max_rows = max_rows
        self._max_wait = max_wait
        self._waiting: list[_Waiting] = []
        self._rows = 0
        self._full = asyncio.Event()
        self._flusher: asyncio.Task[None] | None = None
        self.stored_rows = 0
        """Rows stored since the start; redelivered ones count again here (never in the store)."""

    async def add(self, events: Sequence[CostEvent]) -> None:
        """Returns when all `events` are durable.

        Raises `Unavailable` where the store is down (add them again: the same event counts once), and `Rejected` where some
        of these events can't be stored; the others then are.
        """
        if not events:
            return
        waiting = _Waiting(tuple(events), asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        self._rows += len(waiting.events)
        if self._rows >= self._max_rows:
            self._full.set()
        if self._flusher is None:
            self._flusher = asyncio.create_task(self._flush_while_waiting(), name="cost-sink")
        await waiting.stored

    def flush(self) -> None:
        """Inserts what is gathered now, without waiting for more."""
        if self._waiting:
            self._full.set()

    async def close(self) -> None:
        """Stores what was added, then returns."""
        while self._flusher is not None:
            self.flush()
            await asyncio.wait([self._flusher])

    async def _flush_while_waiting(self) -> None:
        try:
            while self._waiting:
                await self._until_full_or_late()
                await self._store_batch(self._take_batch())
        finally:
            self._flusher = None

    async def _until_full_or_late(self) -> None:
        try:
            async with asyncio.timeout(self._max_wait):
                await self._full.wait()
        except TimeoutError:
            return

    def _take_batch(self) -> list[_Waiting]:
        """Whole packets, at least one, up to `max_rows` rows."""
        batch = [self._waiting.pop(0)]
        rows = len(batch[0].events)
        while self._waiting and rows + len(self._waiting[0].events) <= self._max_rows:
            batch.append(self._waiting.pop(0))
            rows += len(batch[-1].events)
        self._rows -= rows
        if self._rows < self._max_rows:
            self._full.clear()
        return batch

    async def _store_batch(self, batch: list[_Waiting]) -> None:
        events = [event for waiting in batch for event in waiting.events]
        try:
            refused = await asyncio.to_thread(self._store, events)
        except asyncio.CancelledError:
            for waiting in batch:
                waiting.stored.cancel()
            raise
        except Exception as error:  # whatever it was, it is theirs to judge: nobody may wait for ever, or take it for stored
            for waiting in batch:
                _settle(waiting, error)
            return
        self.stored_rows += len(events) - len(refused)
        for waiting in batch:
            _settle(waiting, next((refused[id(event)] for event in waiting.events if id(event) in refused), None))

    def _store(self, events: Sequence[CostEvent]) -> dict[int, Rejected]:
        """Stores what can be stored; the events that can't, by their `id()`. Blocking."""
        try:
            self._insert(events)
        except Rejected as error:
            if len(events) == 1:
                return {id(events[0]): Rejected(f"Event {events[0].event_id!r}: {error}", code=error.code)}
            middle = len(events) // 2
            return self._store(events[:middle]) | self._store(events[middle:])
        return {}


def _settle(waiting: _Waiting, error: Exception | None) -> None:
    if waiting.stored.done():  # whoever added it has gone (its partition was revoked)
        return
    if error is None:
        waiting.stored.set_result(None)
    else:
        waiting.stored.set_exception(error)

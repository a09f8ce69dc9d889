"""Gathers cost events into few large inserts, and lets nobody acknowledge an event before it is stored.

The sink knows no source: whoever hands it events awaits `add`, and releases its own position only when that returns. While the
store is down everybody waits, the batch is tried again, and the source stops delivering once its own limit of unfinished packets
is reached.
"""

import asyncio
import logging
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..pipeline.errors import Rejected, Unavailable
from ..schemas.costs import CostEvent

_log = logging.getLogger(__name__)

FIRST_BACKOFF_S = 0.1
MAX_BACKOFF_S = 5.0

Insert = Callable[[Sequence[CostEvent]], None]
"""Blocking; durable when it returns. Raises `Unavailable` or `Rejected`, as `CostStore.insert` does."""


@dataclass(frozen=True, slots=True)
class _Waiting:
    events: tuple[CostEvent, ...]
    stored: asyncio.Future[None]


class CostSink:
    """One insert at a time, of what came within `max_wait` seconds, or of `max_rows` events or `max_packets` calls of `add`.

    `max_packets` should be how many packets the source lets be unfinished: then no more can come, and waiting is idle.
    """

    def __init__(self, insert: Insert, *, max_rows: int = 20_000, max_packets: int = 128, max_wait: float = 0.5) -> None:
        self._insert = insert
        self._max_rows = max_rows
        self._max_packets = max_packets
        self._max_wait = max_wait
        self._waiting: list[_Waiting] = []
        self._due = asyncio.Event()
        self._closing = asyncio.Event()
        self._flusher: asyncio.Task[None] | None = None
        self.stored_rows = 0
        """Rows stored since the start; redelivered ones count again here (never in the store)."""
        self.trouble: str | None = None
        """Why the store takes nothing now; None while it does."""

    async def add(self, events: Sequence[CostEvent]) -> None:
        """Returns when all `events` are durable.

        Raises `Rejected` where some of these events can't be stored (the others then are), and `Unavailable` where the sink was
        closed while the store was down.
        """
        if not events:
            return
        waiting = _Waiting(tuple(events), asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        self._check_due()
        if self._flusher is None:
            self._flusher = asyncio.create_task(self._flush_while_waiting(), name="cost-sink")
        await waiting.stored

    def flush(self) -> None:
        """Inserts what is gathered now, without waiting for more."""
        if self._waiting:
            self._due.set()

    async def close(self) -> None:
        """Stores what was added, then returns; where the store is down, those who wait get `Unavailable`."""
        self._closing.set()
        while self._flusher is not None:
            self.flush()
            await asyncio.wait([self._flusher])

    def _check_due(self) -> None:
        full = len(self._waiting) >= self._max_packets or sum(len(waiting.events) for waiting in self._waiting) >= self._max_rows
        if full or self._closing.is_set():
            self._due.set()

    async def _flush_while_waiting(self) -> None:
        try:
            while self._waiting:
                await _set_within(self._due, self._max_wait)
                await self._store_batch(self._take_batch())
        finally:
            self._flusher = None

    def _take_batch(self) -> list[_Waiting]:
        """Whole packets, at least one, up to `max_rows` rows."""
        count, rows = 1, len(self._waiting[0].events)
        while count < len(self._waiting) and rows + len(self._waiting[count].events) <= self._max_rows:
            rows += len(self._waiting[count].events)
            count += 1
        batch, self._waiting = self._waiting[:count], self._waiting[count:]
        self._due.clear()
        self._check_due()
        return batch

    async def _store_batch(self, batch: list[_Waiting]) -> None:
        events = [event for waiting in batch for event in waiting.events]
        try:
            refused = await self._until_stored(events)
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

    async def _until_stored(self, events: Sequence[CostEvent]) -> dict[int, Rejected]:
        """Tries again while the store is down; one line in the log per try, however many wait."""
        attempt = 0
        while True:
            try:
                refused = await asyncio.to_thread(self._store, events)
            except Unavailable as error:
                self.trouble = str(error)
                if self._closing.is_set():
                    raise
                delay = random.uniform(0, min(MAX_BACKOFF_S, FIRST_BACKOFF_S * 2**attempt))  # full jitter
                attempt += 1
                _log.warning("%s %d rows wait, next try in %.1f s", error, len(events), delay)
                await _set_within(self._closing, delay)
            else:
                self.trouble = None
                return refused

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


async def _set_within(event: asyncio.Event, seconds: float) -> None:
    """Returns when `event` is set, or after `seconds`."""
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return


def _settle(waiting: _Waiting, error: Exception | None) -> None:
    if waiting.stored.done():  # whoever added it has gone (its partition was revoked)
        return
    if error is None:
        waiting.stored.set_result(None)
    else:
        waiting.stored.set_exception(error)

"""From the consumer to the handlers: events, their bounded concurrency, retries, and the release of their offsets."""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from contextvars import copy_context
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from .backlog import Backlog, InOrder, InTurns, Share
from .claims import Claim
from .outcomes import DeadLetter, Stale

if TYPE_CHECKING:
    from .application import SafeApp

log = logging.getLogger(__name__)

FIRST_BACKOFF_S = 0.1
MAX_BACKOFF_S = 5.0


@dataclass(frozen=True, slots=True)
class Delivered:
    """One Kafka record on its way through a handler; key, value and header values are raw bytes."""

    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...] = ()
    timestamp_ms: int = 0
    """When it was appended, by the producer's or the broker's clock."""
    claim: Claim | None = field(default=None, repr=False, compare=False)

    @property
    def current(self) -> bool:
        """The partition is still ours, in the same generation: check it before anything that must not happen twice."""
        return self.claim is None or self.claim.current


Handler = Callable[[Delivered], Awaitable[None]]
OnDead = Callable[[Delivered, DeadLetter], Awaitable[None]]


class Gate(Protocol):
    """Says when an agent's events may begin."""

    def may_begin(self, again: Callable[[], None]) -> bool:
        """False: not now; `again` is called when it may."""
        ...

    def begun(self, event: Delivered) -> None:
        """This one begins."""
        ...


@dataclass(frozen=True, slots=True)
class Turns:
    """Events begin in turns: see `InTurns`."""

    share: Share
    """Whose event it is."""
    max_bytes: int
    """At work at once."""


class Intake:
    """The events of one agent: as many handlers as its backlog lets begin, and a full backlog stops the fetching."""

    def __init__(
        self,
        app: "SafeApp",
        name: str,
        handle: Handler,
        on_dead: OnDead,
        limit: int,
        turns: Turns | None = None,
        *,
        at_once: Callable[[], int] = lambda: 1,
        gate: Gate | None = None,
    ) -> None:
        """`at_once`: events begun in one pass of the event loop; what else is due comes between them and the next ones."""
        if limit < 1:
            raise ValueError(f"limit of {name} must be at least 1, not {limit}")
        self.name = name
        self.suspended = False
        self._app = app
        self._handle = handle
        self._on_dead = on_dead
        self._at_once = at_once
        self._left: int | None = None
        """Events that may still begin in this pass; None before the first one."""
        self._gate = gate
        self._backlog: Backlog = (
            InOrder(limit)
            if turns is None
            else InTurns(limit, turns.max_bytes, turns.share, lambda *at: app.consumer_of_records.reread(*at), self.pump)
        )
        self._running: dict[asyncio.Task[None], Delivered] = {}
        self.begun = 0
        """Events that have ever begun."""
        self._context = copy_context()

    @property
    def full(self) -> bool:
        """No more should be fetched for now."""
        return self._backlog.full

    @property
    def in_flight(self) -> int:
        """Handlers at work."""
        return len(self._running)

    @property
    def at_work(self) -> tuple["Delivered", ...]:
        """The events of the handlers at work."""
        return tuple(self._running.values())

    @property
    def waiting(self) -> int:
        """Events delivered and not begun."""
        return len(self._backlog)

    def offer(self, event: Delivered) -> None:
        """Takes an event; `pump` begins it."""
        self._backlog.offer(event)

    def pump(self) -> None:
        """Begins waiting events while there is room."""
        was_full = self.full
        while len(self._backlog) and not self.suspended:
            if self._left == 0 or (self._gate is not None and not self._gate.may_begin(self.pump)):
                break
            event = self._backlog.begin()
            if event is None:
                break
            if self._left is None:
                self._left = self._at_once()
                asyncio.get_running_loop().call_soon(self._next_pass)
            self._left -= 1
            if self._gate is not None:
                self._gate.begun(event)
            self._running[asyncio.create_task(self._run(event), context=self._context.copy())] = event
            self.begun += 1
        if was_full and not self.full:
            self._app.consumer_of_records.room()

    def _next_pass(self) -> None:
        self._left = None
        self.pump()

    def forget_lost(self) -> None:
        """Drops waiting events of partitions that are no longer ours: their next owner gets them."""
        self._backlog.forget_lost()

    async def idle(self, timeout: float) -> bool:
        """Waits for the handlers at work, up to `timeout` seconds; True where all are done."""
        if self._running:
            await asyncio.wait(set(self._running), timeout=timeout)
        return not self._running

    async def cancel(self) -> None:
        """Ends all handlers where they stand; their events stay unfinished."""
        self.suspended = True
        self._backlog.clear()
        tasks = set(self._running)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _run(self, event: Delivered) -> None:
        try:
            await self._until_finished(event)
        finally:
            task = asyncio.current_task()
            if task is not None:
                self._running.pop(task, None)
            self._backlog.end(event)
            if len(self._backlog):
                self.pump()

    async def _until_finished(self, event: Delivered) -> None:
        attempt = 0
        while True:
            try:
                await self._attempt(event)
            except Stale:
                if self._app.should_stop or not await self._app.membership.still_ours(event.claim):
                    return
            except Exception:
                delay = random.uniform(0, min(MAX_BACKOFF_S, FIRST_BACKOFF_S * 2**attempt))  # full jitter
                attempt += 1
                log.exception(
                    "%s: attempt %d failed at %s[%d]@%d; nothing is acknowledged, next attempt in %.1f s",
                    self.name, attempt, event.topic, event.partition, event.offset, delay,
                )  # fmt: skip
                await asyncio.sleep(delay)
                if not await self._app.membership.still_ours(event.claim):
                    return
            else:
                if event.claim is not None:
                    event.claim.finish(event.offset)
                return

    async def _attempt(self, event: Delivered) -> None:
        try:
            await self._handle(event)
        except DeadLetter as dead:
            await self._on_dead(event, dead)


async def consume(
    app: "SafeApp",
    stream: Any,
    handle: Handler,
    *,
    limit: int,
    name: str,
    on_dead: OnDead,
    turns: Turns | None = None,
    at_once: Callable[[], int] = lambda: 1,
    gate: Gate | None = None,
) -> None:
    """The body of every agent on a topic: delivers each event of `stream` to `handle`, at most `limit` at once.

    An event's offset is released when `handle` returned, so `handle` awaits all its writes. `Stale` abandons the event,
    `DeadLetter` is released after `on_dead` returned, anything else is retried with backoff while the event is current.
    `at_once` of them begin in one pass of the event loop, when `gate` lets them. Events of one partition begin in order (with `turns`:
    those of one tenant) and may finish in any order. Returns when the agent is stopped.
    """
    intake = Intake(app, name, handle, on_dead, limit, turns, at_once=at_once, gate=gate)
    topics = frozenset(stream.channel.topics)
    app.consumer_of_records.open_intake(topics, intake)
    try:
        # Our consumer delivers past Faust's queue; what comes through it is the agent's cancellation.
        stray = await stream.channel.queue.get()
        raise RuntimeError(f"{name}: a record came through Faust's own delivery, outside the commit tracker: {stray!r}")
    except StopAsyncIteration:
        return
    finally:
        await app.consumer_of_records.close_intake(topics, intake)

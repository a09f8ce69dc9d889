"""Holds the batch lane back in the worker's event loop: its packets begin as the latency of express and standard allows.

    an express or standard request passes -> for some seconds the batch lane is held to a rate
    every 10 ms a probe                   -> how late does the loop come to what is due?
    ten times a second                    -> pipeline/lanes.py moves the rate

A request waits for the loop many times on its way, each time as long as the probes do: what one may wait of
BATCH_TARGET_LATENCY_P95 is a small part of it.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from time import monotonic, thread_time

from ..pipeline.lanes import Bounds, Flow, GradientLaw, Law, advance, turn_of
from .packer import MAX_MEMBERS
from .safe import Delivered

PASSES = 240
"""How often a request waits for the event loop on its way from `requests` to `responses`: some 40 times, each of the seven hops being a
fetch, a handler, an append and its acknowledgement. Six times that, since the 95th of a hundred meets more than the mean, and since what
the batch lane does to the loop it does to the broker and the sink, which share the machine, too."""
SMALL_PACKET = 8
"""Members of a packet while somebody urgent is there: it is handled in one piece, some milliseconds in which nobody else has a turn."""
MANY = 64
"""Begun in one pass where nobody urgent and no batch lane meet; so the first calls are sent while the last requests still come in."""
PROBE_S = 0.01
CONTROL_S = 0.1
URGENT_S = 10.0
"""So long after the last urgent request the batch lane is still held back: the next one may come any moment."""
_MEMBER = b'"fingerprint":"'


@dataclass(frozen=True, slots=True)
class ThrottleSettings:
    """`target_ms`: what the loop may add to an urgent request, p95."""

    target_ms: float = 100.0
    bounds: Bounds = field(default_factory=Bounds)
    law: Law = field(default_factory=GradientLaw)
    alpha: float = 0.3
    enabled: bool = True


class Throttle:
    """One worker's; `gate()` gives each agent of the batch lane its own allowance at the common rate."""

    def __init__(self, settings: ThrottleSettings, *, clock: Callable[[], float] = monotonic) -> None:
        self._settings, self._clock = settings, clock
        self._urgent_until = self._bulk_until = float("-inf")
        self.flow = Flow(settings.bounds.slowest)
        self._late_ms: list[float] = []
        self._wanted = False

    def now(self) -> float:
        return self._clock()

    @property
    def holds(self) -> bool:
        """Is the batch lane held to a rate now?"""
        return self._settings.enabled and self._clock() < self._urgent_until

    def urgent(self) -> None:
        """An express or standard request passes."""
        now = self._clock()
        if now >= self._urgent_until:
            # Whoever was alone until now begins slowly, and is sped up by what the probes say.
            self.flow = Flow(self._settings.bounds.slowest)
        self._urgent_until = now + URGENT_S

    def bulk(self) -> None:
        """Requests of the batch lane pass."""
        self._bulk_until = self._clock() + URGENT_S

    def packet_size(self) -> int:
        """Members of a packet that is made now, at most. A job on its own, of whatever lane, has nobody to make room for."""
        return SMALL_PACKET if self._meet else MAX_MEMBERS

    def at_once(self, few: int) -> int:
        """What begins in one pass of the event loop: `few` where the batch lane and somebody urgent meet, else many. A job on its own took
        a third longer in small steps, since its packets then hold less."""
        return few if self._meet else MANY

    @property
    def _meet(self) -> bool:
        """Is the batch lane at work beside somebody urgent?"""
        return self.holds and self._clock() < self._bulk_until

    def gate(self) -> "Gate":
        return Gate(self, self._settings.bounds)

    def held_back(self) -> None:
        """Something of the batch lane could begin, and has to wait."""
        self.bulk()
        self._wanted = True

    async def run(self) -> None:
        """Probes and controls until cancelled."""
        controlled = self._clock()
        while True:
            if not self._meet:
                await asyncio.sleep(CONTROL_S)
                controlled = self._clock()
                continue
            due, worked = self._clock() + PROBE_S, thread_time()
            await asyncio.sleep(PROBE_S)
            now = self._clock()
            # What other programs on the machine take is none of the batch lane's doing, and slowing down would not give it back.
            self._late_ms.append(1000 * max(0.0, min(now - due, thread_time() - worked)))
            if now - controlled >= CONTROL_S:
                controlled = now
                self._control()

    def _control(self) -> None:
        late = sum(self._late_ms) / len(self._late_ms)
        self._late_ms.clear()
        settings = self._settings
        self.flow = advance(
            self.flow,
            late,
            law=settings.law,
            target_ms=settings.target_ms / PASSES,
            bounds=settings.bounds,
            alpha=settings.alpha,
            wanted=self._wanted,
        )
        self._wanted = False


class Gate:
    """One agent's allowance."""

    def __init__(self, throttle: Throttle, bounds: Bounds) -> None:
        self._throttle, self._bounds = throttle, bounds
        self._next_at = float("-inf")
        self._waiting: asyncio.TimerHandle | None = None

    def may_begin(self, again: Callable[[], None]) -> bool:
        """False: not now; `again` is called when it may."""
        now = self._throttle.now()
        if not self._throttle.holds or now >= self._next_at:
            return True
        self._throttle.held_back()
        if self._waiting is None:
            self._waiting = asyncio.get_running_loop().call_later(self._next_at - now, self._ring, again)
        return False

    def begun(self, event: Delivered) -> None:
        """What it holds counts from now on."""
        self._throttle.bulk()
        if not self._throttle.holds:
            return
        members, rate = max(1, (event.value or b"").count(_MEMBER)), self._throttle.flow.rate
        # At most one window is caught up: a burst after a pause would be what the throttle is there to avoid.
        caught_up = turn_of(rate, self._bounds).window_ms / 1000
        self._next_at = max(self._next_at, self._throttle.now() - caught_up) + members / rate

    def _ring(self, again: Callable[[], None]) -> None:
        self._waiting = None
        again()

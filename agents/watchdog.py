"""Ends a worker that no longer gets anywhere, so that its supervisor starts it anew and others take its partitions.

A worker stands still where something that is under way has not moved for the whole limit, although the group still counts
it in: while the broker can't be reached nothing can move, and that time is not counted. Waiting for a permit is no standstill.
"""

import asyncio
import faulthandler
import os
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Hashable, Mapping
from dataclasses import dataclass

import structlog

from ..pipeline.errors import Stalled

log = structlog.get_logger(__name__)

EXIT_CODE = 70
"""Of a process that had to be ended because it could not end itself (EX_SOFTWARE)."""

Marks = Mapping[Hashable, int]
"""What should move -> how far it is. What is not there is not waited for."""


@dataclass(frozen=True, slots=True)
class WatchdogSettings:
    """Times in seconds."""

    stall_s: float = 300.0
    """Without any step of something that is under way."""
    recovery_s: float = 600.0
    """From an assignment of the group until its partitions deliver."""
    look_s: float = 5.0
    exit_s: float = 60.0
    """For an orderly end, before the process is ended."""


class Standstill:
    """How long each mark has been where it is. Pure: time is passed in."""

    def __init__(self) -> None:
        self._still: dict[Hashable, tuple[int, float]] = {}

    def look(self, marks: Marks, counted_s: float) -> dict[Hashable, float]:
        """Seconds that each mark has stood still, `counted_s` of them since the last look."""
        now: dict[Hashable, tuple[int, float]] = {}
        for name, at in marks.items():
            before, still = self._still.get(name, (at, -counted_s))
            now[name] = (at, still + counted_s if before == at else 0.0)
        self._still = now
        return {name: still for name, (_, still) in now.items()}


class Watchdog:
    """One task that looks, and one thread that ends the process where the event loop or the orderly end hangs."""

    def __init__(
        self,
        settings: WatchdogSettings,
        *,
        marks: Callable[[], Marks],
        recovering: Callable[[], Hashable | None],
        counts: Callable[[], bool],
        crash: Callable[[Exception], Awaitable[object]],
        end_process: Callable[[int], object] = os._exit,
    ) -> None:
        """`recovering`: the assignment that is being recovered, None where all deliver. `counts`: could things move at all?"""
        self._settings = settings
        self._marks, self._recovering, self._counts, self._crash = marks, recovering, counts, crash
        self._end_process = end_process
        self._standing, self._recovery = Standstill(), Standstill()
        self._beat = time.monotonic()
        self._crashed_at: float | None = None
        self._done = threading.Event()
        self._task: asyncio.Task[None] | None = None
        self._thread = threading.Thread(target=self._guard, name="watchdog", daemon=True)

    def start(self) -> None:
        self._beat = time.monotonic()
        self._task = asyncio.create_task(self._watch(), name="watchdog")
        self._thread.start()

    def stop(self) -> None:
        """The worker has ended in order. After a crash the thread stays, until the process has really ended."""
        if self._task is not None:
            self._task.cancel()
        if self._crashed_at is None:
            self._done.set()

    # --- in the event loop -------------------------------------------------------------------------------------------

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(self._settings.look_s)
            now = time.monotonic()
            # Time in which this process stood still itself (SIGSTOP, a suspended machine) is nobody's fault.
            passed, self._beat = min(now - self._beat, 2 * self._settings.look_s), now
            error = self.look(passed if self._counts() else 0.0)
            if error is not None:
                self._crashed_at = now
                log.error("the worker stands still and ends", reason=str(error))
                await self._crash(error)
                return

    def look(self, counted_s: float) -> Stalled | None:
        """What to end of, if anything; `counted_s` have passed since the last look."""
        recovering = self._recovering()
        slow = self._recovery.look({} if recovering is None else {recovering: 0}, counted_s)
        if slow and max(slow.values()) >= self._settings.recovery_s:
            return Stalled(
                f"the partitions of {recovering} were not recovered within {self._settings.recovery_s:.0f} s; what was done is committed, "
                "nothing is lost; the next start goes on where this one was; if it happens again raise RECOVERY_TIMEOUT_SECONDS"
            )
        still = {name: s for name, s in self._standing.look(self._marks(), counted_s).items() if s >= self._settings.stall_s}
        if not still:
            return None
        names = ", ".join(sorted(str(name) for name in still)[:5])
        return Stalled(
            f"no progress for {self._settings.stall_s:.0f} s at {names} ({len(still)} in all), and it is no provider that is waited for; "
            "their events are not acknowledged, the next owner of the partitions gets them; the stacks of all threads are in the log"
        )

    # --- in a thread of its own --------------------------------------------------------------------------------------

    def _guard(self) -> None:
        last = time.monotonic()
        silent_s = 0.0
        while not self._done.wait(1.0):
            now = time.monotonic()
            if self._crashed_at is not None and now - self._crashed_at > self._settings.exit_s:
                self._end("the orderly end did not come to an end")
            # Counted in steps: a process that was stopped as a whole is not silent.
            silent_s = silent_s + min(now - last, 2.0) if now - self._beat > self._settings.look_s + 2 else 0.0
            if self._crashed_at is None and silent_s > self._settings.stall_s:
                self._end("the event loop is blocked")
            last = now

    def _end(self, why: str) -> None:
        sys.stderr.write(f"the watchdog ends this process: {why}; nothing is acknowledged that was not done. All threads:\n")
        faulthandler.dump_traceback(all_threads=True)
        sys.stderr.flush()
        self._end_process(EXIT_CODE)
        self._done.set()

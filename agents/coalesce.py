"""Runs the coalescer: gathers misses of one scope for a moment and finds those that mean the same."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from ..pipeline.coalesce import Plan
from ..schemas.record import Lane
from .pending import Group, Pending

Key = tuple[int, str, Lane]
PlanWindow = Callable[[Sequence[Pending]], Plan]
Forward = Callable[[list[Group]], Awaitable[None]]


@dataclass(slots=True, eq=False)
class _Window:
    members: list[Pending] = field(default_factory=list)
    timer: asyncio.TimerHandle | None = None


class CoalesceStage:
    """One window per scope and lane. A window closes by size or by age, never later than its lane allows."""

    def __init__(self, plan: PlanWindow, wait_s: Callable[[Lane], float], max_size: Callable[[Lane], int], forward: Forward) -> None:
        self._plan = plan
        self._wait_s = wait_s
        self._max_size = max_size
        self._forward = forward
        self._windows: dict[Key, _Window] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def on_batch(self, pendings: Sequence[Pending]) -> None:
        loop = asyncio.get_running_loop()
        for pending in pendings:
            key = (pending.partition, pending.miss.request.scope, pending.lane)
            window = self._windows.get(key)
            if window is None:
                window = self._windows[key] = _Window()
                window.timer = loop.call_later(self._wait_s(pending.lane), self._close, key)
            window.members.append(pending)
            if len(window.members) >= self._max_size(pending.lane):
                self._close(key)

    def _close(self, key: Key) -> None:
        window = self._windows.pop(key, None)
        if window is None:
            return
        if window.timer is not None:
            window.timer.cancel()
        task = asyncio.ensure_future(self._send(window.members))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _send(self, members: list[Pending]) -> None:
        try:
            await self._forward(await self._groups(members))
        except asyncio.CancelledError:
            raise
        except Exception as error:
            for pending in members:
                pending.fail(error)

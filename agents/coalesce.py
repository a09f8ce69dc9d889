"""Runs the coalescer: gathers misses of one scope for a moment and finds those that mean the same."""

import asyncio
from collections.abc import Awaitable, Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from ..pipeline import coalesce
from ..pipeline.semantic import SharingPolicy
from ..pipeline.window import Arrivals, WindowPolicy, should_close, wait_ms
from ..schemas.record import Lane
from .learned import nearest
from .pending import Group, Pending
from .sharing import Sharing

Key = tuple[int, str, Lane, Hashable]
"""Partition, scope, lane, and what is promised: only what is equal in all of it may share a call."""
Forward = Callable[[list[Group]], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class CoalesceSettings:
    """How windows close, and what is sent side by side."""

    windows: Mapping[Lane, WindowPolicy]
    group_similarity: float = 0.85
    """Cosine from which leaders are sent side by side."""
    enabled: bool = True
    """False: windows close as they do, and every miss is sent on its own."""


@dataclass(slots=True, eq=False)
class _Window:
    opened: float
    wait_ms: float
    members: list[Pending] = field(default_factory=list)
    timer: asyncio.TimerHandle | None = None


class CoalesceStage:
    """One window per scope and lane. A window closes by size, by age, or when nobody else is coming; never later than its lane allows."""

    def __init__(
        self,
        settings: CoalesceSettings,
        sharing: Sharing,
        forward: Forward,
        *,
        more: Callable[[Lane], bool] = lambda _: True,
        calls_wait: Callable[[Lane], bool] = lambda _: False,
    ) -> None:
        """`more`: are prompts of a lane on their way here? `calls_wait`: do calls of a lane wait for the provider's limits?"""
        self._settings = settings
        self._sharing = sharing
        self._forward = forward
        self._more, self._calls_wait = more, calls_wait
        self._arrivals = {lane: Arrivals() for lane in Lane}
        self._windows: dict[Key, _Window] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def on_batch(self, pendings: Sequence[Pending]) -> None:
        now = asyncio.get_running_loop().time()
        touched: dict[Key, None] = {}
        for pending in pendings:
            key = (pending.partition, pending.miss.request.scope, pending.lane, self._sharing.kind(pending))
            self._arrivals[pending.lane].add(1, now)
            window = self._windows.get(key) or self._open(key, now)
            window.members.append(pending)
            touched[key] = None
            self._close_where_due(key, now, more=True)
        for key in touched:
            self._close_where_due(key, now, more=self._more(key[2]))

    def _open(self, key: Key, now: float) -> _Window:
        lane = key[2]
        wait = wait_ms(self._settings.windows[lane], per_s=self._arrivals[lane].per_s, calls_wait=self._calls_wait(lane))
        window = self._windows[key] = _Window(now, wait)
        window.timer = asyncio.get_running_loop().call_later(wait / 1000, self._close, key)
        return window

    def _close_where_due(self, key: Key, now: float, *, more: bool) -> None:
        window = self._windows.get(key)
        if window is None:
            return
        policy, age_ms = self._settings.windows[key[2]], 1000 * (now - window.opened)
        if should_close(policy, size=len(window.members), age_ms=age_ms, wait_ms=window.wait_ms, more_queued=more):
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
            groups = await asyncio.to_thread(plan_groups, members, self._settings, self._sharing.pair_policy(members[0]))
            await self._forward(self._sharing.settle(groups))
        except asyncio.CancelledError:
            raise
        except Exception as error:
            for pending in members:
                pending.fail(error)


def plan_groups(members: Sequence[Pending], settings: CoalesceSettings, policy: SharingPolicy) -> list[Group]:
    """One window's plan, as groups of pendings in the order in which they are sent."""
    first: dict[str, Pending] = {}
    again: list[Group] = []
    for pending in members:
        fingerprint = pending.miss.request.fingerprint
        if fingerprint in first:  # delivered again: the same flight, which the call stage pays once
            again.append(Group(pending))
        else:
            first[fingerprint] = pending
    if len(first) == 1 or not settings.enabled:
        return [*(Group(p) for p in first.values()), *again]
    prompts = [coalesce.Pending(k, p.text or "", p.miss.request.accepted_ms, nearest(p), p.miss.fallen) for k, p in first.items()]
    vectors = np.stack([p.vector for p in first.values() if p.vector is not None])
    plan = coalesce.plan(prompts, vectors, policy, group_similarity=settings.group_similarity)
    groups: list[Group] = []
    for group in plan.groups:
        head = group.merges[0].leader if len(group.merges) > 1 else None
        for merge in group.merges:
            followers = [(first[f.key], f.similarity) for f in merge.followers]
            groups.append(Group(first[merge.leader], followers, prefix_group=head))
    return [*groups, *again]

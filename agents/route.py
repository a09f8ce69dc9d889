"""Runs the router: chooses models, writes `calls`, and sends followers to wait at their leader's flight."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Protocol

from ..connectors.crash_points import crash_at
from ..pipeline import vectors
from ..pipeline.errors import EngineError
from ..pipeline.ports import Vector
from ..pipeline.respond import failed
from ..schemas.answers import ErrorInfo
from ..schemas.requests import Call, Follow, Lookup, Request, Route
from .outbox import Outbox, Sends
from .packer import Now
from .pending import Group, Pending


class Decide(Protocol):
    """One decision; the embedding is the one that the caches made, if they made one."""

    def __call__(self, request: Request, embedding: Vector | None = None) -> Route: ...


Sent = Callable[[Sequence[Pending]], None]


class RouteStage:
    """One decision per leader. `sent` hears of leaders whose call is durable: later misses may follow them."""

    def __init__(self, outbox: Outbox, decide: Decide, sent: Sent, now: Now) -> None:
        self._out = outbox
        self._decide = decide
        self._sent = sent
        self._now = now

    async def on_groups(self, groups: Sequence[Group]) -> None:
        sends = self._out.batch()
        leaders: list[Pending] = []
        for group in groups:
            leader = group.leader
            try:
                route = self._decide(leader.miss.request, leader.vector)
            except EngineError as error:
                self._refuse(sends, group, error)
                continue
            embedding = vectors.pack(leader.vector) if leader.vector is not None else None
            call = Call(request=leader.miss.request, route=route, group=group.prefix_group, embedding=embedding, audit=leader.audit)
            leader.hand_over(sends.call(call))
            self._follow(sends, group)
            if leader.vector is not None:
                leaders.append(leader)
        # A leader whose call is not durable yet must not be followed: its followers could wait for nobody.
        await sends.settle()
        crash_at("after_route")
        self._sent(leaders)

    def _follow(self, sends: Sends, group: Group) -> None:
        source = group.leader.miss.request
        for pending, similarity in group.followers:
            follow = Follow(fingerprint=source.fingerprint, scope=source.scope, kind="coalesced", similarity=similarity,
                            since_ms=group.leader.miss.since_ms, called_ms=self._now(), own_ms=pending.miss.since_ms,
                            fallen=pending.miss.fallen)  # fmt: skip
            pending.hand_over(sends.lookup(Lookup(request=pending.miss.request, follow=follow)))
        group.leader.followed = len(group.followers)

    def _refuse(self, sends: Sends, group: Group, error: EngineError) -> None:
        """No model can take the request: every member hears why."""
        info = ErrorInfo(code=error.code, message=str(error))
        for pending in (group.leader, *(p for p, _ in group.followers)):
            request = pending.miss.request
            pending.hand_over(sends.answer(failed(request, info, self._now()), request.lane))


def fail_all(groups: Sequence[Group], error: Exception) -> None:
    for group in groups:
        group.leader.fail(error)
        for pending, _ in group.followers:
            pending.fail(error)


async def guarded(stage: RouteStage, groups: Sequence[Group]) -> None:
    """Runs the stage; an error fails the members, so that their source packets are tried again."""
    try:
        await stage.on_groups(groups)
    except asyncio.CancelledError:
        raise
    except Exception as error:
        fail_all(groups, error)

"""Runs the semantic tier: looks for an answered prompt that means the same, within one scope."""

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import structlog

from ..pipeline.errors import Unavailable
from ..pipeline.ports import Neighbour
from ..schemas.requests import Follow, Lookup
from .outbox import Outbox
from .packer import Now
from .pending import Group, Pending
from .shards import Shards
from .sharing import Sharing

log = structlog.get_logger(__name__)

Forward = Callable[[list[Pending]], Awaitable[None]]
ForwardGroups = Callable[[list[Group]], Awaitable[None]]


@dataclass(slots=True)
class _Sorted:
    """What became of a batch, but for its hits."""

    misses: list[Pending] = field(default_factory=list)
    audits: list[Pending] = field(default_factory=list)


class SemanticStage:
    """A hit follows its source's answer; a miss goes on to be coalesced; an audited hit is paid for, and follows nobody."""

    def __init__(self, shards: Shards, sharing: Sharing, outbox: Outbox, forward: Forward, alone: ForwardGroups, now: Now) -> None:
        self._shards = shards
        self._sharing = sharing
        self._out = outbox
        self._forward = forward
        self._alone = alone
        self._now = now

    async def on_batch(self, pendings: Sequence[Pending]) -> None:
        try:
            found = await self._search(pendings)
            if found.audits:
                await self._alone([Group(pending) for pending in found.audits])
            if found.misses:
                await self._forward(found.misses)
        except asyncio.CancelledError:
            raise
        except Exception as error:
            for pending in pendings:
                pending.fail(error)

    async def _search(self, pendings: Sequence[Pending]) -> _Sorted:
        by_scope: dict[tuple[int, str, str], list[Pending]] = defaultdict(list)
        for pending in pendings:
            request = pending.miss.request
            by_scope[pending.partition, request.identity.tenant, request.scope].append(pending)
            if pending.miss.fallen:
                self._shards.fell(pending.partition, pending.miss.fallen[-1])
        result = _Sorted()
        sends = self._out.batch()
        for (partition, tenant, scope), members in by_scope.items():
            vectors = np.stack([p.vector for p in members if p.vector is not None])
            try:
                found = await self._shards.search(partition, tenant, scope, vectors, self._sharing.searched)
            except Unavailable as error:
                log.warning("the vector index can't be asked: requests go on without the semantic tier", error=str(error))
                result.misses += members
                continue
            for pending, neighbours in zip(members, found, strict=True):
                follow = self._follow(partition, pending, neighbours)
                if pending.audit:
                    result.audits.append(pending)
                elif follow is None:
                    result.misses.append(pending)
                else:
                    pending.hand_over(sends.lookup(Lookup(request=pending.miss.request, follow=follow)))
        return result

    def _follow(self, partition: int, pending: Pending, neighbours: Sequence[Neighbour]) -> Follow | None:
        request, now = pending.miss.request, self._now()
        # A request that is tried again finds itself, and those that failed it; and the index's word on tenant and scope is checked.
        never = {request.fingerprint, *pending.miss.fallen}
        others = [
            n
            for n in neighbours
            if n.point.id not in never and n.point.scope == request.scope and n.point.tenant == request.identity.tenant
        ]
        found = self._sharing.find(pending, others, now)
        if found is None:
            return None
        source = found.point
        self._shards.hit(partition, source.id)
        return Follow(
            fingerprint=source.id,
            scope=source.scope,
            kind="semantic",
            similarity=found.similarity,
            since_ms=self._shards.called(partition, source.id),
            own_ms=pending.miss.since_ms,
            fallen=pending.miss.fallen,
        )

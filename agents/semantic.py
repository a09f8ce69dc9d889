"""Runs the semantic tier: looks for an answered prompt that means the same, within one scope."""

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence

import numpy as np
import structlog

from ..pipeline.errors import Unavailable
from ..pipeline.ports import Neighbour
from ..pipeline.semantic import Hit, Miss
from ..schemas.requests import Follow, Lookup
from .outbox import Outbox
from .packer import Now
from .pending import Pending
from .shards import Shards

log = structlog.get_logger(__name__)

Forward = Callable[[list[Pending]], Awaitable[None]]
Semantic = Callable[[str, Sequence[Neighbour], int], Hit | Miss]
"""(text, neighbours of its tenant and scope, now in ms) -> may it take the answer of one of them?"""
NEIGHBOURS = 6


class SemanticStage:
    """A hit follows its source's answer; a miss goes on to be coalesced."""

    def __init__(self, shards: Shards, decide: Semantic, outbox: Outbox, forward: Forward, now: Now) -> None:
        self._shards = shards
        self._decide = decide
        self._out = outbox
        self._forward = forward
        self._now = now

    async def on_batch(self, pendings: Sequence[Pending]) -> None:
        try:
            misses = await self._search(pendings)
            if misses:
                await self._forward(misses)
        except asyncio.CancelledError:
            raise
        except Exception as error:
            for pending in pendings:
                pending.fail(error)

    async def _search(self, pendings: Sequence[Pending]) -> list[Pending]:
        by_scope: dict[tuple[int, str, str], list[Pending]] = defaultdict(list)
        for pending in pendings:
            request = pending.miss.request
            by_scope[pending.partition, request.identity.tenant, request.scope].append(pending)
        misses: list[Pending] = []
        sends = self._out.batch()
        for (partition, tenant, scope), members in by_scope.items():
            vectors = np.stack([p.vector for p in members if p.vector is not None])
            try:
                found = await self._shards.search(partition, tenant, scope, vectors, NEIGHBOURS)
            except Unavailable as error:
                log.warning("the vector index can't be asked: requests go on without the semantic tier", error=str(error))
                misses += members
                continue
            for pending, neighbours in zip(members, found, strict=True):
                follow = self._follow(partition, pending, neighbours)
                if follow is None:
                    misses.append(pending)
                else:
                    pending.hand_over(sends.lookup(Lookup(request=pending.miss.request, follow=follow)))
        return misses

    def _follow(self, partition: int, pending: Pending, neighbours: Sequence[Neighbour]) -> Follow | None:
        request, now = pending.miss.request, self._now()
        # A request that is tried again finds itself; and the index's word on tenant and scope is checked, not trusted.
        others = [
            n
            for n in neighbours
            if n.point.id != request.fingerprint and n.point.scope == request.scope and n.point.tenant == request.identity.tenant
        ]
        decision = self._decide(pending.text or "", others, now)
        if not isinstance(decision, Hit):
            return None
        source = decision.neighbour.point
        return Follow(
            fingerprint=source.id,
            scope=source.scope,
            kind="semantic",
            similarity=decision.neighbour.similarity,
            since_ms=self._shards.called(partition, source.id),
        )

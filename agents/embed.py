"""Runs the embedder: reads `misses.LANE`, turns texts into vectors in micro-batches, hands over to the semantic stage."""

import asyncio
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import structlog

from ..pipeline.ports import Embedder, Vector
from ..pipeline.semantic import comparable_text
from ..schemas import packets
from ..schemas.record import Lane
from .exact import decode
from .pending import Group, Pending, handed_over
from .safe import Delivered

log = structlog.get_logger(__name__)

BATCH = 64
Forward = Callable[[list[Pending]], Awaitable[None]]
ForwardGroups = Callable[[list[Group]], Awaitable[None]]
_Asked = tuple[str, "asyncio.Future[Vector | None]"]


class EmbedQueue:
    """Embeds in one thread, most urgent lane first and within it tenants in turns; what arrives while a batch is computed makes up the
    next one."""

    def __init__(self, embedder: Embedder) -> None:
        self._embedder = embedder
        self._waiting: dict[Lane, OrderedDict[str, deque[_Asked]]] = {lane: OrderedDict() for lane in Lane}
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="embed")
        self._running: asyncio.Task[None] | None = None

    def embed(self, text: str, lane: Lane, tenant: str) -> "asyncio.Future[Vector | None]":
        """A unit vector, or None where the model does not see the whole text: equal heads would look like equal texts."""
        future: asyncio.Future[Vector | None] = asyncio.get_running_loop().create_future()
        self._waiting[lane].setdefault(tenant, deque()).append((text, future))
        if self._running is None:
            self._running = asyncio.create_task(self._drain(), name="embed")
        return future

    def _next(self) -> list[_Asked]:
        batch: list[_Asked] = []
        for lane in Lane:
            tenants = self._waiting[lane]
            while tenants and len(batch) < BATCH:
                tenant, queue = tenants.popitem(last=False)
                batch.append(queue.popleft())
                if queue:
                    tenants[tenant] = queue  # at the end: the others come first
        return batch

    async def _drain(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while batch := self._next():
                try:
                    vectors = await loop.run_in_executor(self._pool, self._compute, [text for text, _ in batch])
                    if len(vectors) != len(batch):
                        raise ValueError(f"the embedder gave {len(vectors)} vectors for {len(batch)} texts")
                except Exception as error:
                    for _, future in batch:
                        if not future.done():
                            future.set_exception(error)
                    continue
                for (_, future), vector in zip(batch, vectors, strict=True):
                    if not future.done():
                        future.set_result(vector)
        finally:
            self._running = None

    def _compute(self, texts: Sequence[str]) -> list[Vector | None]:
        found = self._embedder.embed_whole(texts)
        return [np.ascontiguousarray(row) if whole else None for row, whole in zip(found.vectors, found.whole, strict=True)]

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)


class EmbedStage:
    """Opens packets of misses; their events are released when all of their members are handed over."""

    def __init__(self, queue: EmbedQueue | None, to_semantic: Forward, to_route: ForwardGroups) -> None:
        """`queue` is None where the semantic tier is off."""
        self._queue = queue
        self._to_semantic = to_semantic
        self._to_route = to_route

    async def on_misses(self, event: Delivered) -> None:
        loop = asyncio.get_running_loop()
        pendings = [Pending(miss, event.partition, loop.create_future()) for miss in decode(packets.misses, event)]
        await self._embed(pendings)
        similar = [p for p in pendings if p.vector is not None]
        alone = [p for p in pendings if p.vector is None]
        if alone:
            await self._to_route([Group(pending) for pending in alone])
        if similar:
            await self._to_semantic(similar)
        await handed_over(pendings)

    async def _embed(self, pendings: Sequence[Pending]) -> None:
        if self._queue is None:
            return
        asked: list[tuple[Pending, asyncio.Future[Vector | None]]] = []
        for pending in pendings:
            request = pending.miss.request
            if request.shareable and not pending.miss.skip_semantic and (text := comparable_text(request.body)) is not None:
                pending.text = text
                asked.append((pending, self._queue.embed(text, request.lane, request.identity.tenant)))
        results = await asyncio.gather(*(future for _, future in asked), return_exceptions=True)
        for (pending, _), vector in zip(asked, results, strict=True):
            if isinstance(vector, BaseException):
                # Money is not at stake: without a vector the request is answered by the exact tier or the provider.
                log.error("a text could not be embedded; its request goes on without the semantic tier", error=repr(vector))
            else:
                pending.vector = vector

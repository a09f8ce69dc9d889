"""Runs the embedder: reads `misses.LANE`, turns texts into vectors in micro-batches, hands over to the semantic stage."""

import asyncio
import threading
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Sequence

import numpy as np
import structlog

from ..pipeline.embed import shares
from ..pipeline.exact import waiter_of
from ..pipeline.ports import Embedder, Vector
from ..pipeline.semantic import comparable_text
from ..schemas import packets
from ..schemas.record import Lane
from ..schemas.requests import Waiter
from .exact import decode
from .pending import Group, Pending, handed_over
from .safe import Delivered

log = structlog.get_logger(__name__)

BATCH = 128
"""Texts in one pass: 160 ms, which an express request may have to wait. 2,000 requests took 2.5 to 2.9 s, by 64 at once 3.2 to 3.4."""
ASIDE = 16
"""Texts in one pass that no request waits for."""
Forward = Callable[[list[Pending]], Awaitable[None]]
ForwardGroups = Callable[[list[Group]], Awaitable[None]]
_Asked = tuple[str, "asyncio.Future[Vector | None]", Waiter | None]
Book = Callable[[Sequence[tuple[Waiter, int]]], Awaitable[None]]
"""Takes whose texts of one call were billed, and the tokens of each; returns when that is durable."""
_NOTHING: Sequence[int] = ()


class EmbedQueue:
    """Embeds in threads of its own, most urgent lane first and within it tenants in turns; what arrives meanwhile makes up the
    next batch.

    A thread takes its next batch itself, since a busy event loop would leave it idle after each; it ends when nothing waits.
    """

    def __init__(self, embedder: Embedder, bulk: Callable[[], int] = lambda: BATCH, book: Book | None = None) -> None:
        """`bulk`: texts of the batch lane in one pass, which whoever comes next has to wait for. `book` hears what was billed before
        the vectors are given out."""
        self._embedder = embedder
        self._book = book
        self._booking: set[asyncio.Task[None]] = set()
        self._bulk = bulk
        self._waiting: dict[Lane | None, OrderedDict[str, deque[_Asked]]] = {lane: OrderedDict() for lane in (*Lane, None)}
        """By lane, the most urgent first; under None what no request waits for."""
        self._lock = threading.Lock()
        self._running = 0

    def embed(self, text: str, lane: Lane, tenant: str, whose: Waiter | None = None) -> "asyncio.Future[Vector | None]":
        """A unit vector, or None where the model does not see the whole text: equal heads would look like equal texts."""
        return self._ask(text, lane, tenant, whose)

    def embed_aside(self, text: str, whose: Waiter | None = None) -> "asyncio.Future[Vector | None]":
        """The same for what no request waits for: after everything else, a few at a time."""
        return self._ask(text, None, "", whose)

    def _ask(self, text: str, lane: Lane | None, tenant: str, whose: Waiter | None) -> "asyncio.Future[Vector | None]":
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Vector | None] = loop.create_future()
        with self._lock:
            self._waiting[lane].setdefault(tenant, deque()).append((text, future, whose))
            if self._running < self._embedder.parallel:
                self._running += 1
                threading.Thread(target=self._work, args=(loop,), name="embed", daemon=True).start()
        return future

    def expects(self, lane: Lane) -> bool:
        """Are texts of this lane waiting, or perhaps being embedded?"""
        return self._running > 0 or bool(self._waiting[lane])

    def _work(self, loop: asyncio.AbstractEventLoop) -> None:
        while batch := self._next():
            found: Sequence[Vector | None] | Exception
            tokens = _NOTHING
            try:
                found, tokens = self._compute([text for text, _, _ in batch])
            except Exception as error:
                found = error
            try:
                loop.call_soon_threadsafe(self._give, batch, found, tokens)
            except RuntimeError:  # the loop is closed: nobody waits any more
                self.close()

    def _next(self) -> list[_Asked]:
        """Empty where nothing waits: then the thread ends, and the next text starts another."""
        batch: list[_Asked] = []
        with self._lock:
            for lane, tenants in self._waiting.items():
                most = self._most(lane)
                while tenants and len(batch) < most:
                    tenant, queue = tenants.popitem(last=False)
                    batch.append(queue.popleft())
                    if queue:
                        tenants[tenant] = queue  # at the end: the others come first
            self._running -= not batch
        return batch

    def _most(self, lane: Lane | None) -> int:
        if lane is None:
            return min(ASIDE, self._bulk())
        return min(BATCH, self._bulk()) if lane is Lane.BATCH else BATCH

    def _compute(self, texts: Sequence[str]) -> tuple[list[Vector | None], Sequence[int]]:
        """Vectors, and the tokens that were billed for each text; none where the model runs here."""
        found = self._embedder.embed_whole(texts)
        vectors = [np.ascontiguousarray(row) if whole else None for row, whole in zip(found.vectors, found.whole, strict=True)]
        if len(vectors) != len(texts):
            raise ValueError(f"the embedder gave {len(vectors)} vectors for {len(texts)} texts")
        if not found.billed_tokens:
            return vectors, _NOTHING
        weights = [len(text.encode("utf-8", "replace")) * bool(whole) for text, whole in zip(texts, found.whole, strict=True)]
        return vectors, shares(found.billed_tokens, weights)

    def _give(self, batch: Sequence[_Asked], found: Sequence[Vector | None] | Exception, tokens: Sequence[int]) -> None:
        billed = [(whose, part) for (_, _, whose), part in zip(batch, tokens, strict=False) if whose is not None and part]
        if self._book is None or not billed:
            _deliver(batch, found)
            return
        task = asyncio.get_running_loop().create_task(self._give_booked(self._book, billed, batch, found), name="book embeddings")
        self._booking.add(task)
        task.add_done_callback(self._booking.discard)

    async def _give_booked(
        self, book: Book, billed: Sequence[tuple[Waiter, int]], batch: Sequence[_Asked], found: Sequence[Vector | None] | Exception
    ) -> None:
        try:
            await book(billed)
        except Exception as error:
            log.error("what an embeddings endpoint billed could not be booked", tokens=sum(part for _, part in billed), error=repr(error))
        _deliver(batch, found)

    def close(self) -> None:
        """Texts that still wait are not embedded."""
        with self._lock:
            for tenants in self._waiting.values():
                tenants.clear()


def _deliver(batch: Sequence[_Asked], found: Sequence[Vector | None] | Exception) -> None:
    for i, (_, future, _) in enumerate(batch):
        if future.done():
            continue
        if isinstance(found, Exception):
            future.set_exception(found)
        else:
            future.set_result(found[i])


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
                asked.append((pending, self._queue.embed(text, request.lane, request.identity.tenant, waiter_of(request))))
        results = await asyncio.gather(*(future for _, future in asked), return_exceptions=True)
        for (pending, _), vector in zip(asked, results, strict=True):
            if isinstance(vector, BaseException):
                # Money is not at stake: without a vector the request is answered by the exact tier or the provider.
                log.error("a text could not be embedded; its request goes on without the semantic tier", error=repr(vector))
            else:
                pending.vector = vector

"""The vector index of each owned partition: rebuilt from the `vectors` topic, asked by the semantic stage."""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol, TypeVar

import structlog
from pydantic import ValidationError

from ..connectors.tail import Tail
from ..pipeline import vectors
from ..pipeline.errors import Unavailable
from ..pipeline.judge import HEAD
from ..pipeline.ports import Neighbour, Point, Vector, VectorIndex, Vectors
from ..schemas import packets
from ..schemas.answers import Told, VectorRecord
from ..schemas.corrections import Correction
from .exact import Keeper
from .packer import Now
from .pending import Pending

log = structlog.get_logger(__name__)
T = TypeVar("T")

FLUSH_AT = 256
KEEP = 4 * FLUSH_AT
"""Points of a shard that wait while the index can't be written to; further ones are not found by similarity."""
REST_S = 15.0
"""An index that failed is left alone for so long: each try may take seconds, in the one thread there is."""
OPEN_WAIT_S = 1.0
PURGE_S = 3600.0
"""Between two deletions of what expired. It is never returned: until then it takes room, on a server for as long as nobody deletes it."""
DROP_LATER = 10_000
"""Points of a shard whose deletion failed and is tried again; others stay until they expire."""


class _Shard:
    """One partition's index and what waits to be written to it."""

    def __init__(self, index: VectorIndex) -> None:
        self.index = index
        self.known: dict[str, int] = {}
        """Fingerprint -> when its point expires."""
        self.called: dict[str, int] = {}
        """Fingerprint -> take-off of its last flight whose call is durable, of points in the index."""
        self.told: dict[str, Told] = {}
        """Fingerprint -> what is kept of its answer, of points in the index."""
        self.served: dict[str, int] = {}
        """Fingerprint -> how often its answer was given from a cache, as far as a policy asks for that."""
        self.add: list[Point] = []
        self.drop: dict[str, None] = {}

    def forget(self, fingerprint: str) -> None:
        self.known.pop(fingerprint, None)
        self.called.pop(fingerprint, None)
        self.told.pop(fingerprint, None)
        self.served.pop(fingerprint, None)

    def put(self, point: Point) -> None:
        self.served.pop(point.id, None)
        self.known[point.id] = point.expires_ms
        self.drop.pop(point.id, None)  # it is written over, and would be deleted after that
        self.add.append(point)

    def take(self) -> tuple[list[Point], list[str]]:
        add, drop, self.add, self.drop = self.add, list(self.drop), [], {}
        return add, drop

    def take_back(self, drop: Sequence[str]) -> None:
        """They could not be deleted."""
        self.drop = dict.fromkeys(f for f in drop if f not in self.known) | self.drop
        while len(self.drop) > DROP_LATER:
            del self.drop[next(iter(self.drop))]


class Listener(Protocol):
    """Learns from the answers of the points."""

    def answered(self, partition: int, fingerprint: str, told: Told, *, changed: bool) -> None: ...

    def forgot(self, partition: int, fingerprint: str) -> None: ...


class Shards:
    """Writes are gathered and applied before the next search of their shard; all index work happens in one thread."""

    def __init__(self, make_index: Callable[[int], VectorIndex], tail: Tail, keeper: Keeper, now: Now) -> None:
        """`tail` must have been made with this object's `apply`; see `Shards.create`."""
        self._make_index = make_index
        self._tail = tail
        self._keeper = keeper
        self._now = now
        self._shards: dict[int, _Shard] = {}
        self._opening: dict[int, asyncio.Task[None]] = {}
        self._purging: asyncio.Task[None] | None = None
        self._rest_until = float("-inf")
        self.listener: Listener | None = None
        self.made_before: Callable[[str, int], bool] = lambda _fingerprint, _created_ms: False
        """Was an answer to this fingerprint reported wrong after it was made at this time?"""
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="vectors")

    @classmethod
    def create(cls, make_index: Callable[[int], VectorIndex], brokers: Sequence[str], topic: str, keeper: Keeper, now: Now) -> "Shards":
        def apply(partition: int, _offset: int, value: bytes | None) -> None:
            shards.apply(partition, value)

        shards = cls(make_index, Tail(brokers, topic, apply), keeper, now)
        return shards

    @property
    def prompts(self) -> int:
        """Answered or called prompts that can be found by similarity now; after a start it grows as the topic is read."""
        return sum(len(shard.known) for shard in self._shards.values())

    async def start(self) -> None:
        await self._tail.start()
        self._purging = asyncio.create_task(self._purge_ever(), name="purge vectors")

    async def assigned(self, partitions: Iterable[int]) -> None:
        """Starts empty shards; they fill from the topic while requests already flow, with fewer hits until then.

        An index that can't be opened at once is opened later: requests don't wait for it.
        """
        opening = {p: asyncio.create_task(self._open(p), name=f"open vectors {p}") for p in partitions}
        self._opening |= opening
        if opening:
            await asyncio.wait(opening.values(), timeout=OPEN_WAIT_S)

    async def _open(self, partition: int) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(max(0.0, self._rest_until - loop.time()))
            if loop.time() < self._rest_until:
                continue  # another one has failed meanwhile
            made: list[VectorIndex] = []
            try:
                await asyncio.shield(loop.run_in_executor(self._pool, self._make_into, made, partition))
            except asyncio.CancelledError:
                # The thread goes on; it closes the index before it begins anything else, so that its folder is free again.
                loop.run_in_executor(self._pool, _close_all, made)
                raise
            except Unavailable as error:
                self._rest("no vector index for this partition: its semantic tier is off for now", error, partition=partition)
            else:
                self._shards[partition] = _Shard(made[0])
                self._tail.assign(dict.fromkeys(self._shards, 0))
                await self.purge([partition])  # a server holds what expired while nobody owned the partition
                return

    def _make_into(self, made: list[VectorIndex], partition: int) -> None:
        made.append(self._make_index(partition))

    def _rest(self, what: str, error: Unavailable, **where: object) -> None:
        self._rest_until = asyncio.get_running_loop().time() + REST_S
        log.error(what, error=str(error), again_in_s=REST_S, **where)

    @property
    def _resting(self) -> bool:
        return asyncio.get_running_loop().time() < self._rest_until

    async def revoked(self, partitions: Iterable[int]) -> None:
        partitions = list(partitions)
        opening = [self._opening.pop(p) for p in partitions if p in self._opening]
        for task in opening:
            task.cancel()
        await asyncio.gather(*opening, return_exceptions=True)
        gone = [(p, self._shards.pop(p)) for p in partitions if p in self._shards]
        self._tail.assign(dict.fromkeys(self._shards, 0))
        loop = asyncio.get_running_loop()
        for partition, _ in gone:
            self._keeper.drop(partition)
        # All at once: a rebalance may cut this short, and an index that stays open can't be opened again.
        closing = [loop.run_in_executor(self._pool, shard.index.close) for _, shard in gone]
        if closing:
            await asyncio.wait(closing)
            for closed in closing:
                closed.result()

    async def _purge_ever(self) -> None:
        while True:
            await asyncio.sleep(PURGE_S)
            await self.purge(list(self._shards))

    async def purge(self, partitions: Iterable[int]) -> None:
        """Deletes what expired, and what waits to be deleted. Where that fails, it is done the next time."""
        for partition in partitions:
            shard, now = self._shards.get(partition), self._now()
            if shard is None or self._resting:
                continue
            for fingerprint in [fingerprint for fingerprint, expires_ms in shard.known.items() if expires_ms <= now]:
                self._leave(partition, shard, fingerprint)
            try:
                await self._in_thread(shard, _write_and_purge)
            except Exception as error:
                # One that can't be reached takes its whole timeout, in the thread that the searches wait for.
                log.error(
                    "expired vectors could not be deleted; they are not returned, and tried again", again_in_s=PURGE_S, error=repr(error)
                )
                return

    async def _in_thread(self, shard: _Shard, work: Callable[..., T], *arguments: object) -> T:
        """Hands over what waits to be written to this shard. What could not be deleted is tried again."""
        add, drop = shard.take()
        try:
            return await asyncio.get_running_loop().run_in_executor(self._pool, work, shard.index, add, drop, *arguments)
        except Exception:
            shard.take_back(drop)
            raise

    def apply(self, partition: int, value: bytes | None) -> None:
        """Takes one packet of the topic."""
        if value is None:
            return
        try:
            records: list[VectorRecord] = packets.vectors.decode(value)
        except ValidationError as error:
            log.error("a packet of vectors can't be read; its prompts won't be found by similarity", error=str(error))
            return
        for record in records:
            self._take(partition, record)

    def _take(self, partition: int, record: VectorRecord) -> None:
        shard = self._shards.get(partition)
        if shard is None:
            return
        if record.revoked:
            self._forget(partition, shard, record.fingerprint)
            return
        if record.served:
            if record.fingerprint in shard.known:
                shard.served[record.fingerprint] = shard.served.get(record.fingerprint, 0) + 1
            return
        if record.expires_ms <= self._now():
            return
        if self.made_before(record.fingerprint, record.created_ms):
            shard.drop[record.fingerprint] = None  # a server may have it still
            return
        if self._is_known(shard, record.fingerprint):
            self._tell(partition, shard, record)
            self._keeper.revalue(partition, bytes.fromhex(record.fingerprint), record.paid_pico)
            return
        try:
            vector = vectors.unpack(record.vector)
        except ValueError as error:
            log.error("a stored vector can't be read", fingerprint=record.fingerprint, error=str(error))
            return
        point = Point(
            record.fingerprint, vector, record.tenant, record.scope, record.text, created_ms=record.created_ms, expires_ms=record.expires_ms
        )
        self._add(partition, shard, point, record.paid_pico)
        if self._is_known(shard, record.fingerprint):
            self._tell(partition, shard, record)

    def _tell(self, partition: int, shard: _Shard, record: VectorRecord) -> None:
        if record.answer is None:
            return
        before = shard.told.get(record.fingerprint)
        shard.told[record.fingerprint] = record.answer
        if self.listener is not None:
            changed = before is not None and before.digest != record.answer.digest
            self.listener.answered(partition, record.fingerprint, record.answer, changed=changed)

    def corrected(self, correction: Correction) -> None:
        """The answer is not found any more, wherever it is."""
        for partition, shard in self._shards.items():
            if correction.fingerprint in shard.known:
                self._forget(partition, shard, correction.fingerprint)

    def served(self, partition: int, fingerprint: str) -> int:
        """How often its answer was given from either cache; known only where the exact tier tells."""
        shard = self._shards.get(partition)
        return 0 if shard is None else shard.served.get(fingerprint, 0)

    def hit(self, partition: int, fingerprint: str) -> None:
        """Its answer was given to somebody who asked something near it."""
        self._keeper.touch(partition, bytes.fromhex(fingerprint), self._now())

    def told(self, partition: int, fingerprint: str) -> Told | None:
        """What is kept of the answer of a point; None where there is none, or not yet."""
        shard = self._shards.get(partition)
        return None if shard is None else shard.told.get(fingerprint)

    def drop(self, partition: int, fingerprints: Sequence[str]) -> None:
        """They are not found any more, until they are answered again."""
        shard = self._shards.get(partition)
        if shard is not None:
            for fingerprint in fingerprints:
                self._forget(partition, shard, fingerprint)

    def fell(self, partition: int, fingerprint: str) -> None:
        """Its flight gave a follower nothing: unless it has been answered, nobody else is sent to wait for it."""
        shard = self._shards.get(partition)
        if shard is not None and fingerprint in shard.known and fingerprint not in shard.told:
            self._forget(partition, shard, fingerprint)

    def _forget(self, partition: int, shard: _Shard, fingerprint: str) -> None:
        shard.drop[fingerprint] = None
        self._leave(partition, shard, fingerprint)

    def _leave(self, partition: int, shard: _Shard, fingerprint: str) -> None:
        shard.forget(fingerprint)
        self._keeper.remove(partition, bytes.fromhex(fingerprint))
        if self.listener is not None:
            self.listener.forgot(partition, fingerprint)

    def sent(self, pendings: Sequence[Pending]) -> None:
        """Leaders that are being answered: later misses may already wait for them."""
        now = self._now()
        for pending in pendings:
            shard = self._shards.get(pending.partition)
            request = pending.miss.request
            if shard is None or pending.vector is None:
                continue
            if pending.miss.since_ms is not None:
                shard.called[request.fingerprint] = pending.miss.since_ms
            if not self._is_known(shard, request.fingerprint):
                self._add(pending.partition, shard, _point_of(pending, pending.vector, now))
            for _ in range(pending.followed):
                self.hit(pending.partition, request.fingerprint)

    def _is_known(self, shard: _Shard, fingerprint: str) -> bool:
        """A point that expired is no use to anyone: the next one of its prompt takes its place."""
        return shard.known.get(fingerprint, 0) > self._now()

    def called(self, partition: int, fingerprint: str) -> int | None:
        """When the last flight of this prompt took off whose call is durable; None where none is known here."""
        shard = self._shards.get(partition)
        return None if shard is None else shard.called.get(fingerprint)

    def _add(self, partition: int, shard: _Shard, point: Point, saved_pico: int = 0) -> None:
        """`saved_pico`: what a hit saves, as far as that is known by now."""
        if len(shard.add) >= KEEP:
            return
        shard.put(point)
        size = point.vector.nbytes + len(point.text) + 256 + HEAD
        for key in self._keeper.insert(partition, bytes.fromhex(point.id), size, saved_pico, self._now()):
            self._forget(partition, shard, key.hex())
        if len(shard.add) >= FLUSH_AT and not self._resting:
            task = asyncio.ensure_future(self._flush(shard))
            task.add_done_callback(_tell_failure)

    async def _flush(self, shard: _Shard) -> None:
        if shard.add or shard.drop:
            await self._in_thread(shard, _write)

    async def search(self, partition: int, tenant: str, scope: str, queries: Vectors, limit: int) -> list[list[Neighbour]]:
        """Raises `Unavailable` where the partition has no index, or it can't be asked."""
        shard = self._shards.get(partition)
        if shard is None:
            raise Unavailable(f"partition {partition} has no vector index")
        if self._resting:
            raise Unavailable("the vector index failed a moment ago and is left alone for a while")
        try:
            return await self._in_thread(shard, _write_and_search, tenant, scope, queries, limit)
        except Unavailable as error:
            if not self._resting:
                self._rest("the vector index failed: requests go on without the semantic tier for now", error, partition=partition)
            raise

    async def stop(self) -> None:
        if self._purging is not None:
            self._purging.cancel()
            await asyncio.gather(self._purging, return_exceptions=True)
        await self._tail.stop()
        await self.revoked([*self._shards, *self._opening])
        self._pool.shutdown(wait=True)


def _point_of(pending: Pending, vector: Vector, now_ms: int) -> Point:
    request = pending.miss.request
    return Point(
        request.fingerprint,
        vector,
        request.identity.tenant,
        request.scope,
        pending.text or "",
        created_ms=now_ms,
        expires_ms=now_ms + 1000 * request.cache_ttl_s,
    )


def _write(index: VectorIndex, add: Sequence[Point], drop: Sequence[str]) -> None:
    if add:
        index.upsert(add)
    if drop:
        index.delete(drop)


def _write_and_search(
    index: VectorIndex, add: Sequence[Point], drop: Sequence[str], tenant: str, scope: str, queries: Vectors, limit: int
) -> list[list[Neighbour]]:
    _write(index, add, drop)
    return index.search(tenant, scope, queries, limit)


def _write_and_purge(index: VectorIndex, add: Sequence[Point], drop: Sequence[str]) -> None:
    _write(index, add, drop)
    index.purge()


def _close_all(made: Sequence[VectorIndex]) -> None:
    for index in made:
        index.close()


def _tell_failure(task: "asyncio.Future[None]") -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("the vector index could not be written; some prompts won't be found by similarity", error=repr(error))

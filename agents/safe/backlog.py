"""What was fetched and has not begun: in the order of arrival, or in turns by tenant."""

import asyncio
import logging
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import TYPE_CHECKING, Protocol

from aiokafka import TopicPartition

from .claims import Claim

if TYPE_CHECKING:
    from .delivery import Delivered

log = logging.getLogger(__name__)

BACKLOG_BYTES = 16 * 1024 * 1024
HELD = 100_000
"""Events that are known and not begun, at most: their places take some 25 MB then."""
RELOAD_EVENTS, RELOAD_BYTES = 512, 4 * 1024 * 1024
RETRY_S = 1.0
OVERDRAFT = 4

Reread = Callable[[TopicPartition, Sequence[int]], Awaitable[Mapping[int, "Delivered"]]]
"""Reads records of a partition again, by their offsets in order; those that are gone are missing. `Delivered` without a claim."""
Share = Callable[["Delivered"], bytes]
"""Whose event it is."""


def _size(event: "Delivered") -> int:
    return len(event.value or b"")


def _alive(claim: Claim | None) -> bool:
    return claim is None or claim.alive


class Backlog(Protocol):
    """Where an intake keeps its events until they begin."""

    def __len__(self) -> int: ...

    @property
    def full(self) -> bool:
        """No more should be fetched for now."""
        ...

    def offer(self, event: "Delivered") -> None: ...

    def begin(self) -> "Delivered | None":
        """The next event that may begin now: `end` it."""
        ...

    def end(self, event: "Delivered") -> None: ...

    def forget_lost(self) -> None:
        """Drops events of partitions that are no longer ours."""
        ...

    def clear(self) -> None: ...


class InOrder:
    """At most `limit` at work; events begin in the order of their arrival."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._waiting: deque[Delivered] = deque()
        self._bytes = 0
        self._at_work = 0

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def full(self) -> bool:
        return len(self._waiting) >= max(self._limit, 256) or self._bytes >= BACKLOG_BYTES

    def offer(self, event: "Delivered") -> None:
        self._waiting.append(event)
        self._bytes += _size(event)

    def begin(self) -> "Delivered | None":
        while self._waiting and self._at_work < self._limit:
            event = self._waiting.popleft()
            self._bytes -= _size(event)
            if _alive(event.claim):
                self._at_work += 1
                return event
        return None

    def end(self, event: "Delivered") -> None:
        self._at_work -= 1

    def forget_lost(self) -> None:
        self._waiting = deque(event for event in self._waiting if _alive(event.claim))
        self._bytes = sum(map(_size, self._waiting))

    def clear(self) -> None:
        self._waiting.clear()
        self._bytes = 0


@dataclass(frozen=True, slots=True)
class _Place:
    """An event whose record was let go: the topic holds it, and it is not acknowledged."""

    claim: Claim
    offset: int
    size: int


@dataclass(slots=True)
class _Tenant:
    """One tenant's events; `count` and `bytes` are of those at work."""

    waiting: "deque[Delivered | _Place]" = field(default_factory=deque)
    count: int = 0
    bytes: int = 0
    loading: "asyncio.Task[None] | None" = None


class InTurns:
    """Tenants take turns, however many events of one lie before another's.

    So that those behind a flood can be seen, much more is read ahead than memory could hold: of what exceeds `BACKLOG_BYTES` only the
    place is kept, and the record is read again when its turn comes. Nothing is acknowledged before it is done, and nothing is written.

    At most `limit` records and `max_bytes` are at work, one tenant has half of that; but two records of each tenant always may, up to
    `OVERDRAFT` times the bytes: who comes new must not wait until somebody's slow records are done.
    """

    def __init__(self, limit: int, max_bytes: int, share: Share, reread: Reread, wake: Callable[[], None], held: int = HELD) -> None:
        """`wake` is called when records have been read again: something may begin."""
        self._limit, self._max_bytes, self._max_held = limit, max_bytes, held
        self._share, self._reread, self._wake = share, reread, wake
        self._tenants: OrderedDict[bytes, _Tenant] = OrderedDict()
        """In the order of their turns."""
        self._held = 0
        self._resident = 0
        self._count = 0
        self._bytes = 0

    def __len__(self) -> int:
        return self._held

    @property
    def full(self) -> bool:
        return self._held >= self._max_held

    @property
    def resident_bytes(self) -> int:
        """Of records that are kept in memory and have not begun."""
        return self._resident

    def offer(self, event: "Delivered") -> None:
        tenant = self._tenants.setdefault(self._share(event), _Tenant())
        size = _size(event)
        self._held += 1
        if event.claim is not None and tenant.waiting and self._resident + size > BACKLOG_BYTES:
            tenant.waiting.append(_Place(event.claim, event.offset, size))
        else:
            self._resident += size
            tenant.waiting.append(event)

    def begin(self) -> "Delivered | None":
        for name in tuple(self._tenants):
            tenant = self._tenants[name]
            if tenant.loading is not None or not self._may_begin(tenant):
                continue
            event = self._next(name, tenant)
            if event is not None:
                self._tenants.move_to_end(name)
                self._account(tenant, +1, event)
                return event
        return None

    def _may_begin(self, tenant: _Tenant) -> bool:
        if not tenant.waiting:
            return False
        room = self._count < self._limit and self._bytes < self._max_bytes
        own_room = tenant.count < max(1, self._limit // 2) and tenant.bytes < self._max_bytes // 2
        return (room and own_room) or (tenant.count < 2 and self._bytes < OVERDRAFT * self._max_bytes)

    def _next(self, name: bytes, tenant: _Tenant) -> "Delivered | None":
        """None where the tenant's next record is not here (it is being read again), or nothing of it is ours any more."""
        while tenant.waiting:
            first = tenant.waiting[0]
            if isinstance(first, _Place) and first.claim.alive:
                tenant.loading = asyncio.create_task(self._load(name, tenant), name="read records again")
                return None
            self._drop_first(tenant)
            if not isinstance(first, _Place) and _alive(first.claim):
                return first
        self._tidy(name, tenant)
        return None

    def _drop_first(self, tenant: _Tenant) -> None:
        first = tenant.waiting.popleft()
        self._held -= 1
        if not isinstance(first, _Place):
            self._resident -= _size(first)

    def _account(self, tenant: _Tenant, sign: int, event: "Delivered") -> None:
        size = sign * _size(event)
        self._count += sign
        self._bytes += size
        tenant.count += sign
        tenant.bytes += size

    def end(self, event: "Delivered") -> None:
        name = self._share(event)
        tenant = self._tenants.setdefault(name, _Tenant())
        self._account(tenant, -1, event)
        self._tidy(name, tenant)

    def _tidy(self, name: bytes, tenant: _Tenant) -> None:
        if not tenant.waiting and not tenant.count and tenant.loading is None:
            self._tenants.pop(name, None)

    # --- reading again -----------------------------------------------------------------------------------------------

    async def _load(self, name: bytes, tenant: _Tenant) -> None:
        try:
            wanted = self._wanted(tenant)
            claim = wanted[0].claim
            found = await self._reread(claim.tp, [place.offset for place in wanted])
            self._put_back(tenant, claim, {place.offset for place in wanted}, found)
        except Exception as error:  # whatever the client raises: the places are still there, and nothing is acknowledged
            log.warning("%d records waiting for their turn can't be read again yet: %r", len(tenant.waiting), error)
            await asyncio.sleep(RETRY_S)
        finally:
            tenant.loading = None
            self._tidy(name, tenant)
        self._wake()

    def _wanted(self, tenant: _Tenant) -> list[_Place]:
        """The tenant's next places, as many as one reading gives: of one partition, near each other."""
        first = tenant.waiting[0]
        assert isinstance(first, _Place)
        wanted, size = [first], first.size
        for held in islice(tenant.waiting, 1, RELOAD_EVENTS):
            if isinstance(held, _Place) and held.claim is first.claim and held.offset < first.offset + 4 * RELOAD_EVENTS:
                size += held.size
                if size > RELOAD_BYTES:
                    break
                wanted.append(held)
        return wanted

    def _put_back(self, tenant: _Tenant, claim: Claim, wanted: set[int], found: Mapping[int, "Delivered"]) -> None:
        # They are among the first ones: nothing begins meanwhile.
        first = [tenant.waiting.popleft() for _ in range(min(RELOAD_EVENTS, len(tenant.waiting)))]
        kept: list[Delivered | _Place] = []
        for held in first:
            if not isinstance(held, _Place) or held.claim is not claim or held.offset not in wanted:
                kept.append(held)
            elif held.offset in found:
                event = replace(found[held.offset], claim=claim)
                kept.append(event)
                self._resident += _size(event)
            else:
                log.error("%s@%d was deleted by retention before it was done", claim.tp, held.offset)
                self._held -= 1
                claim.finish(held.offset)
        tenant.waiting.extendleft(reversed(kept))

    # --- ownership ---------------------------------------------------------------------------------------------------

    def forget_lost(self) -> None:
        for name, tenant in list(self._tenants.items()):
            tenant.waiting = deque(held for held in tenant.waiting if _alive(held.claim))
            self._tidy(name, tenant)
        self._held = sum(len(tenant.waiting) for tenant in self._tenants.values())
        self._resident = sum(_size(h) for t in self._tenants.values() for h in t.waiting if not isinstance(h, _Place))

    def clear(self) -> None:
        for name, tenant in list(self._tenants.items()):
            if tenant.loading is not None:
                tenant.loading.cancel()
            tenant.waiting.clear()
            self._tidy(name, tenant)
        self._held = self._resident = 0

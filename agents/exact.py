"""Runs the exact tier: reads `lookups` and `answers`, keeps the table, releases waiters."""

from collections.abc import Callable, Iterable, Mapping
from typing import Protocol, TypeVar

from pydantic import ValidationError

from ..connectors.crash_points import crash_at
from ..pipeline import exact
from ..pipeline.respond import Clerk, error_event, error_line, failed, follower_outcome
from ..schemas import packets
from ..schemas.answers import AnswerRecord, ErrorInfo
from ..schemas.exact import Flight, WaiterRow
from ..schemas.record import Record
from ..schemas.requests import Lookup, Miss, Request, Waiter
from .outbox import Outbox
from .packer import Now
from .safe import DeadLetter, Delivered

CANCELLED = ErrorInfo(code="cancelled", message="the job was cancelled before this request was paid; submit it again to have it answered")


class Rows(Protocol):
    """The table, as this stage uses it."""

    def read(self, partition: int, key: bytes) -> bytes | None: ...

    async def write(self, partition: int, changes: Mapping[bytes, bytes | None]) -> None: ...

    def scan(self, partition: int) -> Iterable[tuple[bytes, bytes]]: ...


class Keeper(Protocol):
    """Decides which answers stay when there are too many (see pipeline/eviction.py)."""

    def insert(self, partition: int, key: bytes, size: int, saved_pico: int, now_ms: int) -> list[bytes]:
        """Returns the keys that have to go."""
        ...

    def touch(self, partition: int, key: bytes, now_ms: int) -> None: ...

    def revalue(self, partition: int, key: bytes, saved_pico: int) -> None:
        """What one hit saves, where it was not known at the insertion."""
        ...

    def remove(self, partition: int, key: bytes) -> None:
        """It is gone already."""
        ...

    def drop(self, partition: int) -> None: ...


Waiting = dict[str, dict[bytes, None]]
"""Fingerprint -> keys of its waiters' rows, in the order of their arrival; thousands may wait for one answer."""


class Decided:
    """The rows as decided: what is being written is read as written.

    Between a decision and the table's taking it in, other events of the partition run (during a rebalance for seconds). Without this
    they would start a second flight of the same fingerprint.
    """

    def __init__(self, rows: Rows) -> None:
        self._rows = rows
        self._writing: dict[tuple[int, bytes], tuple[bytes | None, int]] = {}

    def read(self, partition: int, key: bytes) -> bytes | None:
        row = self._writing.get((partition, key))
        return row[0] if row is not None else self._rows.read(partition, key)

    async def write(self, partition: int, changes: Mapping[bytes, bytes | None]) -> None:
        """Raises what the table raises; then its rows are as they were, and the event is tried again."""
        for key, value in changes.items():
            _, writers = self._writing.get((partition, key), (None, 0))
            self._writing[partition, key] = value, writers + 1
        try:
            await self._rows.write(partition, changes)
        finally:
            for key in changes:
                newest, writers = self._writing.pop((partition, key))
                if writers > 1:
                    self._writing[partition, key] = newest, writers - 1


class ExactStage:
    """Single flight and exact answers of the partitions that this worker owns."""

    def __init__(
        self,
        rows: Rows,
        outbox: Outbox,
        clerk: Clerk,
        keeper: Keeper,
        now: Now,
        *,
        lease_ms: int,
        cancelled: Callable[[Request], bool],
        oldest_call_ms: Callable[[int], int | None] = lambda _: None,
        revoked: Callable[[AnswerRecord], bool] = lambda _: False,
        tell_served: bool = False,
    ) -> None:
        """`revoked`: answers that were reported wrong, which nobody is given who asks later. `tell_served`: whether the semantic tier
        hears of each answer that is given from a cache.

        `oldest_call_ms`: when the oldest call of a partition that is not done was sent there. Leases count by that time: in a queue of
        hours a flight whose call has not had its turn is not lost."""
        self._rows = rows
        self._decided = Decided(rows)
        self._out = outbox
        self._clerk = clerk
        self._keeper = keeper
        self._now = now
        self._lease_ms = lease_ms
        self._cancelled = cancelled
        self._oldest_call_ms = oldest_call_ms
        self._revoked = revoked
        self._tell_served = tell_served
        self._waiting: dict[int, Waiting] = {}

    async def assigned(self, partitions: Iterable[int]) -> None:
        """Rebuilds what is kept in memory from the recovered rows."""
        now = self._now()
        for partition in partitions:
            waiting: Waiting = {}
            self._waiting[partition] = waiting
            kept: list[tuple[int, bytes, int, int]] = []
            for key, value in self._rows.scan(partition):
                if key[:1] == exact.WAITER:
                    waiting.setdefault(exact.fingerprint_of(key), {})[key] = None
                elif key[:1] == exact.ANSWER:
                    made_ms, saved_pico = exact.worth_of(value)
                    kept.append((made_ms, key, len(value), saved_pico))
            gone: list[bytes] = []
            for _, key, size, saved_pico in sorted(kept):  # the order of their hits is not known any more, that of their making is
                gone += self._keeper.insert(partition, key, size, saved_pico, now)
            if gone:
                await self._rows.write(partition, dict.fromkeys(gone))

    async def revoked(self, partitions: Iterable[int]) -> None:
        for partition in partitions:
            self._waiting.pop(partition, None)
            self._keeper.drop(partition)

    async def on_lookups(self, event: Delivered) -> None:
        """Answers, joins or starts a flight for every member; returns when all of it is durable."""
        members = decode(packets.lookups, event)
        batch = _Batch(self, event.partition)
        for lookup in members:
            batch.look_up(lookup)
        await batch.settle()
        crash_at("after_join")

    async def on_answers(self, event: Delivered) -> None:
        """Stores what may be kept and releases everyone who waits."""
        heirs: set[str] = set()
        batch = _Batch(self, event.partition, heirs)
        members: list[AnswerRecord] = decode(packets.answers, event)
        stands = [batch.keep(record) for record in members]
        todo = list(zip(members, stands, strict=True))
        while todo:
            served = [key for record, stand in todo for key in batch.release(record, stand)]
            await batch.settle()
            crash_at("after_fan_out")
            batch = _Batch(self, event.partition, heirs)
            batch.forget(served)
            # Whoever joined meanwhile is served in the next round; a flight ends when nobody is left, without a pause in between.
            todo = [(record, stand) for record, stand in todo if not batch.land(record)]
        await batch.settle()


class _Batch:
    """The effects of one event: rows are seen by the next reader at once, everything is awaited in `settle`."""

    def __init__(self, stage: ExactStage, partition: int, heirs: set[str] | None = None) -> None:
        """`heirs`: fingerprints whose flight was taken over for this event, or goes on after it."""
        self._s = stage
        self._p = partition
        self._now = stage._now()
        self._changes: dict[bytes, bytes | None] = {}
        self._sends = stage._out.batch()
        self._starts: list[Miss] = []
        self._taken_over = set() if heirs is None else heirs

    def _read(self, key: bytes) -> bytes | None:
        return self._changes[key] if key in self._changes else self._s._decided.read(self._p, key)

    @property
    def _waiting(self) -> Waiting:
        return self._s._waiting.setdefault(self._p, {})

    def look_up(self, lookup: Lookup) -> None:
        request = lookup.request
        fingerprint = lookup.follow.fingerprint if lookup.follow else request.fingerprint
        key = exact.answer_key(fingerprint)
        raw = self._read(key)
        answer = AnswerRecord.model_validate_json(raw) if raw is not None else None
        if answer is not None and self._s._revoked(answer):
            answer = self._changes[key] = None
        flight = self._flight(fingerprint)
        late = flight is not None and self._now >= flight.lease_ms
        oldest = self._s._oldest_call_ms(self._p) if late else None
        decision = exact.look_up(lookup, answer, flight, self._now, self._s._lease_ms, self._now if oldest is None else oldest)
        if isinstance(decision, exact.Hit):
            self._s._keeper.touch(self._p, key, self._now)
            self._respond(exact.waiter_of(request), decision.record)
        elif isinstance(decision, exact.Share):
            self._s._keeper.touch(self._p, key, self._now)
            self._sends.answer(decision.record, request.lane)
        elif self._s._cancelled(request) and not self._under_way(lookup):
            self._cancel(lookup)
        elif isinstance(decision, exact.Return):
            self._sends.miss(decision.miss)
        elif isinstance(decision, exact.Overtake):
            self._sends.lookup(decision.lookup)
        else:
            self._join(fingerprint, decision)

    def _under_way(self, lookup: Lookup) -> bool:
        """This very request flies or waits already: it will be told what became of it there, and only once."""
        request = lookup.request
        key = exact.waiter_key(request.fingerprint, request.identity)
        return lookup.follow is None and key in self._waiting.get(request.fingerprint, ())

    def _cancel(self, lookup: Lookup) -> None:
        """A follower has its own flight's waiters elsewhere: they hear of it through `answers`."""
        request = lookup.request
        if lookup.follow is not None:
            self._sends.answer(failed(request, CANCELLED, self._now), request.lane)
            return
        waiter = exact.waiter_of(request)
        self._sends.response(waiter.identity, error_line(waiter, CANCELLED, self._now))
        self._sends.cost(error_event(waiter, CANCELLED, self._now, request.fingerprint), request.lane)

    def _join(self, fingerprint: str, join: exact.Join) -> None:
        key = exact.waiter_key(fingerprint, join.row.waiter.identity)
        keys = self._waiting.setdefault(fingerprint, {})
        if key not in keys or self._read(key) is None:  # a write that failed leaves the key without its row
            keys[key] = None
            self._changes[key] = join.row.model_dump_json(exclude_defaults=True).encode()
        if join.start is not None and join.forward is not None:
            self._changes[exact.flight_key(fingerprint)] = join.start.model_dump_json().encode()
            self._starts.append(join.forward)

    def keep(self, record: AnswerRecord) -> AnswerRecord:
        """Stores what may be kept, and returns what is given in the place of this record: itself, or what its owner was given before.

        Books the owner's own call as paid in vain where it had another one's answer already.
        """
        key = exact.answer_key(record.fingerprint)
        raw = self._read(key)
        kept = AnswerRecord.model_validate_json(raw) if raw is not None else None
        told = exact.told_before(record, kept)
        if told is not None:
            self._sends.cost(self._s._clerk.in_vain(told, record), told.lane)
            record = record.model_copy(update={"asker": told})
        stand = exact.stands(record, None if kept is not None and self._s._revoked(kept) else kept, self._now)
        errs = record.answer is None and (kept is None or kept.answer is None)
        if stand is not record or not (errs or record.cacheable):
            return stand
        value = packets.answers.encode_one(record)
        self._changes[key] = value
        saved = record.answer.paid_pico if record.answer is not None else 0
        for gone in self._s._keeper.insert(self._p, key, len(value), saved, self._now):
            self._changes[gone] = None
        return record

    def release(self, record: AnswerRecord, stand: AnswerRecord) -> list[bytes]:
        """Serves everyone who waits now: with what stands, followers with the record itself, which is theirs to take or not.

        Returns their rows' keys, to be forgotten once this is durable.
        """
        served: list[bytes] = []
        heirs: list[Waiter] = []
        waiting = list(self._waiting.get(record.fingerprint, ()))
        owners = exact.waiter_key(record.fingerprint, stand.owner)
        flight = self._flight(record.fingerprint) if any(key != owners for key in waiting) else None
        for key in waiting:
            raw = self._read(key)
            if raw is None:
                served.append(key)
                continue
            row = WaiterRow.model_validate_json(raw)
            if row.follow is None and exact.only_for_owner(stand, row.waiter):
                heirs.append(row.waiter)
                continue  # keeps waiting, for a flight of their own
            if row.follow is None and exact.flies_itself(flight, stand, row.waiter.identity):
                self._taken_over.add(record.fingerprint)
                continue
            self._serve(row, record if row.follow is not None else stand)
            crash_at("in_fan_out")
            served.append(key)
        if heirs:
            self._take_over(stand, heirs)
        return served

    def _serve(self, row: WaiterRow, record: AnswerRecord) -> None:
        if row.follow is None or row.request is None:
            self._respond(row.waiter, record)
            return
        outcome = follower_outcome(record, Lookup(request=row.request, follow=row.follow), self._now)
        if isinstance(outcome, Miss):
            self._sends.miss(outcome)
        else:
            self._sends.answer(outcome, row.waiter.lane)

    def _flight(self, fingerprint: str) -> Flight | None:
        raw = self._read(exact.flight_key(fingerprint))
        return Flight.model_validate_json(raw) if raw is not None else None

    def _take_over(self, record: AnswerRecord, heirs: list[Waiter]) -> None:
        if record.request is None or record.fingerprint in self._taken_over:
            return
        self._taken_over.add(record.fingerprint)
        key = exact.flight_key(record.fingerprint)
        before = self._flight(record.fingerprint)
        owner = before.owner if before is not None else None
        # Delivered again: the one who inherited the first time flies already, and a second one would be paid for, too.
        heir = next((waiter for waiter in heirs if waiter.identity == owner), heirs[0])
        flight, miss = exact.take_over(record.request, heir, self._now, self._s._lease_ms)
        self._changes[key] = flight.model_dump_json().encode()
        self._starts.append(miss)

    def forget(self, keys: Iterable[bytes]) -> None:
        for key in keys:
            self._changes[key] = None
            fingerprint = exact.fingerprint_of(key)
            left = self._waiting.get(fingerprint)
            if left is not None:
                left.pop(key, None)
                if not left:
                    del self._waiting[fingerprint]

    def land(self, record: AnswerRecord) -> bool:
        """Ends the flight where nobody waits any more; True where this record has nothing left to do."""
        if record.fingerprint in self._waiting:
            return record.fingerprint in self._taken_over  # an heir flies on
        key = exact.flight_key(record.fingerprint)
        if self._read(key) is not None:
            self._changes[key] = None
        return True

    def _respond(self, waiter: Waiter, record: AnswerRecord) -> None:
        line, cost = self._s._clerk.respond(waiter, record, self._now)
        self._sends.response(waiter.identity, line)
        if cost is not None:
            self._sends.cost(cost, waiter.lane)
            if self._s._tell_served and record.answer is not None:
                self._sends.vector(exact.served(record, self._now), waiter.lane)

    async def settle(self) -> None:
        """Returns when all of it is durable. Flights take off last: whoever owns the partition next must know of them.

        The next owner decides the same lookups in another order, since lanes and tenants take turns. One that saw no flight here
        would start its own, and both would be paid.
        """
        if self._changes:  # the other sends are under way already
            await self._s._decided.write(self._p, self._changes)
        for miss in self._starts:
            self._sends.miss(miss)
        await self._sends.settle()


R = TypeVar("R", bound=Record)


def decode(codec: packets.PacketCodec[R], event: Delivered) -> list[R]:
    """The members of a packet. Raises `DeadLetter` where it is none."""
    try:
        return codec.decode(event.value or b"")
    except ValidationError as error:
        raise DeadLetter(f"not a packet of {event.topic}: {error.error_count()} errors") from error

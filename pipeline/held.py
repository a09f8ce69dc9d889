"""What a ledger partition owes by itself: flights that wait for a provider batch, and the batches that are open.

No Kafka offset is held for them. Whoever takes the partition over finds them here, after a replay: what is a function of
the records seen, in any order and however often, as the rows of the flights are.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from enum import IntEnum
from typing import Any, Literal

import orjson

from ..schemas.ledger import BatchClosed, BatchPrepared, BatchRecord, BatchSubmitted, BatchVoid, LedgerRecord
from .flights import Entry, FlightIndex, FlightRow, Held, State

Member = tuple[str, int, int]
"""(flight, number of the attempt, cap in pico-dollars)."""


class BatchState(IntEnum):
    """Knowledge only grows: of two records the higher state wins."""

    UNKNOWN = 0
    """Its preparation was not read yet."""
    PREPARED = 1
    """Perhaps submitted."""
    VOID = 2
    SUBMITTED = 3
    """Where both this and VOID were written the provider works on it, and its rows cost money."""
    CLOSED = 4


_STATES: dict[str, BatchState] = {
    "batch_prepared": BatchState.PREPARED,
    "batch_void": BatchState.VOID,
    "batch_submitted": BatchState.SUBMITTED,
    "batch_closed": BatchState.CLOSED,
}


@dataclass(frozen=True, slots=True)
class BatchEntry:
    """What the state machine needs of a batch's record."""

    kind: Literal["batch_prepared", "batch_void", "batch_submitted", "batch_closed"]
    batch: str
    at_ms: int
    provider_id: str = ""
    provider: str = ""
    model: str = ""
    epoch: str = ""
    members: tuple[Member, ...] = ()
    submit_ms: int = 0
    timeout_ms: int = 0
    file_id: str = ""

    @classmethod
    def of(cls, record: BatchRecord) -> "BatchEntry":
        return cls.read(record.model_dump())

    @classmethod
    def read(cls, fields: dict[str, Any]) -> "BatchEntry":
        """From the JSON of a batch's record. Raises `KeyError` or `TypeError`."""
        kind = fields["type"]
        if kind != "batch_prepared":
            return cls(kind, fields["batch"], fields["at_ms"], fields.get("provider_id", ""))
        members = tuple((m[0], m[1], m[2]) for m in fields["members"])
        return cls(kind, fields["batch"], fields["at_ms"], "", fields["provider"], fields["model"], fields["epoch"], members,
                   fields["submit_ms"], fields["timeout_ms"], fields["file_id"])  # fmt: skip


AnyEntry = Entry | BatchEntry


def entry_of(record: LedgerRecord) -> AnyEntry:
    """What the state machine needs of a record."""
    if isinstance(record, BatchPrepared | BatchSubmitted | BatchVoid | BatchClosed):
        return BatchEntry.of(record)
    return Entry.of(record)


def parse(raw: bytes) -> list[AnyEntry]:
    """Reads a packet without validating bodies: replay is bound by this. Raises `ValueError`, `KeyError` or `TypeError`."""
    return [BatchEntry.read(fields) if fields["type"] in _STATES else Entry.read(fields) for fields in orjson.loads(raw)]


def attempt_of(batch: str, place: int) -> str:
    """The attempt of the member at this place, and its custom_id at the provider."""
    return f"{batch}-{place}"


@dataclass(frozen=True, slots=True)
class Batch:
    """One provider batch."""

    key: str
    state: BatchState = BatchState.UNKNOWN
    provider: str = ""
    model: str = ""
    provider_id: str = ""
    epoch: str = ""
    members: tuple[Member, ...] = ()
    at_ms: int = 0
    """When it was prepared."""
    submit_ms: int = 0
    timeout_ms: int = 0
    file_id: str = ""
    voided: bool = False
    last_ms: int = 0

    def learn(self, entry: BatchEntry) -> "Batch":
        state = max(self.state, _STATES[entry.kind])
        known = replace(self, state=state, last_ms=max(self.last_ms, entry.at_ms), voided=self.voided or entry.kind == "batch_void")
        if entry.kind == "batch_submitted":
            return replace(known, provider_id=known.provider_id or entry.provider_id)
        if entry.kind == "batch_prepared":
            return replace(known, provider=entry.provider, model=entry.model, epoch=entry.epoch, members=entry.members, at_ms=entry.at_ms,
                           submit_ms=entry.submit_ms, timeout_ms=entry.timeout_ms, file_id=entry.file_id)  # fmt: skip
        return known

    @property
    def open(self) -> bool:
        """Is there anything left to do for it?"""
        return self.state in (BatchState.PREPARED, BatchState.SUBMITTED)

    def attempts(self) -> Iterator[tuple[str, Member]]:
        for place, member in enumerate(self.members):
            yield attempt_of(self.key, place), member

    def entries(self) -> Iterator[Entry]:
        """What the batch says of its members' flights."""
        for attempt, (flight, number, cap) in self.attempts():
            yield Entry(State.OPEN, flight, attempt, number, cap, self.at_ms, self.timeout_ms, self.epoch, self.model)
            if self.voided:
                yield Entry(State.UNPAID, flight, attempt, number, 0, self.at_ms)

    def pack(self) -> bytes:
        members = () if self.state is BatchState.CLOSED else self.members  # of what is over only the memory of its end is kept
        return orjson.dumps([self.key, int(self.state), self.provider, self.model, self.provider_id, self.epoch, members, self.at_ms,
                             self.submit_ms, self.timeout_ms, self.file_id, self.voided, self.last_ms])  # fmt: skip

    @classmethod
    def unpack(cls, raw: bytes) -> "Batch":
        key, state, provider, model, provider_id, epoch, members, *rest = orjson.loads(raw)
        return cls(key, BatchState(state), provider, model, provider_id, epoch, tuple((m[0], m[1], m[2]) for m in members), *rest)


@dataclass(slots=True)
class Holdings:
    """All held flights and batches of a partition, and which of them the next checkpoint must write."""

    held: dict[str, Held] = field(default_factory=dict)
    waiting: dict[str, Held] = field(default_factory=dict)
    """Held flights of which no attempt is open."""
    batches: dict[str, Batch] = field(default_factory=dict)
    """Those that are over too, for as long as their records may be read again."""
    _changed: set[str] = field(default_factory=set)

    @classmethod
    def load(cls, index: FlightIndex) -> "Holdings":
        found = cls()
        for name, value in index.items():
            if name[0] == "b":
                found.batches[name[1:]] = Batch.unpack(value)
            else:
                held, is_open = orjson.loads(value)
                found._keep(name[1:], Held(*held), is_open=is_open)
        return found

    def see(self, flight: str, row: FlightRow) -> None:
        """The row of a flight has changed."""
        held = row.held
        if held is None:
            if self.held.pop(flight, None) is not None:
                self.waiting.pop(flight, None)
                self._changed.add("f" + flight)
            return
        if self.held.get(flight) != held or (flight in self.waiting) == row.open:
            self._keep(flight, held, is_open=row.open)
            self._changed.add("f" + flight)

    def _keep(self, flight: str, held: Held, *, is_open: bool) -> None:
        self.held[flight] = held
        if is_open:
            self.waiting.pop(flight, None)
        else:
            self.waiting[flight] = held

    def learn(self, entry: BatchEntry) -> Batch:
        """The batch, with what the entry says of it."""
        before = self.batches.get(entry.batch) or Batch(entry.batch)
        batch = before.learn(entry)
        if batch != before:
            self.batches[entry.batch] = batch
            self._changed.add("b" + entry.batch)
        return batch

    def open_batches(self) -> list[Batch]:
        return [batch for batch in self.batches.values() if batch.open and batch.members]

    def changes(self) -> dict[str, bytes | None]:
        """What the next checkpoint writes; they count as written."""
        changed, self._changed = self._changed, set()
        return {name: self._packed(name) for name in changed}

    def _packed(self, name: str) -> bytes | None:
        if name[0] == "b":
            batch = self.batches.get(name[1:])
            return None if batch is None else batch.pack()
        held = self.held.get(name[1:])
        return None if held is None else orjson.dumps([held.values, name[1:] not in self.waiting])

    def forget(self, before_ms: int) -> None:
        """Drops batches that were over before."""
        for key in [k for k, b in self.batches.items() if not b.open and b.last_ms < before_ms]:
            del self.batches[key]
            self._changed.add("b" + key)

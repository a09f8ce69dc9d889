"""One flight in the ledger: its attempts, what each may have cost, and how it ended.

A row is the join of the records seen so far: applying a record twice, or two records in any order, gives the same row.
That is what lets a worker apply its own records when the broker acknowledges them, and again when they are read back.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from types import MappingProxyType
from typing import Any, Protocol

import orjson

from ..schemas.ledger import Ambiguous, Charged, Completion, Failure, FlightRecord, Intent, Parked


class State(IntEnum):
    """What is known about an attempt. Knowledge only grows: of two records the higher state wins."""

    OPEN = 0
    """Intended, perhaps sent."""
    AMBIGUOUS = 1
    """Booked at its cap; a later record that knows better replaces it."""
    UNPAID = 2
    CHARGED = 3
    COMPLETED = 4


_STATES = {
    "intent": State.OPEN,
    "ambiguous": State.AMBIGUOUS,
    "unpaid": State.UNPAID,
    "charged": State.CHARGED,
    "completion": State.COMPLETED,
}


@dataclass(frozen=True, slots=True)
class Entry:
    """What the state machine needs of a ledger record; bodies are left out."""

    state: State | None
    """None: the flight failed, or was parked."""
    flight: str
    attempt: str
    number: int
    pico: int
    """The cap of an intent or an ambiguous attempt, the price of a paid one."""
    at_ms: int
    timeout_ms: int = 0
    epoch: str = ""
    model: str = ""
    parked: int | None = None
    """Bytes of the body, where the flight was parked; `timeout_ms` is its deadline then, 0 where it has none."""
    withheld: bool = False
    """The record carries an answer that was held back."""

    @classmethod
    def of(cls, record: FlightRecord) -> "Entry":
        if isinstance(record, Parked):
            return cls(
                None, record.flight, "", 0, 0, record.at_ms, record.call.request.deadline_ms or 0, "", record.model, parked=record.size
            )
        if isinstance(record, Failure):
            return cls(None, record.flight, "", 0, 0, record.at_ms)
        if isinstance(record, Completion):
            pico = record.answer.paid_pico
        elif isinstance(record, Charged):
            pico = record.paid_pico
        else:
            pico = record.cap_pico if isinstance(record, Intent | Ambiguous) else 0
        state = _STATES[record.type]
        if isinstance(record, Intent):
            return cls(
                state,
                record.flight,
                record.attempt,
                record.number,
                pico,
                record.at_ms,
                record.timeout_ms,
                record.epoch,
                record.model,
            )
        withheld = isinstance(record, Charged) and record.answer is not None
        return cls(state, record.flight, record.attempt, record.number, pico, record.at_ms, withheld=withheld)

    @classmethod
    def read(cls, fields: dict[str, Any]) -> "Entry":
        """From the JSON of a flight's record. Raises `KeyError` or `TypeError`."""
        kind: str = fields["type"]
        if kind == "parked":
            deadline = fields["call"]["request"].get("deadline_ms") or 0
            return cls(None, fields["flight"], "", 0, 0, fields["at_ms"], deadline, "", fields["model"], parked=fields["size"])
        if kind == "failure":
            return cls(None, fields["flight"], "", 0, 0, fields["at_ms"])
        if kind == "completion":
            pico = fields["answer"]["paid_pico"]
        elif kind == "charged":
            pico = fields["paid_pico"]
        else:
            pico = fields.get("cap_pico", 0)
        timeout_ms, epoch, model = (fields["timeout_ms"], fields["epoch"], fields["model"]) if kind == "intent" else (0, "", "")
        withheld = kind == "charged" and fields.get("answer") is not None
        return cls(_STATES[kind], fields["flight"], fields["attempt"], fields["number"], pico, fields["at_ms"], timeout_ms, epoch, model,
                   withheld=withheld)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Held:
    """A flight that the ledger owns, while it waits for a provider batch."""

    offset: int
    """Of the packet with its call."""
    model: str
    size: int
    deadline_ms: int | None
    at_ms: int

    @property
    def values(self) -> tuple[int, str, int, int | None, int]:
        return self.offset, self.model, self.size, self.deadline_ms, self.at_ms


@dataclass(slots=True)
class Attempt:
    """One attempt; amounts in pico-dollars."""

    number: int
    state: State
    pico: int
    at_ms: int = 0
    timeout_ms: int = 0
    epoch: str = ""
    model: str = ""

    def learn(self, entry: Entry, state: State) -> None:
        if state is State.OPEN:
            self.at_ms, self.timeout_ms, self.epoch, self.model = entry.at_ms, entry.timeout_ms, entry.epoch, entry.model
        if state > self.state:
            self.state, self.pico = state, entry.pico
        elif state == self.state:
            # Copies of one record agree; should they not, the dearer one is the safe one, whatever the order.
            self.pico = max(self.pico, entry.pico)


@dataclass(slots=True)
class FlightRow:
    """All that is known about one flight."""

    attempts: dict[str, Attempt] = field(default_factory=dict)
    completed: int | None = None
    """Offset of the first completion: the one that answers. Other attempts' completions are duplicates that were paid too."""
    answer: str = ""
    """The attempt that it completes."""
    failed: int | None = None
    """Offset of the last failure."""
    failed_ms: int = 0
    last_ms: int = 0
    parked: "Held | None" = None
    """The last time that it was handed over to the ledger."""
    withheld: dict[str, int] = field(default_factory=dict)
    """By attempt, the offset of the record that carries its answer, which was held back."""

    def learn(self, entry: Entry, offset: int) -> None:
        self.last_ms = max(self.last_ms, entry.at_ms)
        if entry.parked is not None:
            if self.parked is None or (entry.at_ms, -offset) > (self.parked.at_ms, -self.parked.offset):
                self.parked = Held(offset, entry.model, entry.parked, entry.timeout_ms or None, entry.at_ms)
            return
        if entry.state is None:
            # The last by its time; of one record its lowest offset, since a real one is below the one of a record yet to be read.
            if self.failed is None or (entry.at_ms, -offset) > (self.failed_ms, -self.failed):
                self.failed, self.failed_ms = offset, entry.at_ms
            return
        attempt = self.attempts.get(entry.attempt)
        if attempt is None:
            attempt = self.attempts[entry.attempt] = Attempt(entry.number, State.OPEN, 0)
        attempt.learn(entry, entry.state)
        if entry.withheld:
            self.withheld[entry.attempt] = min(offset, self.withheld.get(entry.attempt, offset))
        if entry.state is State.COMPLETED and (self.completed is None or (offset, entry.attempt) < (self.completed, self.answer)):
            self.completed, self.answer = offset, entry.attempt

    def sum(self, *states: State) -> int:
        return sum(a.pico for a in self.attempts.values() if a.state in states)

    @property
    def held(self) -> "Held | None":
        """Set while the ledger owns the flight: it was parked, and has not ended since."""
        parked = self.parked
        if parked is None or self.completed is not None or (self.failed is not None and self.failed_ms >= parked.at_ms):
            return None
        return parked

    @property
    def open(self) -> bool:
        """Has it an attempt without an outcome?"""
        return any(a.state is State.OPEN for a in self.attempts.values())

    @property
    def certain_pico(self) -> int:
        return self.sum(State.CHARGED, State.COMPLETED)

    @property
    def possibly_paid(self) -> int:
        """Attempts that cost money, or may have."""
        return sum(a.state is not State.UNPAID for a in self.attempts.values())

    @property
    def open_epochs(self) -> set[str]:
        """Whose attempts have no outcome yet."""
        return {a.epoch for a in self.attempts.values() if a.state is State.OPEN}

    def pack(self) -> bytes:
        attempts = [[id_, a.number, int(a.state), a.pico, a.at_ms, a.timeout_ms, a.epoch, a.model] for id_, a in self.attempts.items()]
        parked = None if self.parked is None else self.parked.values
        row = [self.completed, self.answer, self.failed, self.failed_ms, self.last_ms, attempts, parked]
        return orjson.dumps([*row, self.withheld] if self.withheld else row)

    @classmethod
    def unpack(cls, raw: bytes) -> "FlightRow":
        completed, answer, failed, failed_ms, last_ms, attempts, *more = orjson.loads(raw)
        rows = {a[0]: Attempt(a[1], State(a[2]), *a[3:]) for a in attempts}
        parked = Held(*more[0]) if more and more[0] is not None else None  # rows of earlier versions end before
        return cls(rows, completed, answer, failed, failed_ms, last_ms, parked, more[1] if len(more) > 1 else {})


class FlightIndex(Protocol):
    """Where the rows of one ledger partition are kept between checkpoints: local, and rebuilt from the log if lost. Blocking, fast."""

    def get(self, flight: str) -> bytes | None: ...

    def meta(self) -> bytes | None:
        """What the last commit said of itself; None where there was none."""
        ...

    def items(self) -> Iterator[tuple[str, bytes]]:
        """What is open: see `pipeline/held.py`."""
        ...

    def commit(self, rows: Mapping[str, tuple[int, bytes]], meta: bytes, items: Mapping[str, bytes | None] = ...) -> None:
        """Rows (time of the last record in ms, packed row), `items` (None: gone) and `meta`, all or nothing."""
        ...

    def expire(self, before_ms: int, limit: int) -> int:
        """Looks at up to `limit` rows, going on where the last call stopped; drops those older; returns how many."""
        ...

    def clear(self) -> None: ...

    def close(self) -> None: ...


class MemoryFlightIndex:
    """For tests and for engines without a disk: every start replays the whole log."""

    def __init__(self) -> None:
        self._rows: dict[str, tuple[int, bytes]] = {}
        self._items: dict[str, bytes] = {}
        self._meta: bytes | None = None

    def get(self, flight: str) -> bytes | None:
        row = self._rows.get(flight)
        return None if row is None else row[1]

    def meta(self) -> bytes | None:
        return self._meta

    def items(self) -> Iterator[tuple[str, bytes]]:
        return iter(list(self._items.items()))

    def commit(self, rows: Mapping[str, tuple[int, bytes]], meta: bytes, items: Mapping[str, bytes | None] = MappingProxyType({})) -> None:
        self._rows.update(rows)
        for name, value in items.items():
            if value is None:
                self._items.pop(name, None)
            else:
                self._items[name] = value
        self._meta = meta

    def expire(self, before_ms: int, limit: int) -> int:
        old = [flight for flight, (ms, _) in self._rows.items() if ms < before_ms][:limit]
        for flight in old:
            del self._rows[flight]
        return len(old)

    def clear(self) -> None:
        self._rows.clear()
        self._items.clear()
        self._meta = None

    def close(self) -> None:
        pass

"""What may be paid: the state machine of one partition of the ledger.

    P1  Once a completion is durable, its flight is never sent to a provider again within the horizon of the index:
        `decide` answers `Completed`.
    P2  A call in flight at a crash is paid at most once more per crash, and a flight never more than `max_attempts`
        times in all: every attempt that may have cost money counts, whoever made it.
        A hedge (a tenant's own choice) is such an attempt beside one that is open.
    P3  Every possible double payment is a record: certain <= the provider's bill <= certain + ambiguous (+ open, while
        calls are in flight). An open intent is booked as ambiguous, at its cap, before its flight is paid again.
    P4  With `on_ambiguous="fail"` a flight is paid at most once.

They hold because an intent is durable before its call is sent, because only the owner of the partition can write intents
(the broker fences the others), and because a new owner has read every intent of its predecessors before it decides.

A flight is one purpose: an audit or a judge's call of an answer is a flight with its own id.
"""

from dataclasses import dataclass
from typing import Literal

import orjson

from ..schemas.answers import Answer, ErrorInfo
from ..schemas.ledger import Charged, Completion, Failure, Intent, LedgerRecord, Purpose
from ..schemas.requests import Call, Request
from .flights import Attempt, Entry, FlightIndex, FlightRow, Held, State
from .held import AnyEntry, BatchEntry, Holdings, entry_of

OnAmbiguous = Literal["retry", "fail"]


@dataclass(frozen=True, slots=True)
class Pay:
    """Write an intent with this number, then send."""

    number: int


@dataclass(frozen=True, slots=True)
class Completed:
    """Paid for already: the completion is at this offset of the ledger partition."""

    offset: int


@dataclass(frozen=True, slots=True)
class Failed:
    """Ended without an answer: the failure is at this offset."""

    offset: int


@dataclass(frozen=True, slots=True)
class WaitUntil:
    """An attempt may still be answered; ask again then, or as soon as a record of the flight is seen."""

    ms: int


@dataclass(frozen=True, slots=True)
class OpenAttempt:
    """An attempt whose outcome was never written."""

    attempt: str
    number: int
    model: str
    cap_pico: int


@dataclass(frozen=True, slots=True)
class BookAmbiguous:
    """Nothing that was written until `since_ms` answers these attempts: write them down as ambiguous, then ask again.

    Before that the log must have been read up to `since_ms`.
    """

    attempts: tuple[OpenAttempt, ...]
    since_ms: int


@dataclass(frozen=True, slots=True)
class Exhausted:
    """No further attempt is allowed."""

    attempts: int


@dataclass(frozen=True, slots=True)
class OverCap:
    """The next attempt could take the flight above its `max_cost_pico`."""

    spent_pico: int


Decision = Pay | Completed | Failed | WaitUntil | BookAmbiguous | Exhausted | OverCap


@dataclass(frozen=True, slots=True)
class Policy:
    """The bounds under which a flight may be paid."""

    max_attempts: int
    """Attempts that cost money, or may have; those that certainly cost nothing don't count."""
    on_ambiguous: OnAmbiguous = "retry"
    max_cost_pico: int | None = None
    """Of certain costs and the caps of ambiguous ones, all attempts together."""

    @property
    def allowed(self) -> int:
        """Payments of one flight."""
        return 1 if self.on_ambiguous == "fail" else self.max_attempts


@dataclass(frozen=True, slots=True)
class Owner:
    """Who asks."""

    epoch: str
    since_ms: int
    """When the partition was taken over, by this worker's clock."""


@dataclass(frozen=True, slots=True)
class Totals:
    """Sums of one partition in pico-dollars."""

    certain: int = 0
    ambiguous: int = 0
    open: int = 0


class Ledger:
    """The flights of one partition. Not thread-safe; blocking only as far as its index is."""

    def __init__(self, index: FlightIndex) -> None:
        self._index = index
        self._rows: dict[str, FlightRow] = {}
        self._sums = [0, 0, 0]
        self.holdings = Holdings.load(index)
        """What the partition owes by itself."""
        self.next_offset = 0
        """Every record below was applied, and is part of the next checkpoint: replay starts here."""
        meta = index.meta()
        if meta is not None:
            self.next_offset, *self._sums = orjson.loads(meta)

    @property
    def totals(self) -> Totals:
        return Totals(*self._sums)

    @property
    def unsaved(self) -> int:
        """Rows in memory that the next checkpoint will write."""
        return len(self._rows)

    def apply(self, record: LedgerRecord | AnyEntry, offset: int) -> None:
        """Takes a durable record into account: idempotent, in any order."""
        entry = record if isinstance(record, Entry | BatchEntry) else entry_of(record)
        if isinstance(entry, BatchEntry):
            batch = self.holdings.learn(entry)
            if entry.kind in ("batch_prepared", "batch_void"):
                for member in batch.entries():
                    self._apply(member, offset)
        else:
            self._apply(entry, offset)

    def _apply(self, entry: Entry, offset: int) -> None:
        row = self._rows.get(entry.flight)
        if row is None:
            # Only rows that change are held in memory: the next checkpoint writes them all.
            row = self._rows[entry.flight] = self._row(entry.flight)
        self._book(row.attempts.get(entry.attempt), -1)
        row.learn(entry, offset)
        self._book(row.attempts.get(entry.attempt), +1)
        self.holdings.see(entry.flight, row)

    def advance(self, offset: int) -> None:
        """Says that the log was read in order up to and including `offset`."""
        self.next_offset = max(self.next_offset, offset + 1)

    def checkpoint(self) -> None:
        """Writes changed rows and the sums, all or nothing, and forgets the rows in memory."""
        rows = {flight: (row.last_ms, row.pack()) for flight, row in self._rows.items()}
        self._index.commit(rows, orjson.dumps([self.next_offset, *self._sums]), self.holdings.changes())
        self._rows.clear()

    def restart(self) -> None:
        """Forgets everything: the log is another one than the checkpoint was made of."""
        self._index.clear()
        self._rows.clear()
        self._sums, self.next_offset = [0, 0, 0], 0
        self.holdings = Holdings()

    def expire(self, before_ms: int, limit: int = 2_000) -> int:
        """Drops rows whose last record is older, `limit` looked at per call. Sums keep what they hold."""
        self.holdings.forget(before_ms)
        return self._index.expire(before_ms, limit)

    def answers(self, flight: str, attempt: str) -> bool:
        """Does this attempt's completion answer the flight? False: another one came first, and this one was paid in vain."""
        return self._row(flight).answer == attempt

    def state(self, flight: str, attempt: str) -> State | None:
        """What is known of the attempt; None: nothing."""
        found = self._row(flight).attempts.get(attempt)
        return None if found is None else found.state

    def parked(self, flight: str) -> Held | None:
        """Where its call is, whether the ledger still owns it or not."""
        return self._row(flight).parked

    def unpaid(self, flight: str) -> int | None:
        """How many attempts were made that all certainly cost nothing; None where another kind was made."""
        states = [a.state for a in self._row(flight).attempts.values()]
        return len(states) if all(state is State.UNPAID for state in states) else None

    def spent(self, flight: str) -> tuple[int, int]:
        """Attempts begun (unpaid ones too), and their certain cost in pico-dollars."""
        row = self._row(flight)
        return len(row.attempts), row.certain_pico

    def failure(self, flight: str, request: Request, error: ErrorInfo, now_ms: int, purpose: Purpose = "answer") -> Failure:
        """The record that ends a flight without an answer."""
        attempts, spent = self.spent(flight)
        return Failure(flight=flight, purpose=purpose, request=request, error=error, attempts=attempts, spent_pico=spent,
                       ambiguous_pico=self.possibly_spent(flight), at_ms=now_ms)  # fmt: skip

    def completion(
        self, call: Call, of: Intent | Charged, answer: Answer, now_ms: int, *, discarded_pico: int, judged: float | None = None
    ) -> Completion:
        """The record that ends a flight with the answer of an attempt; `Charged`: it was held back, is on the books, and given after all.

        `discarded_pico`: what the answers cost that were held back for this one. `judged`: what the check of a cascade found it worth.
        """
        attempts, spent = self.spent(of.flight)
        kept = isinstance(of, Charged)
        return Completion(flight=of.flight, attempt=of.attempt, number=of.number, purpose=of.purpose, request=call.request, answer=answer,
                          cap_pico=of.cap_pico, group=call.group, embedding=call.embedding, chosen=call.route.chosen,
                          attempts=max(attempts, 1), spent_pico=spent if kept else spent + answer.paid_pico, discarded_pico=discarded_pico,
                          judged=of.judged if isinstance(of, Charged) else judged, kept=kept,
                          ambiguous_pico=self.possibly_spent(of.flight, but=of.attempt), at_ms=now_ms)  # fmt: skip

    def withheld(self, flight: str) -> list[tuple[str, int]]:
        """Attempts whose answers were held back, in their order, and where the records are that carry them; none once it is answered."""
        row = self._row(flight)
        if row.completed is not None:
            return []
        return sorted(row.withheld.items(), key=lambda item: row.attempts[item[0]].number)

    def possibly_spent(self, flight: str, *, but: str = "") -> int:
        """The caps, in pico-dollars, of attempts whose bill is not known; `but`: an attempt that is being written down."""
        unknown = (State.AMBIGUOUS, State.OPEN)
        return sum(a.pico for id_, a in self._row(flight).attempts.items() if id_ != but and a.state in unknown)

    def decide(
        self,
        flight: str,
        *,
        now_ms: int,
        owner: Owner,
        policy: Policy,
        cap_pico: int,
        asked_ms: int | None = None,
        hedge: bool = False,
    ) -> Decision:
        """What the owner of the partition may do about a flight now.

        `hedge`: pay although an attempt of the owner's own is not answered yet; the caps of what is open count as spent.

        `cap_pico` is the most that the next attempt can cost. `asked_ms`: when the request came in; a request that came
        after its flight had failed was asked again on purpose, and may use up the attempts that are left.
        """
        row = self._row(flight)
        if row.completed is not None:
            return Completed(row.completed)
        if row.failed is not None and (asked_ms is None or asked_ms <= row.failed_ms):
            return Failed(row.failed)
        unfinished = self._unfinished(row, now_ms, owner)
        if unfinished is not None and not (hedge and isinstance(unfinished, WaitUntil) and row.open_epochs == {owner.epoch}):
            return unfinished
        return _bound(row, policy, cap_pico) or Pay(1 + max((a.number for a in row.attempts.values()), default=0))

    def may_pay_more(self, flight: str, *, policy: Policy, cap_pico: int) -> bool:
        """Whether another attempt would be allowed once those that are under way have ended without an answer, each at its cap."""
        row = self._row(flight)
        return row.completed is None and _bound(row, policy, cap_pico) is None

    def leftover(self, flight: str, *, now_ms: int, owner: Owner) -> WaitUntil | BookAmbiguous | None:
        """What is to be done about attempts without an outcome of a flight that has ended; None where there are none.

        A late answer of a predecessor can end a flight while its successor's own attempt is under way, and dies with it.
        """
        return self._unfinished(self._row(flight), now_ms, owner)

    def _unfinished(self, row: FlightRow, now_ms: int, owner: Owner) -> WaitUntil | BookAmbiguous | None:
        unfinished = {id_: a for id_, a in row.attempts.items() if a.state is State.OPEN}
        if not unfinished:
            return None
        until = max(self._answerable_until(a, owner) for a in unfinished.values())
        if now_ms < until:
            return WaitUntil(until)
        return BookAmbiguous(tuple(OpenAttempt(id_, a.number, a.model, a.pico) for id_, a in unfinished.items()), until)

    @staticmethod
    def _answerable_until(attempt: Attempt, owner: Owner) -> int:
        if attempt.epoch == owner.epoch:
            return attempt.at_ms + attempt.timeout_ms
        # The predecessor wrote its intents before we took over: should its clock be ahead of ours, ours bounds the wait.
        return min(attempt.at_ms, owner.since_ms) + attempt.timeout_ms

    def _row(self, flight: str) -> FlightRow:
        row = self._rows.get(flight)
        if row is not None:
            return row
        packed = self._index.get(flight)
        return FlightRow() if packed is None else FlightRow.unpack(packed)

    def _book(self, attempt: Attempt | None, sign: int) -> None:
        if attempt is None or attempt.state is State.UNPAID:
            return
        column = {State.OPEN: 2, State.AMBIGUOUS: 1}.get(attempt.state, 0)
        self._sums[column] += sign * attempt.pico


def _bound(row: FlightRow, policy: Policy, cap_pico: int) -> Exhausted | OverCap | None:
    """Why no attempt that can cost so much may follow those of the row; None where one may."""
    if row.possibly_paid >= policy.allowed:
        return Exhausted(row.possibly_paid)
    spent = row.sum(State.CHARGED, State.COMPLETED, State.AMBIGUOUS, State.OPEN)
    if policy.max_cost_pico is not None and spent + cap_pico > policy.max_cost_pico:
        return OverCap(spent)
    return None

"""The ledger's promises under any order of events, crashes, replays and late records of previous owners."""

import random
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from inference_engine.pipeline.flights import Entry, FlightIndex, FlightRow, MemoryFlightIndex, State
from inference_engine.pipeline.held import Batch, BatchState, entry_of, parse
from inference_engine.pipeline.ledger import BookAmbiguous, Completed, Exhausted, Failed, Ledger, OverCap, Owner, Pay, Policy, WaitUntil
from inference_engine.schemas import packets
from inference_engine.schemas.answers import ErrorInfo, Usage
from inference_engine.schemas.ledger import (
    Ambiguous,
    BatchClosed,
    BatchPrepared,
    BatchSubmitted,
    BatchVoid,
    Charged,
    Completion,
    Failure,
    Intent,
    LedgerRecord,
    Parked,
    Unpaid,
)
from inference_engine.schemas.requests import Call, Route

from .support import answer, request

CAP = 1_000
MAX_ATTEMPTS = 3
TIMEOUT_MS = 50
FLIGHTS = ("retry-1", "retry-2", "fail-1")
USAGE = Usage(input_tokens=1, output_tokens=1)


def policy(flight: str) -> Policy:
    return Policy(MAX_ATTEMPTS, "fail" if flight.startswith("fail") else "retry")


def intent(flight: str, number: int, epoch: str, at_ms: int, cap: int = CAP) -> Intent:
    return Intent(
        flight=flight, attempt=f"{flight}/{number}/{epoch}", number=number, model="small", cap_pico=cap, epoch=epoch, at_ms=at_ms,
        timeout_ms=TIMEOUT_MS,
    )  # fmt: skip


def outcome(kind: str, of: Intent, paid: int, at_ms: int) -> LedgerRecord:
    base: Any = {"flight": of.flight, "attempt": of.attempt, "number": of.number, "at_ms": at_ms}
    if kind == "completed":
        return Completion(**base, request=request(), answer=answer(paid_pico=paid), cap_pico=of.cap_pico, attempts=1, spent_pico=paid)
    if kind == "charged":
        return Charged(**base, model="small", paid_pico=paid, usage=USAGE, reason="cut", request=request())
    if kind == "held_back":
        return Charged(**base, model="small", paid_pico=paid, usage=USAGE, reason="cut", request=request(), discarded="cut_off",
                       answer=answer(paid_pico=paid))  # fmt: skip
    if kind == "unpaid":
        return Unpaid(**base, reason="refused")
    return Ambiguous(**base, model="small", cap_pico=of.cap_pico, reason="reset", request=request())


def failure(flight: str, at_ms: int) -> Failure:
    return Failure(flight=flight, request=request(), error=ErrorInfo(code="x", message="x"), attempts=1, at_ms=at_ms)


def parked(flight: str, at_ms: int, deadline_ms: int | None = None) -> Parked:
    asked = request().model_copy(update={"deadline_ms": deadline_ms})
    return Parked(flight=flight, call=Call(request=asked, route=Route(models=("small",), reason="")), model="small", size=9, at_ms=at_ms)


def prepared(key: str, members: tuple[tuple[str, int, int], ...], epoch: str, at_ms: int) -> BatchPrepared:
    return BatchPrepared(
        batch=key, provider="simulated", model="small", members=members, file_sha256="", file_bytes=1, epoch=epoch, at_ms=at_ms,
        reserved_pico=sum(cap for _, _, cap in members), submit_ms=TIMEOUT_MS, timeout_ms=10 * TIMEOUT_MS,
    )  # fmt: skip


def member_intent(batch: BatchPrepared, place: int) -> Intent:
    flight, number, cap = batch.members[place]
    return intent(flight, number, batch.epoch, batch.at_ms, cap).model_copy(update={"attempt": f"{batch.batch}-{place}"})


def settled(log: list[LedgerRecord], batch: BatchPrepared, attempt: str) -> bool:
    """Does the log say how the attempt ended?"""
    void = any(isinstance(r, BatchVoid) and r.batch == batch.batch for r in log)
    return void or any(getattr(r, "attempt", None) == attempt and not isinstance(r, Intent) for r in log)


def replayed(log: list[LedgerRecord], index: FlightIndex | None = None) -> Ledger:
    ledger = Ledger(index or MemoryFlightIndex())
    for offset in range(ledger.next_offset, len(log)):
        [entry] = parse(packets.ledger.encode([log[offset]]))
        ledger.apply(entry, offset)
        ledger.advance(offset)
    return ledger


@dataclass
class Worker:
    """One owner of the partition, past or present."""

    owner: Owner
    ledger: Ledger
    index: MemoryFlightIndex
    position: int
    calls: dict[str, Intent] = field(default_factory=dict)
    """Sent, and no outcome written yet, by attempt."""


class Money(RuleBasedStateMachine):
    """Workers come, pay, stall and go; the provider keeps its own bill."""

    def __init__(self) -> None:
        super().__init__()
        self.log: list[LedgerRecord] = []
        self.bill: dict[str, int] = {}
        self.sent: dict[str, set[str]] = {f: set() for f in FLIGHTS}
        self.now = 1_000
        self.workers: list[Worker] = []
        self.at_provider: set[str] = set()
        """Batches that reached the provider, whether anybody wrote that down or not."""

    @property
    def owner(self) -> Worker:
        return self.workers[-1]

    @initialize()
    def first(self) -> None:
        self._take_over(MemoryFlightIndex())

    def _take_over(self, index: MemoryFlightIndex) -> None:
        ledger = replayed(self.log, index)
        self.workers.append(Worker(Owner(f"e{len(self.workers)}", self.now), ledger, index, ledger.next_offset))

    def _append(self, record: LedgerRecord) -> int:
        self.log.append(record)
        return len(self.log) - 1

    def _book(self, worker: Worker, record: LedgerRecord) -> None:
        worker.ledger.apply(record, self._append(record))

    @rule(whose=st.randoms(use_true_random=False), keep=st.booleans())
    def take_over(self, whose: random.Random, keep: bool) -> None:
        """A new owner, from a checkpoint of any earlier one or from nothing; the old one may live on without knowing."""
        self._take_over(whose.choice(self.workers).index if keep else MemoryFlightIndex())

    @rule(billed=st.integers(0, CAP))
    def crash(self, billed: int) -> None:
        """The owner dies with calls under way, which may have been billed."""
        for attempt in self.owner.calls:
            self.bill[attempt] = billed
        self.owner.calls.clear()
        self._take_over(self.owner.index)

    @rule(flight=st.sampled_from(FLIGHTS))
    def ask(self, flight: str) -> None:
        worker = self.owner
        if any(i.flight == flight for i in worker.calls.values()):
            return  # calls of one flight follow each other
        decision = self._decide(worker.ledger, flight)
        match decision:
            case Pay(number):
                seen = [r for r in self.log[: worker.position] if isinstance(r, Completion) and r.flight == flight]
                assert not seen, "P1: paid again although a completion had been read"
                assert not self._open(flight), "P3: paid again beside an open intent"
                new = intent(flight, number, worker.owner.epoch, self.now)
                self._book(worker, new)
                worker.calls[new.attempt] = new
                assert new.attempt not in self.sent[flight]
                self.sent[flight].add(new.attempt)
            case BookAmbiguous(attempts):
                self.read(len(self.log))
                if self._decide(worker.ledger, flight) == decision:
                    for a in attempts:
                        self._book(worker, outcome("ambiguous", intent(flight, a.number, "", 0, a.cap_pico).model_copy(
                            update={"attempt": a.attempt}), 0, self.now))  # fmt: skip
            case Completed(offset):
                record = self.log[offset]
                assert isinstance(record, Completion)
                assert record.flight == flight
            case Failed(offset):
                assert isinstance(self.log[offset], Failure)
            case Exhausted():
                self._book(worker, failure(flight, self.now))

    @rule(flight=st.sampled_from(FLIGHTS[:2]))
    def hedge(self, flight: str) -> None:
        """The owner pays again beside a call of its own; what a predecessor left open is settled first, as ever."""
        worker = self.owner
        if not any(i.flight == flight for i in worker.calls.values()):
            return
        decision = self._decide(worker.ledger, flight, hedge=True)
        if isinstance(decision, Pay):
            ends = {r.attempt for r in self.log if isinstance(r, Completion | Charged | Ambiguous | Unpaid)}
            left_open = {r.epoch for r in self.log if isinstance(r, Intent) and r.flight == flight and r.attempt not in ends}
            assert left_open <= {worker.owner.epoch}
            new = intent(flight, decision.number, worker.owner.epoch, self.now)
            self._book(worker, new)
            worker.calls[new.attempt] = new
            self.sent[flight].add(new.attempt)

    def _decide(self, ledger: Ledger, flight: str, asked_ms: int | None = None, *, hedge: bool = False) -> object:
        owner = self.owner.owner
        return ledger.decide(flight, now_ms=self.now, owner=owner, policy=policy(flight), cap_pico=CAP, asked_ms=asked_ms, hedge=hedge)

    # --- provider batches ---

    @property
    def _batches(self) -> list[BatchPrepared]:
        return [r for r in self.log if isinstance(r, BatchPrepared)]

    def _open(self, flight: str) -> set[str]:
        """Attempts of the flight, as the log has them, whose end it does not say."""
        sync = {r.attempt for r in self.log if isinstance(r, Intent) and r.flight == flight}
        ended = {r.attempt for r in self.log if isinstance(r, Completion | Charged | Ambiguous | Unpaid)}
        rows = {f"{b.batch}-{place}": b for b in self._batches for place, m in enumerate(b.members) if m[0] == flight}
        return (sync - ended) | {a for a, b in rows.items() if not settled(self.log, b, a)}

    @rule(flight=st.sampled_from(FLIGHTS))
    def park(self, flight: str) -> None:
        if isinstance(self._decide(self.owner.ledger, flight), Pay):
            self._book(self.owner, parked(flight, self.now))

    @rule(submitted=st.booleans(), told=st.booleans())
    def submit(self, submitted: bool, told: bool) -> None:
        """All that waits goes into a batch; it may reach the provider or not, and the worker may hear of that or not."""
        worker = self.owner
        members = []
        for flight in sorted(worker.ledger.holdings.waiting):
            decision = self._decide(worker.ledger, flight)
            busy = any(i.flight == flight for i in worker.calls.values())
            if isinstance(decision, Pay) and not busy:
                assert not self._open(flight), "P3: in a batch beside an open intent"
                members.append((flight, decision.number, CAP))
        if not members:
            return
        batch = prepared(f"b{len(self.log)}", tuple(members), worker.owner.epoch, self.now)
        self._book(worker, batch)
        for place, (flight, _, _) in enumerate(members):
            self.sent[flight].add(f"{batch.batch}-{place}")
        if submitted:
            self.at_provider.add(batch.batch)
            if told:
                self._book(worker, BatchSubmitted(batch=batch.batch, provider_id="p", at_ms=self.now))

    @rule(pick=st.randoms(use_true_random=False))
    def look_for_a_lost_submit(self, pick: random.Random) -> None:
        """A batch of which nobody heard is looked for at the provider, once no submission can be under way any more."""
        worker = self.owner
        lost = [b for b in worker.ledger.holdings.open_batches() if b.state is BatchState.PREPARED and self.now >= b.at_ms + b.submit_ms]
        for batch in lost:
            if batch.key in self.at_provider:
                self._book(worker, BatchSubmitted(batch=batch.key, provider_id="p", at_ms=self.now))
            else:
                self._book(worker, BatchVoid(batch=batch.key, reason="not there", at_ms=self.now))
                for attempt, (flight, _, _) in batch.attempts():
                    self.sent[flight].discard(attempt)

    @rule(kind=st.sampled_from(("completed", "charged", "held_back", "unpaid", "ambiguous")), paid=st.integers(0, CAP),
          rows=st.integers(1, 3))  # fmt: skip
    def collect(self, kind: str, paid: int, rows: int) -> None:
        """Some rows of the first batch that has ended; closed when every row has its outcome."""
        worker = self.owner
        done = [b for b in worker.ledger.holdings.open_batches() if b.state is BatchState.SUBMITTED]
        if not done:
            return
        [batch] = [b for b in self._batches if b.batch == done[0].key]
        for place, (flight, _, _) in enumerate(batch.members):
            attempt = f"{batch.batch}-{place}"
            if rows and worker.ledger.state(flight, attempt) is State.OPEN and not settled(self.log, batch, attempt):
                rows -= 1
                if kind == "unpaid":
                    self.sent[flight].discard(attempt)
                else:
                    self.bill[attempt] = paid
                self._book(worker, outcome(kind, member_intent(batch, place), paid, self.now))
        if all(settled(self.log, batch, f"{batch.batch}-{place}") for place in range(len(batch.members))):
            self._book(worker, BatchClosed(batch=batch.batch, at_ms=self.now))

    @invariant()
    def nothing_is_forgotten(self) -> None:
        """A flight that was parked stays with the ledger until it ends; a batch stays open until each of its rows has ended."""
        truth = replayed(self.log)
        for flight in FLIGHTS:
            mine = [r for r in self.log if getattr(r, "flight", None) == flight]
            last = max((r.at_ms for r in mine if isinstance(r, Parked)), default=None)
            over = [r for r in mine if isinstance(r, Completion) or (isinstance(r, Failure) and last is not None and r.at_ms >= last)]
            assert (flight in truth.holdings.held) == (last is not None and not over)
            assert (flight in truth.holdings.waiting) == (flight in truth.holdings.held and not self._open(flight))
        for batch in self._batches:
            places = [f"{batch.batch}-{place}" for place in range(len(batch.members))]
            if not all(settled(self.log, batch, attempt) for attempt in places):
                assert batch.batch in {b.key for b in truth.holdings.open_batches()}

    @precondition(lambda self: any(w.calls for w in self.workers))
    @rule(pick=st.randoms(use_true_random=False), kind=st.sampled_from(("completed", "charged", "held_back", "unpaid", "ambiguous")),
          paid=st.integers(0, CAP), twice=st.booleans())  # fmt: skip
    def outcome(self, pick: random.Random, kind: str, paid: int, twice: bool) -> None:
        """A call ends, of the owner or of one that lost the partition long ago; an append may be repeated."""
        worker = pick.choice([w for w in self.workers if w.calls])
        attempt = pick.choice(sorted(worker.calls))
        of = worker.calls.pop(attempt)
        if kind != "unpaid":
            self.bill[attempt] = paid
        else:
            self.sent[of.flight].discard(attempt)
        record = outcome(kind, of, paid, self.now)
        self._book(worker, record)
        if twice:
            self._append(record)

    @rule(count=st.integers(1, 5), back=st.integers(0, 3))
    def read(self, count: int, back: int = 0) -> None:
        """The owner reads records back, some of them again."""
        worker = self.owner
        start = max(0, worker.position - back)
        for offset in range(start, min(worker.position + count, len(self.log))):
            worker.ledger.apply(self.log[offset], offset)
            worker.ledger.advance(offset)
            worker.position = max(worker.position, offset + 1)

    @rule()
    def checkpoint(self) -> None:
        self.owner.ledger.checkpoint()

    @rule(ms=st.sampled_from((1, TIMEOUT_MS // 2, TIMEOUT_MS, 10 * TIMEOUT_MS)))
    def time_passes(self, ms: int) -> None:
        self.now += ms

    @invariant()
    def attempts_are_bounded(self) -> None:
        for flight, attempts in self.sent.items():
            assert len(attempts) <= (1 if flight.startswith("fail") else MAX_ATTEMPTS), "P2, P4"

    @invariant()
    def every_cent_is_explained(self) -> None:
        totals = replayed(self.log).totals
        bill = sum(self.bill.values())
        assert totals.certain <= bill <= totals.certain + totals.ambiguous + totals.open, "P3"

    @invariant()
    def reading_to_the_end_is_replaying(self) -> None:
        if not self.workers:
            return
        truth = replayed(self.log)
        from_checkpoint = replayed(self.log, _copy(self.owner.index))
        assert from_checkpoint.totals == truth.totals
        assert from_checkpoint.holdings.held == truth.holdings.held
        assert from_checkpoint.holdings.waiting == truth.holdings.waiting
        assert {b.key: b for b in from_checkpoint.holdings.open_batches()} == {b.key: b for b in truth.holdings.open_batches()}
        for flight in FLIGHTS:
            assert self._decide(from_checkpoint, flight) == self._decide(truth, flight)
            assert from_checkpoint.withheld(flight) == truth.withheld(flight)

    @invariant()
    def an_answer_that_was_held_back_is_found_until_the_flight_is_answered(self) -> None:
        truth = replayed(self.log)
        for flight in FLIGHTS:
            answered = any(isinstance(r, Completion) and r.flight == flight for r in self.log)
            held_back = {r.attempt: r for r in reversed(self.log) if isinstance(r, Charged) and r.flight == flight and r.answer is not None}
            found = [self.log[offset] for _, offset in truth.withheld(flight)]
            assert found == ([] if answered else sorted(held_back.values(), key=lambda r: r.number))


def _copy(index: MemoryFlightIndex) -> MemoryFlightIndex:
    copy = MemoryFlightIndex()
    copy._rows, copy._items, copy._meta = dict(index._rows), dict(index._items), index._meta
    return copy


TestMoney = Money.TestCase
TestMoney.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


def a_history() -> list[LedgerRecord]:
    first, second = intent("f", 1, "e0", 0), intent("f", 2, "e1", 100)
    return [first, outcome("ambiguous", first, 0, 60), second, outcome("completed", second, 7, 110), outcome("completed", first, 5, 120)]


@given(st.permutations(list(enumerate(a_history()))), st.lists(st.integers(0, 4)))
def test_the_order_of_records_and_their_repetition_change_nothing(order: list[tuple[int, LedgerRecord]], again: list[int]) -> None:
    ledger = Ledger(MemoryFlightIndex())
    for offset, record in [*order, *(order[i] for i in again)]:
        ledger.apply(record, offset)
    assert ledger.totals == replayed(a_history()).totals
    assert (ledger.totals.certain, ledger.totals.ambiguous, ledger.totals.open) == (12, 0, 0)
    assert ledger.answers("f", a_history()[2].attempt)  # type: ignore[union-attr]
    assert not ledger.answers("f", a_history()[0].attempt)  # type: ignore[union-attr]


def decide(ledger: Ledger, *, now: int, since: int = 0, epoch: str = "e9", **more: object) -> object:
    arguments: dict[str, object] = {"policy": Policy(MAX_ATTEMPTS), "cap_pico": CAP, **more}
    return ledger.decide("f", now_ms=now, owner=Owner(epoch, since), **arguments)  # type: ignore[arg-type]


def test_an_open_intent_of_a_crashed_owner_is_waited_for_then_booked_then_paid_again() -> None:
    first = intent("f", 1, "e0", 1_000)
    ledger = replayed([first])
    assert decide(ledger, now=1_001, since=1_001) == WaitUntil(1_000 + TIMEOUT_MS)
    booking = decide(ledger, now=1_000 + TIMEOUT_MS, since=1_001)
    assert isinstance(booking, BookAmbiguous)
    assert [a.attempt for a in booking.attempts] == [first.attempt]
    ledger.apply(outcome("ambiguous", first, 0, 1_060), 1)
    assert decide(ledger, now=1_060, since=1_001) == Pay(2)


def test_a_predecessor_whose_clock_is_an_hour_ahead_delays_nobody_by_an_hour() -> None:
    assert decide(replayed([intent("f", 1, "e0", 3_600_000)]), now=1_010, since=1_000) == WaitUntil(1_000 + TIMEOUT_MS)


def test_attempts_that_certainly_cost_nothing_do_not_use_up_the_allowed_ones() -> None:
    log: list[LedgerRecord] = []
    for number in range(1, 10):
        one = intent("f", number, "e0", number)
        log += [one, outcome("unpaid", one, 0, number)]
    assert decide(replayed(log), now=100) == Pay(10)


def test_a_flight_stops_before_it_could_cost_more_than_its_cap() -> None:
    first = intent("f", 1, "e0", 0)
    ledger = replayed([first, outcome("charged", first, 300, 1)])
    assert decide(ledger, now=10, policy=Policy(MAX_ATTEMPTS, max_cost_pico=1_299)) == OverCap(300)
    assert decide(ledger, now=10, policy=Policy(MAX_ATTEMPTS, max_cost_pico=1_300)) == Pay(2)


def test_a_hedge_is_paid_beside_an_open_attempt_of_ones_own_within_attempts_and_cap() -> None:
    ledger = replayed([intent("f", 1, "e9", 0)])
    assert decide(ledger, now=10) == WaitUntil(TIMEOUT_MS)
    assert decide(ledger, now=10, hedge=True) == Pay(2)
    assert decide(ledger, now=10, hedge=True, epoch="e10") == WaitUntil(TIMEOUT_MS), "not beside a predecessor's"
    assert decide(ledger, now=10, hedge=True, policy=Policy(3, max_cost_pico=2 * CAP - 1)) == OverCap(CAP)
    assert decide(ledger, now=10, hedge=True, policy=Policy(1)) == Exhausted(1)
    assert decide(ledger, now=10, hedge=True, policy=Policy(3, "fail")) == Exhausted(1)


def test_a_request_asked_again_after_its_failure_may_use_up_the_attempts_that_are_left() -> None:
    ledger = replayed([intent("f", 1, "e0", 0), outcome("charged", intent("f", 1, "e0", 0), 1, 1), failure("f", 500)])
    assert decide(ledger, now=600, asked_ms=400) == Failed(2)
    assert decide(ledger, now=600, asked_ms=None) == Failed(2)
    assert decide(ledger, now=600, asked_ms=550) == Pay(2)


def test_a_late_completion_ends_a_failed_flight_with_its_answer() -> None:
    first = intent("f", 1, "e0", 0)
    ledger = replayed([first, outcome("ambiguous", first, 0, 60), failure("f", 70), outcome("completed", first, 5, 80)])
    assert decide(ledger, now=100) == Completed(3)


def test_rows_are_forgotten_only_after_the_horizon() -> None:
    index = MemoryFlightIndex()
    ledger = replayed(a_history(), index)
    ledger.checkpoint()
    assert ledger.unsaved == 0
    assert ledger.expire(before_ms=120) == 0
    assert decide(ledger, now=1_000) == Completed(3)
    assert ledger.expire(before_ms=121) == 1
    assert decide(ledger, now=1_000) == Pay(1)


@pytest.mark.parametrize(
    "record",
    [
        *a_history(),
        failure("f", 3),
        outcome("charged", intent("f", 1, "e", 1), 5, 2),
        outcome("held_back", intent("f", 1, "e", 1), 5, 2),
        outcome("unpaid", intent("f", 1, "e", 1), 0, 2),
        parked("f", 4),
        parked("f", 4, deadline_ms=9),
        prepared("b", (("f", 1, CAP),), "e", 5),
        BatchSubmitted(batch="b", provider_id="p", at_ms=6),
        BatchVoid(batch="b", reason="no", at_ms=7),
        BatchClosed(batch="b", at_ms=8),
    ],
)
def test_replay_reads_from_the_bytes_what_the_record_says(record: LedgerRecord) -> None:
    assert parse(packets.ledger.encode([record])) == [entry_of(record)]


def test_a_row_survives_its_packing() -> None:
    row = FlightRow()
    held_back = outcome("held_back", intent("f", 3, "e1", 100), 5, 110)
    for offset, record in enumerate([*a_history(), failure("f", 3), parked("f", 4, deadline_ms=9), held_back]):
        assert FlightRow.unpack(row.pack()) == row
        row.learn(Entry.of(record), offset)  # type: ignore[arg-type]
    assert row.parked is not None
    assert list(row.withheld) == ["f/3/e1"]
    assert FlightRow.unpack(row.pack()) == row


def test_an_answer_that_was_held_back_is_found_however_its_record_was_read_and_no_longer_once_the_flight_is_answered() -> None:
    """`UNKNOWN` stands for a record of which only the broker knows where it is."""
    unknown = 2**62
    first, second = intent("f", 1, "e0", 0), intent("f", 2, "e0", 9)
    for offsets in ((unknown, 7), (7, unknown), (9, 7, unknown, 9)):
        ledger = Ledger(index := MemoryFlightIndex())
        for offset in offsets:
            ledger.apply(outcome("held_back", second, 5, 8), 3)
            ledger.apply(outcome("held_back", first, 5, 3), offset)
            ledger.checkpoint()
            ledger = Ledger(index)
        assert ledger.withheld("f") == [(first.attempt, 7), (second.attempt, 3)]
        ledger.apply(outcome("completed", first, 5, 10), 11)
        assert ledger.withheld("f") == []
        assert ledger.totals.certain == 10


def test_a_row_of_an_earlier_version_without_the_place_for_parking_is_read() -> None:
    assert FlightRow.unpack(b'[7,"a",null,0,9,[["a",1,4,5,1,50,"e","m"]]]').held is None


def test_the_order_of_a_batchs_records_and_their_repetition_change_nothing() -> None:
    records: list[LedgerRecord] = [parked("f", 1), prepared("b", (("f", 1, CAP),), "e", 2), BatchVoid(batch="b", reason="no", at_ms=3)]
    for order in ((0, 1, 2), (2, 1, 0), (1, 0, 2, 1), (2, 0, 1, 0, 2)):
        ledger = Ledger(MemoryFlightIndex())
        for offset in order:
            ledger.apply(records[offset], offset)
        assert ledger.totals == replayed(records).totals
        assert list(ledger.holdings.waiting) == ["f"]
        assert ledger.holdings.open_batches() == []
        assert ledger.unpaid("f") == 1


def test_a_batch_that_was_given_up_and_yet_reached_the_provider_is_collected_all_the_same() -> None:
    batch = prepared("b", (("f", 1, CAP),), "e", 2)
    ledger = replayed([parked("f", 1), batch, BatchVoid(batch="b", reason="no", at_ms=3)], index := MemoryFlightIndex())
    ledger.checkpoint()
    ledger = Ledger(index)
    ledger.apply(BatchSubmitted(batch="b", provider_id="p", at_ms=4), 3)
    [found] = ledger.holdings.open_batches()
    assert (found.provider_id, found.members) == ("p", batch.members)
    ledger.apply(outcome("completed", member_intent(batch, 0), 7, 5), 4)
    assert (ledger.totals.certain, ledger.totals.open) == (7, 0)


def test_the_memory_of_a_closed_batch_outlives_a_late_reading_of_its_preparation() -> None:
    batch = prepared("b", (("f", 1, CAP),), "e", 2)
    submitted = BatchSubmitted(batch="b", provider_id="p", at_ms=3)
    done, closed = outcome("completed", member_intent(batch, 0), 7, 4), BatchClosed(batch="b", at_ms=5)
    log: list[LedgerRecord] = [parked("f", 1), batch, submitted, done, closed]
    ledger = replayed(log, index := MemoryFlightIndex())
    ledger.checkpoint()
    ledger = Ledger(index)
    ledger.apply(batch, 1)
    assert ledger.holdings.open_batches() == []
    assert Batch.unpack(ledger.holdings.batches["b"].pack()).state is BatchState.CLOSED
    ledger.expire(before_ms=6)
    assert ledger.holdings.batches == {}


def test_a_failure_whose_offset_was_not_known_is_found_once_it_is_read_back() -> None:
    """Its offset is unknown where a resend hid it: it must not stay so, or nobody could ever be told of the failure."""
    unknown = 2**62
    for offsets in ((unknown, 7), (7, unknown)):
        row = FlightRow()
        for offset in offsets:
            row.learn(Entry.of(failure("retry-1", 5)), offset)
        assert row.failed == 7
    row.learn(Entry.of(failure("retry-1", 6)), 9)
    assert (row.failed, row.failed_ms) == (9, 6)

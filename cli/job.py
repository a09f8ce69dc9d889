"""One `run` without Kafka: which rows to ask next, what came back, what is on disk. A kill at any point can be gone on with.

    input file -> candidates -> take (claims ids, reserves money, remembers the row as ASKED) -> records to produce
    responses  -> settle (journal, then index, then money) -> answers file

The order of the writes is the promise: a row is ASKED on disk before it is produced, and the cursor moves in the same
transaction that claims its custom_id. So every row that may have been paid is known after a kill.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from heapq import heappop, heappush

from ..pipeline.errors import EngineError
from ..pipeline.respond import usd
from .asking import Asked
from .budget import Admission, Budget
from .corrected import NOT_TO_BE_RETRIED
from .input_file import Line, read_line_at, read_lines
from .job_files import JobFiles
from .outcome import NotAResponse, Outcome, Spent, Totals, read_outcome, shared_line
from .paid_before import NOTHING, PaidBefore, dearer_than_known, dearer_than_left, own_limit, paid_in_vain
from .rows import BadRow, Row, RowDefaults, custom_id_of, id_digest, job_prefix, local_error_line, oversized_row, parse_row, repeat_digest
from .spool import Entry, Kind

CapsOf = Callable[[Row], tuple[int, ...]]
"""The most that a call for a row can cost, in pico-dollars, by each model that may answer it, ascending; raises `EngineError` where that
can't be known."""

BATCH = 256
_NO_LIMIT = 2**62
_REPEATS_WATCHED = 200_000


@dataclass(frozen=True, slots=True)
class Ask:
    """One record to be produced."""

    custom_id: str
    value: bytes
    bulk: bool = False
    """Goes to the batch lane's own door."""


@dataclass(frozen=True, slots=True)
class _Candidate:
    line: Line
    parsed: Row | BadRow
    caps: tuple[int, ...]
    held_before: bool


@dataclass(slots=True)
class Counts:
    """Rows; `answered` and `failed` leave out `merged`, rows that repeat an earlier one and share its line."""

    answered: int = 0
    failed: int = 0
    merged: int = 0
    held: int = 0

    @property
    def final(self) -> int:
        return self.answered + self.failed + self.merged


@dataclass(slots=True)
class Job:
    """A job in work. Not thread-safe."""

    files: JobFiles
    tenant: str
    total: int
    defaults: RowDefaults
    budget: Budget
    caps_of: CapsOf
    totals: Totals = field(default_factory=Totals)
    counts: Counts = field(default_factory=Counts)
    outstanding: dict[str, Asked] = field(default_factory=dict)
    cancelled: bool = False
    paid_before: PaidBefore = field(init=False)
    """Of rows that are asked more than once; part of `totals`, and not of those saved."""
    notes: list[str] = field(default_factory=list)
    """For the user, to be shown once each."""
    _candidates: Iterator[_Candidate] | None = None
    _waiting: _Candidate | None = None
    _again: list[tuple[int, int]] = field(default_factory=list)
    """A heap of (cap, row): rows whose next try needs room for so much."""
    _exhausted: bool = False
    _read_before: int = 0
    """Rows below may have been handled in a run that was killed before it moved the cursor."""
    _cursor: tuple[int, int] = (0, 0)
    _repeats: dict[bytes, int] | None = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.paid_before = PaidBefore(self.files.database)

    @property
    def name(self) -> str:
        return self.defaults.job

    # --- going on after a kill ------------------------------------------------------------------------------------

    def restore(self) -> None:
        """Rebuilds what was known when the last run ended, however it ended."""
        files = self.files
        self.totals, journal_end = files.load_totals()
        self.paid_before.load()
        for row, offset, line in files.journal.scan(journal_end):
            entry = files.index.get(row)
            if entry.kind in (Kind.ANSWERED, Kind.FAILED) and entry.offset == offset:
                outcome = read_outcome(line)
                self.totals.add(outcome, NOTHING if row in self.paid_before else outcome.spent)
        self.totals.spend(self.paid_before.total)
        self._cursor = files.load_cursor()
        self._read_before = self._cursor[0] + BATCH
        for row, entry in files.index.scan():
            self._remember(row, entry)
        self.budget.spent = self.totals.possibly_pico

    def set_aside(self, row: int, spent: Spent) -> None:
        """Before a failed row is asked again: what it took is remembered by itself, since its next response tells it once more."""
        if row in self.paid_before or spent == NOTHING:
            return
        with self.files.database.transaction():
            self.paid_before.put(row, spent)
            self.files.save_totals(self.totals.without(self.paid_before.total))

    def asks_anew(self, row: int) -> None:
        """The row was corrected: what it took stays in the sums, and no response to what it asks for now tells it again."""
        if row in self.paid_before:
            with self.files.database.transaction():
                self.paid_before.forget(row)
                self.files.save_totals(self.totals.without(self.paid_before.total))

    def forget_calls(self) -> None:
        """On another Kafka the engine knows of no call made before: what its responses tell comes on top."""
        with self.files.database.transaction():
            self.paid_before.clear()
            self.files.save_totals(self.totals)

    def recount(self) -> None:
        """After rows were marked to be asked again."""
        kinds = dict.fromkeys(Kind, 0)
        for _, entry in self.files.index.scan():
            kinds[entry.kind] += 1
        self.counts = Counts(kinds[Kind.ANSWERED], kinds[Kind.FAILED], kinds[Kind.SAME_AS])

    def _remember(self, row: int, entry: Entry) -> None:
        counts = self.counts
        if entry.kind is Kind.ANSWERED:
            counts.answered += 1
        elif entry.kind is Kind.FAILED:
            counts.failed += 1
        elif entry.kind is Kind.SAME_AS:
            counts.merged += 1
        elif entry.kind is Kind.ASKED and row < self._cursor[0]:
            parsed = self._reread(row, entry.offset, entry.length)
            if isinstance(parsed, Row):
                cap = self._told(entry, parsed)
                limit = self.paid_before.allowed(row, cap)
                # Killed while a response was written down: what that told is spent, and no more of it is to come.
                reserved = max(0, limit - self.paid_before.of(row).pico)
                self.outstanding[parsed.custom_id] = Asked(row, entry.offset, entry.length, cap, 0.0, limit=limit, reserved=reserved)
                self.budget.reserve(reserved)

    def _caps(self, row: Row) -> tuple[int, ...]:
        if self.budget.limit is None:
            return (0,)
        own = own_limit(row)
        caps = self.caps_of(row)
        return caps if own is None else tuple(sorted({min(cap, own) for cap in caps}))

    def _told(self, entry: Entry, row: Row) -> int:
        """The cap with which an ASKED row was sent; the most there is where an earlier version or another run did not say."""
        if self.budget.limit is None or not entry.cap_pico:
            return self._caps(row)[-1]
        own = own_limit(row)
        return entry.cap_pico if own is None else min(entry.cap_pico, own)

    def _reread(self, row: int, offset: int, length: int) -> Row | BadRow:
        return self._parse(read_line_at(self.files.input.fileno(), row, offset, length))

    def _parse(self, line: Line) -> Row | BadRow:
        if line.oversized:
            return oversized_row(line.data, line.row + 1, line.length)
        return parse_row(line.data, line.row + 1, self.defaults)

    # --- asking ---------------------------------------------------------------------------------------------------

    def take(self, room: int, *, due: float) -> list[Ask]:
        """Up to `room` requests to produce now. Empty where nothing may be sent before something comes back, or at the end.

        Raises `DiskFull`.
        """
        asks: list[Ask] = []
        if self.cancelled or self._all_taken:
            return asks
        local: list[tuple[int, bytes, bool]] = []
        with self.files.database.transaction():
            for _ in range(min(room, BATCH)):
                candidate = self._next()
                if candidate is None or not self._handle(candidate, asks, local, due):
                    break
            self._write(local)
            self.files.save_cursor(self._cursor)
        return asks

    @property
    def _all_taken(self) -> bool:
        return self._exhausted and self._waiting is None and not self._again

    def _next(self) -> _Candidate | None:
        """Those to be asked again first where there is room; they never hold up others that need less."""
        if self._again and self.budget.decide(self._again[0][0]) is not Admission.WAIT:
            return self._asked_again()
        if self._waiting is not None:
            candidate, self._waiting = self._waiting, None
            return candidate
        if self._candidates is None:
            self._candidates = self._all_candidates()
        found = next(self._candidates, None)
        self._exhausted = found is None
        return self._asked_again() if found is None and self._again else found

    def _asked_again(self) -> _Candidate:
        _, row = heappop(self._again)
        return self._held(row, self.files.index.get(row))

    def _held(self, row: int, entry: Entry) -> _Candidate:
        return self._candidate(
            read_line_at(self.files.input.fileno(), row, entry.offset, entry.length), held_before=True, least=entry.cap_pico
        )

    def _all_candidates(self) -> Iterator[_Candidate]:
        row, offset = self._cursor
        for held, entry in self.files.index.scan(0, row):
            if entry.kind is Kind.HELD:
                yield self._held(held, entry)
        for line in read_lines(self.files.input, row=row, offset=offset, end=self.files.input_size):
            yield self._candidate(line, held_before=False)

    def _candidate(self, line: Line, *, held_before: bool, least: int = 0) -> _Candidate:
        """`least`: less was not enough for the row."""
        parsed = self._parse(line)
        caps: tuple[int, ...] = ()
        if isinstance(parsed, Row):
            self._watch_repeats(line.row, parsed)
            try:
                caps = self._caps(parsed)
            except EngineError as error:
                parsed = BadRow(parsed.custom_id, error.code, f"{error}; the row was not sent")
        return _Candidate(line, parsed, tuple(cap for cap in caps if cap >= least) or caps[-1:], held_before)

    def _handle(self, candidate: _Candidate, asks: list[Ask], local: list[tuple[int, bytes, bool]], due: float) -> bool:
        """False where the candidate must wait."""
        line, parsed = candidate.line, candidate.parsed
        if candidate.held_before and self.files.index.get(line.row).kind is not Kind.HELD:
            return True  # asked again before its turn came
        if not candidate.held_before and line.row < self._read_before and self._is_final(line.row):
            self._advance(candidate)
            return True
        mine = self._claim(line.row, parsed) if isinstance(parsed, Row) else parsed
        if isinstance(mine, BadRow):
            local.append((line.row, local_error_line(self.tenant, self.name, mine), False))
        elif isinstance(mine, Row):
            cap = self.budget.cap_for(candidate.caps, self.total - self.counts.final)
            admission = self.budget.decide(cap)
            if admission is Admission.WAIT:
                self._wait(candidate)
                return False
            self._admit(candidate, cap, mine, admission, asks, due)
        self._advance(candidate)
        return True

    def _wait(self, candidate: _Candidate) -> None:
        if candidate.held_before:
            heappush(self._again, (candidate.caps[0], candidate.line.row))
        else:
            self._waiting = candidate

    def _is_final(self, row: int) -> bool:
        return self.files.index.get(row).kind in (Kind.ANSWERED, Kind.FAILED, Kind.SAME_AS)

    def _advance(self, candidate: _Candidate) -> None:
        if not candidate.held_before:
            self._cursor = (candidate.line.row + 1, candidate.line.offset + candidate.line.length)

    def _claim(self, row: int, parsed: Row) -> Row | BadRow | None:
        """None where an earlier row asks for the same: it shares that row's line."""
        content = parsed.content_digest()
        first, first_content = self.files.database.claim(id_digest(parsed.custom_id), row, content)
        if first == row:
            return parsed
        if first_content != content:
            return BadRow(
                parsed.custom_id,
                "duplicate_custom_id",
                f"row {first + 1} has the custom_id {parsed.custom_id!r} with another body: give each its own; the row was not sent",
            )
        self.files.index.put(row, Entry(Kind.SAME_AS, first))
        self.counts.merged += 1
        return None

    def _admit(self, candidate: _Candidate, cap: int, row: Row, admission: Admission, asks: list[Ask], due: float) -> None:
        line = candidate.line
        sent = admission is Admission.SEND
        self.files.index.put(line.row, Entry.with_cap(Kind.ASKED if sent else Kind.HELD, line.offset, line.length, cap))
        if not sent:
            self.counts.held += 1
            return
        # The engine counts all calls of a row, those of earlier tries too: what they may have cost is paid for already.
        limit = _NO_LIMIT if self.budget.limit is None else cap + self.paid_before.of(line.row).pico
        own = own_limit(row)
        if own is not None:
            limit = min(limit, own)
        self.paid_before.allow(line.row, limit)
        self.budget.reserve(cap)
        asked = Asked(line.row, line.offset, line.length, cap, due, times=1, limit=limit, reserved=cap)
        self.outstanding[row.custom_id] = asked
        asks.append(self._ask(row, asked))

    def _ask(self, row: Row, asked: Asked) -> Ask:
        if self.budget.limit is None:
            return Ask(row.custom_id, row.value, row.bulk)
        return Ask(row.custom_id, row.value_within(usd(asked.limit)), row.bulk)

    def due(self, now: float, wait: Callable[[int], float], limit: int = BATCH) -> list[Ask]:
        """Requests to produce again since no response came in time; safe, since the engine knows them by their identity."""
        asks: list[Ask] = []
        for custom_id, asked in self.outstanding.items():
            if asked.due > now:
                continue
            asked.times += 1
            asked.due = now + wait(asked.times)
            parsed = self._reread(asked.row, asked.offset, asked.length)
            if isinstance(parsed, Row) and parsed.custom_id == custom_id:
                asks.append(self._ask(parsed, asked))
            if len(asks) >= limit:
                break
        return asks

    def ask_again_at(self, custom_id: str, due: float) -> None:
        """For a request that Kafka did not take."""
        asked = self.outstanding.get(custom_id)
        if asked is not None:
            asked.due = min(asked.due, due)

    # --- what comes back ------------------------------------------------------------------------------------------

    def settle(self, records: Iterable[tuple[bytes | None, bytes | None]]) -> int:
        """Takes (key, value) pairs of the responses topic; how many answered a row that waits. Others' and repeats are passed over.

        Raises `DiskFull`: then the records count as not read.
        """
        prefix = job_prefix(self.tenant, self.name)
        lines: list[tuple[int, bytes, bool]] = []
        taken = 0
        for key, value in records:
            custom_id = None if key is None or value is None else custom_id_of(key, prefix)
            if custom_id is None or value is None or custom_id not in self.outstanding:
                continue
            try:
                outcome = read_outcome(value)
            except NotAResponse as error:
                self.notes.append(f"a record on the responses topic for {custom_id!r} is no response ({error}); still waiting for one")
                continue
            taken += 1
            lines += self._account(custom_id, outcome)
        self._write(lines)
        return taken

    def _account(self, custom_id: str, outcome: Outcome) -> list[tuple[int, bytes, bool]]:
        """The line that makes the row final; none where it is to be asked again."""
        asked = self.outstanding[custom_id]
        over = outcome.code == "over_budget"
        own = self._own_limit_of(asked) if over else None
        if over and self._was_outbid(asked, outcome, own):
            return []
        before = self.paid_before.of(asked.row)
        spent = outcome.spent.most(before)
        new = spent - before
        needed = self._enough(asked, outcome, spent, own) if over else None
        if needed is not None or asked.row in self.paid_before:
            self.paid_before.put(asked.row, spent)
        del self.outstanding[custom_id]
        self.budget.settle(asked.reserved, new.pico)
        self.cancelled = self.cancelled or outcome.code == "cancelled"
        if needed is None:
            self.totals.add(outcome, new)
            ours = over and own is None and self.budget.limit is not None
            return [(asked.row, dearer_than_known(outcome.line, asked.cap, spent) if ours else outcome.line, outcome.ok)]
        self.totals.spend(new)
        self.files.index.put(asked.row, Entry.with_cap(Kind.HELD, asked.offset, asked.length, needed))
        heappush(self._again, (needed, asked.row))
        return []

    def _own_limit_of(self, asked: Asked) -> int | None:
        row = self._reread(asked.row, asked.offset, asked.length)
        return own_limit(row) if isinstance(row, Row) else None

    def _was_outbid(self, asked: Asked, outcome: Outcome, own: int | None) -> bool:
        """Is it the answer to an earlier request of the row, with a lower limit? The later one's money stays reserved: it may be paid."""
        if outcome.limit_pico is None:
            return False
        limit = own if self.budget.limit is None else asked.limit
        return limit is None or outcome.limit_pico < limit

    def _enough(self, asked: Asked, outcome: Outcome, spent: Spent, own: int | None) -> int | None:
        """The next cap with which a row that was refused for our limit is asked again; None where it was refused for its own, or for all
        that we know a call can cost."""
        refused_for = max(asked.limit, outcome.limit_pico or 0)
        if self.budget.limit is None or (own is not None and refused_for >= own):
            return None
        parsed = self._reread(asked.row, asked.offset, asked.length)
        try:
            caps = self._caps(parsed) if isinstance(parsed, Row) else ()
        except EngineError:  # its price has ended since it was sent
            caps = (asked.cap,)
        return next((cap for cap in caps if spent.pico + cap > refused_for), None)

    def refuse(self, custom_id: str, code: str, reason: str) -> None:
        """Ends a request that Kafka will never take."""
        asked = self.outstanding.pop(custom_id, None)
        if asked is not None:
            self.budget.settle(asked.reserved, 0)
            self._write([(asked.row, local_error_line(self.tenant, self.name, BadRow(custom_id, code, reason)), False)])

    def _write(self, lines: list[tuple[int, bytes, bool]]) -> None:
        if not lines:
            return
        for row, entry in self.files.journal.append(lines):
            self.files.index.put(row, entry)
        good = sum(ok for _, _, ok in lines)
        self.counts.answered += good
        self.counts.failed += len(lines) - good

    # --- the end --------------------------------------------------------------------------------------------------

    @property
    def finished(self) -> bool:
        """Nothing is on its way, and nothing more may be sent in this run."""
        if self.outstanding:
            return False
        return self.cancelled or self._all_taken

    def checkpoint(self, offsets: dict[int, int], seconds: float, *, sync: bool) -> None:
        """Remembers how far the responses are read. Call it only when all of them are settled."""
        self.files.save_checkpoint(self.totals.without(self.paid_before.total), offsets, seconds, sync=sync)

    def write_answers(self) -> bool:
        """Lets the answers file grow. True where there may be more to write."""
        return self.files.answers.advance(self.files.index, self.files.journal, self.total, share=shared_line)

    def open_rows(self) -> Iterator[bytes]:
        """The rest of the answers file, where rows are left that were not sent: those as errors that are not final."""
        why = (
            BadRow("", "cancelled", "the job was cancelled before this row was sent; run the same command again to go on")
            if self.cancelled
            else dearer_than_left(None)
        )
        cursor_row, cursor_offset = self._cursor
        index, journal = self.files.index, self.files.journal
        for row, entry in index.scan(self.files.answers.rows, cursor_row):
            source = index.resolve(entry)
            if source.kind in (Kind.ANSWERED, Kind.FAILED):
                answer = journal.read(source)
                yield answer if source is entry else shared_line(answer)
            else:
                first = entry.offset if entry.kind is Kind.SAME_AS else row
                lost = first in self.paid_before and not self.cancelled
                said = paid_in_vain(self.paid_before.of(first)) if lost else why if self.cancelled else dearer_than_left(source.cap_pico)
                yield self._unsent(self._reread(first, source.offset, source.length), said)
        for line in read_lines(self.files.input, row=cursor_row, offset=cursor_offset, end=self.files.input_size):
            yield self._unsent(self._parse(line), why)

    def least_needed(self) -> int | None:
        """The smallest cap among the rows that were not sent for their money; None where there is none or it is not known."""
        caps = (entry.cap_pico for _, entry in self.files.index.scan(0, self._cursor[0]) if entry.kind is Kind.HELD and entry.cap_pico)
        return min(caps, default=None)

    def to_be_corrected(self) -> int:
        """Failed rows that would fail again as they are."""
        failed = (self.files.journal.read(entry) for _, entry in self.files.index.scan() if entry.kind is Kind.FAILED)
        return sum(read_outcome(line).code in NOT_TO_BE_RETRIED for line in failed)

    def _unsent(self, parsed: Row | BadRow, why: BadRow) -> bytes:
        bad = parsed if isinstance(parsed, BadRow) else BadRow(parsed.custom_id, why.code, why.reason)
        return local_error_line(self.tenant, self.name, bad)

    # --- warnings -------------------------------------------------------------------------------------------------

    def _watch_repeats(self, row: int, parsed: Row) -> None:
        if self._repeats is None:
            return
        seen = repeat_digest(parsed)
        if seen is None:
            return
        first = self._repeats.setdefault(seen, row)
        if first != row:
            self.notes.append(
                f"row {row + 1} repeats the prompt of row {first + 1} at a temperature above 0: repeats share one answer. "
                "Where you want different ones, number them by engine.sample_index or say --no-cache"
            )
        if first != row or len(self._repeats) > _REPEATS_WATCHED:
            self._repeats = None

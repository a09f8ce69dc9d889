"""What must hold after every run, whatever broke: pure functions from the evidence to what is wrong with it.

answered        every accepted id has exactly one distinct response or error
asked_for       nothing is answered that was not asked
own_answer      an answer belongs to its prompt, and never to another tenant's
committed       an offset is committed only when what it stands for is durable further on: see durable.py
intended        every line of the bill has an intent
bounded         billed calls of a flight <= 1 + its attempts that are known to have failed, and <= max_attempts
after_the_end   no intent behind a completion
money           certain <= bill <= certain + caps of the ambiguous; equal where nothing was ambiguous
settled         no attempt is left open, and no batch: its files are deleted
stored          the cost store holds what the ledger holds, and one `answer` row for a request
apart           no vector and no group holds another tenant's prompt
limited         no worker has more calls open at once than its permits allow, or takes more memory than it may
silent          no secret and no prompt in logs, metrics or headers
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache

from inference_engine.connectors.simulation import answer, asked_of_chat
from inference_engine.pipeline.held import attempt_of
from inference_engine.schemas.ledger import (
    ASKING,
    Ambiguous,
    BatchClosed,
    BatchPrepared,
    BatchVoid,
    Charged,
    Completion,
    Intent,
    LedgerRecord,
    Unpaid,
)
from inference_engine.schemas.responses import ResponseLine

from .durable import committed
from .evidence import Asked, Evidence

Found = Iterator[str]


@dataclass(frozen=True, slots=True)
class Violation:
    """A promise that was broken."""

    invariant: str
    what: str


@dataclass(frozen=True, slots=True)
class Books:
    """The ledger, added up. Money in pico-dollars."""

    intents: Mapping[str, Intent]
    completions: Mapping[str, Completion]
    charged: Mapping[str, Charged]
    ambiguous: Mapping[str, Ambiguous]
    """Attempts that were booked as ambiguous and never turned out to be answered."""
    open: Mapping[str, Intent]
    batches: frozenset[str]
    """Keys of the batches that were neither closed nor found void."""

    @property
    def certain(self) -> int:
        return sum(c.answer.paid_pico for c in self.completions.values()) + sum(c.paid_pico for c in self.charged.values())

    @property
    def caps(self) -> int:
        return sum(a.cap_pico for a in self.ambiguous.values())


def books(evidence: Evidence) -> Books:
    """Each attempt once, however often its records were written."""
    records = [placed.member for placed in evidence.ledger]
    intents = {i.attempt: i for r in records for i in intents_of(r)}
    completions = {r.attempt: r for r in records if isinstance(r, Completion)}
    # One that was held back and given after all is both, and was billed once.
    charged = {r.attempt: r for r in records if isinstance(r, Charged) and r.attempt not in completions}
    known = completions.keys() | charged.keys()
    ambiguous = {r.attempt: r for r in records if isinstance(r, Ambiguous) and r.attempt not in known}
    unpaid = {r.attempt for r in records if isinstance(r, Unpaid)}
    void = {r.batch for r in records if isinstance(r, BatchVoid)}
    unpaid |= {i.attempt for r in records if isinstance(r, BatchPrepared) and r.batch in void for i in intents_of(r)}
    done = known | ambiguous.keys() | unpaid
    over = void | {r.batch for r in records if isinstance(r, BatchClosed)}
    batches = frozenset(r.batch for r in records if isinstance(r, BatchPrepared) and r.batch not in over)
    return Books(intents, completions, charged, ambiguous, {a: i for a, i in intents.items() if a not in done}, batches)


def intents_of(record: LedgerRecord) -> list[Intent]:
    """What the record intends to pay for: a batch that is prepared, each of its rows."""
    if isinstance(record, Intent):
        return [record]
    if not isinstance(record, BatchPrepared):
        return []
    return [
        Intent(flight=flight, attempt=attempt_of(record.batch, place), number=number, model=record.model, cap_pico=cap,
               epoch=record.epoch, at_ms=record.at_ms, timeout_ms=record.timeout_ms)
        for place, (flight, number, cap) in enumerate(record.members)
    ]  # fmt: skip


# --- responses -------------------------------------------------------------------------------------------------------


def content(line: ResponseLine) -> tuple[str, str]:
    """What makes two deliveries of a response the same response."""
    return line.id, line.response.model_dump_json() if line.response is not None else f"error {line.error}"


def key_of(line: ResponseLine) -> tuple[str, str, str]:
    return (line.engine.tenant, line.engine.job, line.custom_id)


def answered(evidence: Evidence) -> Found:
    found: dict[tuple[str, str, str], set[tuple[str, str]]] = defaultdict(set)
    for line in evidence.responses:
        found[key_of(line)].add(content(line))
    for asked in {a.key: a for a in evidence.asked}.values():
        distinct = found.get(asked.key, set())
        if not distinct:
            yield f"{asked.key} has no response"
        elif len(distinct) > 1:
            yield f"{asked.key} has {len(distinct)} distinct responses: {sorted(c[1][:80] for c in distinct)}"


def asked_for(evidence: Evidence) -> Found:
    known = {asked.key for asked in evidence.asked}
    for key in {key_of(line) for line in evidence.responses} - known:
        yield f"{key} was answered and never asked"


@lru_cache(maxsize=200_000)
def expected(model: str, text: str) -> str:
    """What the simulated provider answers."""
    return answer(asked_of_chat(model, {"messages": [{"role": "user", "content": text}]})).texts[0]


def text_of(line: ResponseLine) -> str | None:
    """None for errors and function calls."""
    if line.response is None:
        return None
    choices = line.response.body.get("choices")
    return choices[0]["message"]["content"] if isinstance(choices, list) else None


def own_answer(evidence: Evidence) -> Found:
    asked = {a.key: a for a in evidence.asked}
    whose: dict[str, set[str]] = defaultdict(set)
    for a in evidence.asked:
        whose[expected(a.model, a.text)].add(a.tenant)
    for line in evidence.responses:
        question, text = asked.get(key_of(line)), text_of(line)
        if question is not None and text is not None:
            yield from _wrong(line, question, text, whose)
        raw = line.model_dump_json()
        yield from (
            f"{key_of(line)} shows the canary of {tenant}"
            for tenant, canary in evidence.canaries.items()
            if tenant != line.engine.tenant and canary in raw
        )


def _wrong(line: ResponseLine, asked: Asked, text: str, whose: Mapping[str, set[str]]) -> Found:
    if line.engine.cache.tier in ("semantic", "coalesced"):
        if asked.tenant not in whose.get(text, set()):
            yield f"{asked.key} got, by similarity, an answer of {sorted(whose.get(text, {'nobody'}))}"
    elif text != expected(line.engine.model_used or asked.model, asked.text):
        yield f"{asked.key} got an answer that is not to its prompt: {text[:60]!r}"


# --- money -----------------------------------------------------------------------------------------------------------


def intended(evidence: Evidence) -> Found:
    intents = {i.attempt for p in evidence.ledger for i in intents_of(p.member)}
    for line in evidence.bill:
        if line.attempt not in intents:
            yield f"bill {line.request_id} ({line.pico} pico) names the attempt {line.attempt!r}, which has no intent"


def bounded(evidence: Evidence) -> Found:
    """A second call of a flight needs a first one that is known to have failed, or may have."""
    kept = books(evidence)
    calls = Counter(kept.intents[line.attempt].flight for line in evidence.bill if line.attempt in kept.intents)
    once = Counter(line.attempt for line in evidence.bill)
    excused: Counter[str] = Counter()
    for r in {(type(r), r.attempt): r for p in evidence.ledger if isinstance(r := p.member, Ambiguous | Charged)}.values():
        excused[r.flight] += 1
    for flight, count in calls.items():
        if count > 1 + excused[flight]:
            yield f"flight {flight[:12]} was billed {count} times, {excused[flight]} attempts of it were ambiguous or useless"
        if count > evidence.max_attempts:
            yield f"flight {flight[:12]} was billed {count} times, more than {evidence.max_attempts}"
    for attempt, count in once.items():
        if count > 1:
            yield f"attempt {attempt} was billed {count} times"


ONCE = ("answer", "audit", "exploration", *ASKING)
"""Purposes of calls that are over once one of their flight is completed."""


def after_the_end(evidence: Evidence) -> Found:
    ended: set[str] = set()
    for placed in evidence.ledger:
        record: LedgerRecord = placed.member
        if isinstance(record, Completion) and record.purpose in ONCE:
            ended.add(record.flight)
        for intent in intents_of(record):
            if intent.purpose in ONCE and intent.flight in ended:
                yield f"attempt {intent.attempt} of flight {intent.flight[:12]} was intended after its completion (offset {placed.offset})"


def unexplained(evidence: Evidence) -> int:
    """Pico-dollars of the bill that the ledger can't explain: 0 within the bounds."""
    kept, billed = books(evidence), sum(line.pico for line in evidence.bill)
    caps = kept.caps + sum(i.cap_pico for i in kept.open.values())
    return max(0, billed - kept.certain - caps, kept.certain - billed)


def money(evidence: Evidence) -> Found:
    kept, billed = books(evidence), sum(line.pico for line in evidence.bill)
    if unexplained(evidence):
        yield f"the bill is {billed} pico, the ledger says {kept.certain} for certain and up to {kept.caps} more"
    paid = {**{a: c.answer.paid_pico for a, c in kept.completions.items()}, **{a: c.paid_pico for a, c in kept.charged.items()}}
    lines = {line.attempt: line.pico for line in evidence.bill}
    for attempt, pico in paid.items():
        if lines.get(attempt) != pico:
            yield f"attempt {attempt}: {pico} pico in the ledger, {lines.get(attempt)} on the bill"
    for attempt, record in kept.ambiguous.items():
        if lines.get(attempt, 0) > record.cap_pico:
            yield f"attempt {attempt}: billed {lines[attempt]} pico, above its cap of {record.cap_pico}"


def settled(evidence: Evidence) -> Found:
    for attempt, intent in books(evidence).open.items():
        yield f"attempt {attempt} of flight {intent.flight[:12]} was left open: nobody will book its cap of {intent.cap_pico} pico"
    for batch in books(evidence).batches:
        yield f"batch {batch} was left open: its files are at the provider"
    for name in evidence.files:
        yield f"the file {name} was left at the provider"


def stored(evidence: Evidence) -> Found:
    if evidence.stored is None:
        return
    kept = books(evidence)
    base, cap = sum(r.base_pico for r in evidence.stored), sum(r.cap_pico for r in evidence.stored)
    if base != kept.certain:
        yield f"the cost store has {base} pico, the ledger {kept.certain}"
    if cap != kept.caps:
        yield f"the cost store has caps of {cap} pico, the ledger {kept.caps}"
    rows = Counter(r.request for r in evidence.stored if r.kind == "answer")
    yield from (f"{request} has {count} rows of an answer in the cost store" for request, count in rows.items() if count > 1)


# --- tenants and limits ----------------------------------------------------------------------------------------------


def apart(evidence: Evidence) -> Found:
    for vector in evidence.vectors:
        for tenant, canary in evidence.canaries.items():
            if tenant != vector.member.tenant and canary in vector.member.text:
                yield f"a vector of {vector.member.tenant} holds a prompt of {tenant}"
    leaders = {p.member.request.fingerprint: p.member.request.identity.tenant for p in evidence.calls}
    for placed in evidence.calls:
        tenant, leader = placed.member.request.identity.tenant, placed.member.group
        if leader is not None and leaders.get(leader, tenant) != tenant:
            yield f"a call of {tenant} is in a group that {leaders[leader]} leads"


MEMORY_MB = 900
"""Of one worker or sink, with all that the matrix asks: 250 to 400 are usual."""


def limited(evidence: Evidence) -> Found:
    """The bound is exact, process by process, since each has a key of its own: what a process has open is what its permits are for. A
    killed one has nothing open any more, nor has a living one those calls that it gave up, though the provider goes on with them; one
    that stands still has what it had open, and begins nothing."""
    if evidence.most_open > evidence.permits:
        yield f"a worker had {evidence.most_open} calls open at once, {evidence.permits} are allowed"
    for name, held in evidence.memory_mb.items():
        if held > MEMORY_MB:
            yield f"{name} took {held:.0f} MB"


# --- words -----------------------------------------------------------------------------------------------------------


def silent(evidence: Evidence) -> Found:
    for where, said in evidence.words.items():
        for secret in evidence.secrets:
            if secret.encode() in said:
                yield f"{where} shows a secret"
        for tenant, canary in evidence.canaries.items():
            if canary.encode() in said:
                yield f"{where} shows a prompt of {tenant}"


INVARIANTS: Mapping[str, Callable[[Evidence], Found]] = {
    check.__name__: check
    for check in (
        *(answered, asked_for, own_answer, committed, intended, bounded, after_the_end, money),
        *(settled, stored, apart, limited, silent),
    )
}


def violations(evidence: Evidence) -> list[Violation]:
    """Everything that is wrong, up to 5 of a kind."""
    found: list[Violation] = []
    for name, check in INVARIANTS.items():
        mine = list(check(evidence))
        found += [Violation(name, what) for what in mine[:5]]
        if len(mine) > 5:
            found.append(Violation(name, f"... {len(mine) - 5} more"))
    return found

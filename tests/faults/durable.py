"""An offset is committed only when what it stands for is durable further on: one claim for each edge of the flow.

    requests  a lookup of the request, or its response
    lookups   a response; a row of a waiter, and a miss that flies for it; of a follower a row, its answer, or a miss of its own
    misses    a call of the flight, a lookup that follows another one, or the router's refusal
    calls     an outcome of the flight in the ledger, or its place in the batches that the ledger owns
    ledger    of each outcome its row of costs, and of what ends a flight the answer, and the vector where it has one
    answers   the owner's response
    costs     its row in the cost store: looked for at the end, since what is committed is not delivered again

Everything that is named must have been there when the offset was read, but for `costs`: the store is not asked at every fault.

Where there is no claim. `answers`: who waits beside the owner is known by rows and by memory, and offsets of two topics don't say whether
he joined before the answer was handled or after it; his lookup's claim is that he waits or has a response, and `answered` says at the end
that he has one. `feedback` and `lessons`: losing a lesson costs neither an answer nor money; that none of a judge's is lost is looked for
at the end (grades.py). `vectors`, `corrections`, `routers`, `controls`: read whole by everyone who needs them, and nobody commits
there. `responses`, `dead-letters`: read by other people's programs.
"""

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass

from inference_engine.pipeline.exact import waiter_key
from inference_engine.pipeline.fingerprint import unshared
from inference_engine.pipeline.respond import ANSWERING, complete, error_id
from inference_engine.schemas.ledger import ASKING, Ambiguous, Charged, Completion, Failure, Parked
from inference_engine.schemas.requests import Lookup

from .evidence import Evidence, Placed, Snapshot, T

Found = Iterator[str]


class Index:
    """Where something lies first, by what it stands for, in each partition."""

    def __init__(self, found: Iterable[tuple[Hashable, Placed[T]]]) -> None:
        self._places: dict[Hashable, dict[tuple[str, int], int]] = defaultdict(dict)
        for key, placed in found:
            self._places[key].setdefault((placed.topic, placed.partition), placed.offset)

    def by_then(self, key: Hashable, at: Snapshot) -> bool:
        """Was one of them durable?"""
        return any(offset < at.ends.get(place, 0) for place, offset in self._places.get(key, {}).items())

    def waits(self, key: Hashable, at: Snapshot) -> bool:
        """Lies the first one of some partition where nothing was committed yet?"""
        return any(offset >= at.committed.get(place, 0) for place, offset in self._places.get(key, {}).items())


@dataclass(frozen=True, slots=True)
class Further:
    """What lies further on."""

    replies: Index
    """By identity."""
    lookups: Index
    """By identity."""
    first_lookups: Index
    """By fingerprint, followers left out."""
    followers: Index
    """By identity and what it followed before in vain, lookups that follow another request."""
    rows: Index
    """By key, of waiters."""
    misses: Index
    """By fingerprint."""
    alone: Index
    """By identity, misses of followers that are to fly by themselves, or to lead others."""
    calls: Index
    """By flight."""
    ended: Index
    """By flight: its end, or the ledger's own from there on."""
    answers: Index
    """By fingerprint."""
    outcomes: Index
    """Answers by flight."""
    costs: Index
    """By id of the event."""
    vectors: Index
    """By fingerprint."""


def further(e: Evidence) -> Further:
    return Further(
        replies=Index((p.member, p) for p in e.replies),
        lookups=Index((p.member.request.identity, p) for p in e.lookups),
        first_lookups=Index((p.member.request.fingerprint, p) for p in e.lookups if p.member.follow is None),
        followers=Index(((p.member.request.identity, p.member.follow.fallen), p) for p in e.lookups if p.member.follow is not None),
        rows=Index((p.member, p) for p in e.rows),
        misses=Index((p.member.request.fingerprint, p) for p in e.misses),
        alone=Index((p.member.request.identity, p) for p in e.misses if p.member.skip_semantic or p.member.fallen),
        calls=Index((p.member.request.flight, p) for p in e.calls),
        ended=Index((p.member.flight, p) for p in e.ledger if isinstance(p.member, Completion | Failure | Parked)),
        answers=Index((p.member.fingerprint, p) for p in e.answers),
        outcomes=Index((p.member.flight, p) for p in e.answers),
        costs=Index((p.member.event_id, p) for p in e.costs),
        vectors=Index((p.member.fingerprint, p) for p in e.vectors),
    )


def below(placed: Iterable[Placed[T]], at: Snapshot) -> Iterator[T]:
    """What was committed."""
    return (p.member for p in placed if p.offset < at.committed.get((p.topic, p.partition), 0))


def of_requests(e: Evidence, known: Further, at: Snapshot) -> Found:
    for who in below(e.requests, at):
        if not known.lookups.by_then(who, at) and not known.replies.by_then(who, at):
            yield f"the request {who} was committed, and neither a lookup nor a response was durable"


def of_lookups(e: Evidence, known: Further, at: Snapshot) -> Found:
    if e.truncated:
        return  # a fault has deleted the rows that would show it
    for lookup in below(e.lookups, at):
        yield from _of_follower(lookup, known, at) if lookup.follow is not None else _of_lookup(lookup, known, at)


def _of_lookup(lookup: Lookup, known: Further, at: Snapshot) -> Found:
    request, who = lookup.request, lookup.request.identity
    # Who can't wait for somebody else's batch asks again under a fingerprint of its own.
    if known.replies.by_then(who, at) or known.first_lookups.by_then(unshared(request.fingerprint, who.key), at):
        return
    if not known.rows.by_then(waiter_key(request.fingerprint, who), at):
        yield f"the lookup of {who} was committed, and neither a response nor the row of a waiter was durable"
    # The one that sends the miss may be in work still: it stands in another lane's topic.
    elif not known.misses.by_then(request.fingerprint, at) and not known.first_lookups.waits(request.fingerprint, at):
        yield f"the lookup of {who} was committed, it waits, and no miss was durable that flies for it"


def _of_follower(lookup: Lookup, known: Further, at: Snapshot) -> Found:
    request, follow = lookup.request, lookup.follow
    assert follow is not None
    row = known.rows.by_then(waiter_key(follow.fingerprint, request.identity), at)
    if not row and not known.answers.by_then(request.fingerprint, at) and not known.alone.by_then(request.identity, at):
        yield f"the lookup of the follower {request.identity} was committed, and neither its row, its answer nor its own miss was durable"


def of_misses(e: Evidence, known: Further, at: Snapshot) -> Found:
    for miss in below(e.misses, at):
        request = miss.request
        follows = not miss.skip_semantic and known.followers.by_then((request.identity, miss.fallen), at)
        if not known.calls.by_then(request.flight, at) and not follows and not known.answers.by_then(request.fingerprint, at):
            yield f"the miss of {request.identity} was committed, and no call, no lookup of a follower and no refusal was durable"


def of_calls(e: Evidence, known: Further, at: Snapshot) -> Found:
    for call in below(e.calls, at):
        if not known.ended.by_then(call.request.flight, at):
            yield f"the call of flight {call.request.flight[:12]} was committed, and had no outcome in the ledger"


def of_ledger(e: Evidence, known: Further, at: Snapshot) -> Found:
    ended: set[str] = set()
    for r in below(e.ledger, at):
        if not isinstance(r, Completion | Failure | Ambiguous | Charged):
            continue
        if isinstance(r, Failure) and r.purpose in ASKING:
            continue  # a question that nobody waits for: no answer, and nothing was paid
        where = f"flight {r.flight[:12]} was committed"
        event = error_id(r.request.identity, r.request.fingerprint) if isinstance(r, Failure) else r.attempt
        if not known.costs.by_then(event, at):
            yield f"the {r.type} of {where}, and its row of costs was not durable"
        ends = isinstance(r, Failure) or (isinstance(r, Completion) and r.purpose in ANSWERING)
        if ends and not known.outcomes.by_then(r.flight, at):
            yield f"the {r.type} of {where}, and its answer was not durable"
        if ends and r.flight not in ended and _has_vector(r) and not known.vectors.by_then(r.request.fingerprint, at):
            yield f"the {r.type} of {where}, and its vector was not durable"
        if ends:
            ended.add(r.flight)


def _has_vector(record: object) -> bool:
    if not isinstance(record, Completion) or record.embedding is None:
        return False
    return record.request.use_cache and record.request.shareable and complete(record.answer)


def of_answers(e: Evidence, known: Further, at: Snapshot) -> Found:
    if e.truncated:
        return  # with the rows it is gone who waited
    for record in below(e.answers, at):
        if not known.replies.by_then(record.owner, at):
            yield f"the answer for {record.owner} was committed, and its response was not durable"


def of_costs(e: Evidence, _: Further, at: Snapshot) -> Found:
    if e.stored is None:
        return
    stored = {row.event_id for row in e.stored}
    for event in below(e.costs, at):
        if event.event_id not in stored:
            yield f"the cost event {event.event_id} was committed, and is not in the cost store"


EDGES: tuple[Callable[[Evidence, Further, Snapshot], Found], ...] = (
    of_requests,
    of_lookups,
    of_misses,
    of_calls,
    of_ledger,
    of_answers,
    of_costs,
)


def committed(evidence: Evidence) -> Found:
    """What lies below a committed offset must have been durable further on at that time."""
    known = further(evidence)
    for at in evidence.snapshots:
        for edge in EDGES:
            yield from edge(evidence, known, at)

"""The exact tier: who has an answer, who waits for one, who flies.

Three kinds of row share the table of a partition; the first byte of a key says which:
`a` + fingerprint: an answer; `f` + fingerprint: a flight; `w` + fingerprint + identity: a waiter.
"""

import hashlib
from dataclasses import dataclass

import orjson

from ..schemas.answers import AnswerRecord, Source, VectorRecord
from ..schemas.exact import Flight, WaiterRow
from ..schemas.record import Lane
from ..schemas.requests import Identity, Lookup, Miss, Request, Waiter
from .fingerprint import flight_id, unshared

LONG_MS = 1_800_000
"""Calls with less time than this are not put into a provider's batch, so nobody needs to overtake them."""
ANSWER, FLIGHT, WAITER = b"a", b"f", b"w"
MOST_FALLEN = 8
"""So many sources may fail one follower, one after the other; then it flies by itself, at once with whoever is left."""
PATIENCE_MS = {Lane.EXPRESS: 10_000, Lane.STANDARD: 60_000}
"""Who asked longer ago than this, and said no deadline, flies by itself when its source fails; in the batch lane nobody is in a hurry."""


def answer_key(fingerprint: str) -> bytes:
    return ANSWER + bytes.fromhex(fingerprint)


def flight_key(fingerprint: str) -> bytes:
    return FLIGHT + bytes.fromhex(fingerprint)


def waiter_key(fingerprint: str, identity: Identity) -> bytes:
    return WAITER + bytes.fromhex(fingerprint) + hashlib.sha256(identity.key).digest()[:16]


def fingerprint_of(key: bytes) -> str:
    """The fingerprint of any row's key."""
    return key[1:33].hex()


def worth_of(row: bytes) -> tuple[int, int]:
    """When a stored answer was made, UTC epoch ms, and what a hit of it saves, in 10^-12 USD.

    Without making a record of it: a partition may hold tens of thousands, and waits for this at its assignment.
    """
    value = orjson.loads(row)
    return value["created_ms"], (value.get("answer") or {}).get("paid_pico", 0)


@dataclass(frozen=True, slots=True)
class Hit:
    """Answer now. `redelivered`: the request is the very one that the answer was made for."""

    record: AnswerRecord
    redelivered: bool


@dataclass(frozen=True, slots=True)
class Share:
    """A follower takes the answer of its source, under its own fingerprint."""

    record: AnswerRecord


@dataclass(frozen=True, slots=True)
class Join:
    """Wait for a flight. `start` is the flight's row where this request is the one that starts it or sends it again."""

    row: WaiterRow
    start: Flight | None
    forward: Miss | None


@dataclass(frozen=True, slots=True)
class Return:
    """A follower whose source is gone, or is too slow for it: back to `misses`."""

    miss: Miss


@dataclass(frozen=True, slots=True)
class Overtake:
    """The flight may take much longer than this request has: it flies by itself, under a fingerprint that is its own."""

    lookup: Lookup


Decision = Hit | Share | Join | Return | Overtake


def fresh(record: AnswerRecord, now_ms: int, max_age_s: int) -> bool:
    """An answer is served up to its own time to live, or the asker's where that is shorter."""
    age = now_ms - record.created_ms
    return record.answer is not None and age <= 1000 * min(record.ttl_s, max_age_s)


def look_up(
    lookup: Lookup, answer: AnswerRecord | None, flight: Flight | None, now_ms: int, lease_ms: int, worked_off_ms: int | None = None
) -> Decision:
    """Decides one lookup by the rows of the fingerprint that it asks for.

    That is the request's own fingerprint, or for a follower the one that it follows. `worked_off_ms`: all calls of the partition that
    were sent before are done; a lease does not run out while its call may wait for its turn.
    """
    request = lookup.request
    by_calls_ms = now_ms if worked_off_ms is None else min(now_ms, worked_off_ms)
    if lookup.follow is not None:
        return _follow(lookup, answer, flight, now_ms, lease_ms, by_calls_ms)
    own = flies_itself(flight, answer, request.identity)
    if answer is not None and was_refused(answer, waiter_of(request)):
        return Hit(answer, redelivered=True)
    if answer is not None and not own and request.use_cache and fresh(answer, now_ms, request.cache_ttl_s):
        return Hit(answer, redelivered=answer.owner == request.identity)
    if flight is not None and flight.owner != request.identity and too_slow(flight, request, now_ms):
        return Overtake(Lookup(request=_by_itself(request)))
    row = WaiterRow(waiter=waiter_of(request))
    if flight is not None and flight.owner != request.identity and by_calls_ms < flight.lease_ms:
        return Join(row, start=None, forward=None)
    if flight is None:
        flight = Flight(
            flight=request.flight, owner=request.identity, lease_ms=now_ms + lease_ms, promised_ms=request.deadline_ms, since_ms=now_ms
        )
    else:  # the owner again, or a lease that ran out: the same flight is sent again, and paid once
        flight = flight.model_copy(update={"lease_ms": now_ms + lease_ms})
        request = request.model_copy(update={"flight": flight.flight, "identity": flight.owner})
    return Join(row, start=flight, forward=Miss(request=request, since_ms=flight.since_ms))


def flies_itself(flight: Flight | None, record: AnswerRecord | None, who: Identity) -> bool:
    """A call of its own is under way: what that says is its answer, and another's, should one come before it, is not. It would be told
    one of them and pay for the other."""
    return flight is not None and flight.owner == who and record is not None and record.owner != who


def too_slow(flight: Flight, request: Request, now_ms: int) -> bool:
    """Would waiting for the flight be too long, where the call may be in a batch that takes a day?

    Who has a deadline waits until then; who has none waits for others only in the batch lane.
    """
    if flight.promised_ms is None or flight.promised_ms - now_ms <= LONG_MS:
        return False
    if request.deadline_ms is None:
        return request.lane is not Lane.BATCH
    return request.deadline_ms < flight.promised_ms - LONG_MS


def _by_itself(request: Request) -> Request:
    """The same request wherever it comes again: under a fingerprint of its own."""
    fingerprint = unshared(request.fingerprint, request.identity.key)
    flight = flight_id(fingerprint, request.identity.key)
    return request.model_copy(update={"fingerprint": fingerprint, "flight": flight, "shareable": False})


def was_refused(kept: AnswerRecord, asking: Waiter) -> bool:
    """This very request was told an error already, and comes once more: by now another one's answer may be near enough to be shared."""
    told = kept.asker
    same = told is not None and (told.identity, told.accepted_ms) == (asking.identity, asking.accepted_ms)
    return kept.answer is None and kept.owner == asking.identity and same


def told_before(record: AnswerRecord, kept: AnswerRecord | None) -> Waiter | None:
    """The owner, where it was given another one's answer (it is in the row, `kept`) before this one of its own call came: a redelivery
    can have sent it both ways."""
    own = record.answer is not None and record.source.tier == "provider" and kept is not None and kept.owner == record.owner
    return kept.asker if own and kept is not None and kept.answer is not None else None


def stands(record: AnswerRecord, kept: AnswerRecord | None, now_ms: int) -> AnswerRecord:
    """What is given from now on. An answer that its owner was given is given as long as it lives, whatever comes after it for the same
    owner: redelivered, a request may end a second time and otherwise, as a follower of somebody else or by its own call, and whoever
    waited is told one thing only. `kept`: the answer that is there; None where it was taken back.
    """
    if kept is not None and kept.owner == record.owner and fresh(kept, now_ms, kept.ttl_s):
        return kept
    if kept is not None and record.source.tier != "provider" and record.asker is not None and was_refused(kept, record.asker):
        return kept
    return record


def only_for_owner(record: AnswerRecord, waiter: Waiter) -> bool:
    """The owner's own error, or an answer read back from the ledger that was too old when this one asked."""
    if record.request is None or waiter.identity == record.owner:
        return False
    return record.answer is None or waiter.accepted_ms - record.created_ms > 1000 * record.ttl_s


def _follow(lookup: Lookup, answer: AnswerRecord | None, flight: Flight | None, now_ms: int, lease_ms: int, by_calls_ms: int) -> Decision:
    follow, request = lookup.follow, lookup.request
    assert follow is not None
    # What the source itself was given by similarity is not passed on: nobody has compared these two prompts.
    own = answer is not None and answer.source.tier == "provider"
    if answer is not None and own and answer.scope == follow.scope and fresh(answer, now_ms, request.cache_ttl_s):
        return Share(shared(answer, lookup, now_ms))
    # Of a flight without a call nobody knows whether it ends: it may be waiting for this very request.
    if flight is None or flight.since_ms != follow.since_ms:
        return Return(handed_on(lookup, now_ms))
    until_ms = flight.lease_ms if follow.called_ms is None else max(flight.lease_ms, follow.called_ms + lease_ms)
    if by_calls_ms < until_ms and not too_slow(flight, request, now_ms):
        return Join(WaiterRow(waiter=waiter_of(request), follow=follow, request=request), start=None, forward=None)
    return Return(alone(request))


def alone(request: Request) -> Miss:
    """It is paid for by itself, whatever is similar to it."""
    return Miss(request=request, skip_semantic=True)


def handed_on(lookup: Lookup, now_ms: int) -> Miss:
    """A follower whose source gave it nothing: it goes back, with those who followed the same one, and one of them leads the others.

    Each time one name is added to those that it does not follow again, and one request has been called: a group of n ends after n calls.
    """
    follow, request = lookup.follow, lookup.request
    assert follow is not None
    fallen = (*follow.fallen, follow.fingerprint)
    if len(fallen) >= MOST_FALLEN or not _can_wait(request, now_ms):
        return alone(request)
    return Miss(request=request, since_ms=follow.own_ms, fallen=fallen)


def _can_wait(request: Request, now_ms: int) -> bool:
    """For one more call that may fail. Who has a deadline waits for half of its time."""
    waited_ms = now_ms - request.accepted_ms
    if request.deadline_ms is not None:
        return waited_ms <= request.deadline_ms - now_ms
    patience_ms = PATIENCE_MS.get(request.lane)
    return patience_ms is None or waited_ms <= patience_ms


def shared(answer: AnswerRecord, lookup: Lookup, now_ms: int) -> AnswerRecord:
    """The answer of a source as the outcome of its follower; it lives no longer than its source."""
    follow, request = lookup.follow, lookup.request
    assert follow is not None
    left_s = answer.ttl_s - max(0, now_ms - answer.created_ms) // 1000
    return AnswerRecord(
        fingerprint=request.fingerprint,
        flight=request.flight,
        owner=request.identity,
        answer=answer.answer,
        source=Source(
            tier=follow.kind,
            fingerprint=answer.source.fingerprint,
            flight=answer.source.flight,
            similarity=follow.similarity,
            attempt=answer.source.attempt,
        ),
        cacheable=answer.cacheable,
        created_ms=now_ms,
        ttl_s=max(0, min(left_s, request.cache_ttl_s)),
        scope=request.scope,
        asker=waiter_of(request),
    )


def served(record: AnswerRecord, now_ms: int) -> VectorRecord:
    """Tells the partition of its scope that the answer of the source was given to one more."""
    return VectorRecord(tenant=record.owner.tenant, scope=record.scope, fingerprint=record.source.fingerprint, text="", vector="",
                        created_ms=now_ms, expires_ms=record.created_ms + 1000 * record.ttl_s, served=True)  # fmt: skip


def waiter_of(request: Request) -> Waiter:
    return Waiter(
        identity=request.identity,
        dimensions=request.dimensions,
        lane=request.lane,
        model=request.model,
        accepted_ms=request.accepted_ms,
        deadline_ms=request.deadline_ms,
        max_cost_pico=request.max_cost_pico,
    )


def take_over(request: Request, heir: Waiter, now_ms: int, lease_ms: int) -> tuple[Flight, Miss]:
    """The flight of the next waiter, where the owner's own limits ended the first one."""
    flight = flight_id(request.fingerprint, heir.identity.key)
    mine = request.model_copy(
        update={
            "identity": heir.identity,
            "flight": flight,
            "dimensions": heir.dimensions,
            "lane": heir.lane,
            "accepted_ms": heir.accepted_ms,
            "deadline_ms": heir.deadline_ms,
            "max_cost_pico": heir.max_cost_pico,
        }
    )
    started = Flight(flight=flight, owner=heir.identity, lease_ms=now_ms + lease_ms, promised_ms=heir.deadline_ms, since_ms=now_ms)
    return started, Miss(request=mine, since_ms=now_ms)

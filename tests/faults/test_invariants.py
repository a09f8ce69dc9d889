"""Each invariant is able to fail: a clean run passes all of them, and each doctored one is caught by the one that is meant to."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from inference_engine.connectors.simulation import answer, asked_of_chat
from inference_engine.pipeline.exact import waiter_key
from inference_engine.pipeline.fingerprint import unshared
from inference_engine.pipeline.respond import error_id
from inference_engine.schemas.answers import Answer, AnswerRecord, ErrorInfo, Source, Usage, VectorRecord
from inference_engine.schemas.costs import CostEvent
from inference_engine.schemas.ledger import Ambiguous, BatchPrepared, Charged, Completion, Failure, Intent, LedgerRecord
from inference_engine.schemas.requests import Call, Follow, Identity, Lookup, Miss, Request, Route
from inference_engine.schemas.responses import CacheInfo, EngineInfo, ErrorPart, ResponseLine, ResponsePart

from ..pipeline.support import NOW, request
from .evidence import Asked, Billed, Evidence, Placed, Snapshot, Stored, T
from .invariants import expected, unexplained, violations

PAID, CAP = 700, 900
USAGE = Usage(input_tokens=10, output_tokens=5)


def asked(number: int, tenant: str = "a") -> Asked:
    return Asked(tenant, "j", f"r{number}", "m", f"canary-{tenant} {number}")


def response(question: Asked, text: str | None = None, tier: str = "none") -> ResponseLine:
    text = expected(question.model, question.text) if text is None else text
    body = {"choices": [{"message": {"content": text}}]}
    return ResponseLine(
        id=f"resp-{question.custom_id}",
        custom_id=question.custom_id,
        response=ResponsePart(status_code=200, request_id="req", body=body),
        engine=EngineInfo(
            tenant=question.tenant, job="j", model_used="m", lane="standard", latency_ms=1, cache=CacheInfo.model_validate({"tier": tier})
        ),
    )


def identity(question: Asked) -> Identity:
    return Identity(tenant=question.tenant, job=question.job, custom_id=question.custom_id)


def owned(question: Asked) -> Request:
    return request(question.text, who=identity(question))


def intent(question: Asked, number: int = 1) -> Intent:
    flight = owned(question).flight
    return Intent(
        flight=flight, attempt=f"{flight[:8]}-{number}", number=number, model="m", cap_pico=CAP, epoch="e", at_ms=NOW, timeout_ms=1000
    )


def completion(question: Asked, number: int = 1) -> Completion:
    of = intent(question, number)
    paid = Answer(body={}, model_used="m", usage=USAGE, paid_pico=PAID, finish_reason="stop")
    return Completion(
        flight=of.flight, attempt=of.attempt, number=number, request=owned(question), answer=paid, cap_pico=CAP, attempts=1,
        spent_pico=PAID, at_ms=NOW,
    )  # fmt: skip


def ambiguous(question: Asked, number: int = 1) -> Ambiguous:
    of = intent(question, number)
    return Ambiguous(
        flight=of.flight, attempt=of.attempt, number=number, model="m", cap_pico=CAP, reason="cut", request=owned(question), at_ms=NOW
    )


def batch(question: Asked) -> BatchPrepared:
    members = ((owned(question).flight, 2, CAP),)
    return BatchPrepared(
        batch="b", provider="openai", model="m", members=members, file_sha256="", file_bytes=1, reserved_pico=CAP, epoch="e", at_ms=NOW,
        submit_ms=1, timeout_ms=1,
    )  # fmt: skip


def bill(question: Asked, number: int = 1, pico: int = PAID) -> Billed:
    return Billed("p", "m", f"req-{question.custom_id}-{number}", intent(question, number).attempt, pico)


def placed(*records: LedgerRecord) -> tuple[Placed[LedgerRecord], ...]:
    return tuple(Placed("ledger", 0, offset, record) for offset, record in enumerate(records))


def waits(question: Asked, at: Asked | None = None) -> bytes:
    return waiter_key(owned(at or question).fingerprint, identity(question))


def answered_by(record: Completion) -> AnswerRecord:
    fingerprint = record.request.fingerprint
    return AnswerRecord(
        fingerprint=fingerprint, flight=record.flight, owner=record.request.identity, answer=record.answer, created_ms=NOW,
        source=Source(tier="provider", fingerprint=fingerprint, flight=record.flight),
    )  # fmt: skip


def cost(event_id: str, question: Asked, kind: str = "answer") -> CostEvent:
    return CostEvent.model_validate(
        {"timestamp_ms": NOW, "event_id": event_id, "request_id": question.custom_id, "tenant_id": question.tenant, "job": "j",
         "kind": kind, "lane": "standard", "model_requested": "m"}
    )  # fmt: skip


ONE, TWO = asked(1), asked(2, "b")
ROUTE = Route(models=("m",), reason="test")


def log(topic: str, *members: T) -> tuple[Placed[T], ...]:
    return tuple(Placed(topic, 0, offset, member) for offset, member in enumerate(members))


def snapshot(committed: dict[str, int], ends: dict[str, int]) -> Snapshot:
    return Snapshot({(topic, 0): n for topic, n in committed.items()}, {(topic, 0): n for topic, n in ends.items()})


CLEAN = Evidence(
    asked=(ONE, TWO),
    responses=(response(ONE), response(TWO), response(TWO)),
    ledger=placed(intent(ONE), intent(TWO), ambiguous(TWO), completion(ONE), intent(TWO, 2), completion(TWO, 2)),
    bill=(bill(ONE), bill(TWO), bill(TWO, 2)),
    stored=(
        Stored(completion(ONE).attempt, "answer", "", PAID, 0, ONE.key),
        Stored(completion(TWO, 2).attempt, "answer", "", PAID, 0, TWO.key),
        Stored(ambiguous(TWO).attempt, "ambiguous", "", 0, CAP, TWO.key),
    ),
    requests=log("requests", identity(ONE), identity(TWO)),
    lookups=log("lookups", Lookup(request=owned(ONE)), Lookup(request=owned(TWO))),
    rows=log("rows", waits(ONE), waits(TWO)),
    misses=log("misses", Miss(request=owned(ONE)), Miss(request=owned(TWO))),
    calls=log("calls", Call(request=owned(ONE), route=ROUTE), Call(request=owned(TWO), route=ROUTE)),
    answers=log("answers", answered_by(completion(ONE)), answered_by(completion(TWO, 2))),
    replies=log("responses", identity(ONE), identity(TWO), identity(TWO)),
    costs=log("costs", cost(completion(ONE).attempt, ONE), cost(ambiguous(TWO).attempt, TWO, "ambiguous"),
              cost(completion(TWO, 2).attempt, TWO)),
    snapshots=(
        snapshot(
            {"requests": 1, "lookups": 2, "misses": 2, "calls": 1, "ledger": 4, "answers": 1, "costs": 2},
            {"lookups": 2, "rows": 2, "misses": 2, "calls": 2, "ledger": 5, "answers": 1, "costs": 2, "responses": 1},
        ),
    ),
    words={"worker-0.log": b"generation 1: 4 partitions kept"},
    secrets=("sk-secret",),
    canaries={"a": "canary-a", "b": "canary-b"},
    most_open=64,
    permits=64,
)  # fmt: skip

Doctor = Callable[[Evidence], Evidence]


def vector(tenant: str, text: str) -> VectorRecord:
    return VectorRecord(tenant=tenant, scope="s", fingerprint="f", text=text, vector="", created_ms=NOW, expires_ms=NOW)


def member(question: Asked, leader: Asked) -> Placed[Call]:
    call = Call(request=owned(question), route=ROUTE, group=owned(leader).fingerprint)
    return Placed("calls", 0, 0, call)


def ledger(*records: LedgerRecord) -> Doctor:
    return lambda e: replace(e, ledger=placed(*records), stored=None, snapshots=())


def committed_with(committed: dict[str, int], ends: dict[str, int], **changes: Any) -> Doctor:
    """The clean run with other logs, as it was when so much of them had been committed, and so much was there."""
    return lambda e: replace(e, snapshots=(snapshot(committed, ends),), **changes)


FAILED = Failure(flight=owned(ONE).flight, request=owned(ONE), error=ErrorInfo(code="over_budget", message="m"), attempts=0, at_ms=NOW)
CLUSTERED = completion(ONE).model_copy(
    update={
        "embedding": "AAA=",
        "answer": completion(ONE).answer.model_copy(update={"body": {"choices": [{"message": {"content": "x"}}]}}),
    }
)
FOLLOWS = Lookup(request=owned(TWO), follow=Follow(fingerprint=owned(ONE).fingerprint, scope="s", kind="semantic", similarity=1.0))
BY_ITSELF = owned(TWO).model_copy(update={"fingerprint": unshared(owned(TWO).fingerprint, identity(TWO).key)})


DOCTORED: list[tuple[str, str, Doctor]] = [
    ("answered", "has no response", lambda e: replace(e, responses=e.responses[:1])),
    ("answered", "2 distinct", lambda e: replace(e, responses=(*e.responses, response(TWO).model_copy(update={"id": "other"})))),
    (
        "answered",
        "2 distinct",
        lambda e: replace(
            e,
            responses=(
                *e.responses,
                response(ONE).model_copy(update={"response": None, "error": ErrorPart(code="x", message="y")}),
            ),
        ),
    ),
    ("asked_for", "never asked", lambda e: replace(e, responses=(*e.responses, response(asked(3))))),
    ("own_answer", "not to its prompt", lambda e: replace(e, responses=(response(ONE, expected("m", TWO.text)), *e.responses[1:]))),
    (
        "own_answer",
        "by similarity",
        lambda e: replace(e, responses=(response(ONE, expected("m", TWO.text), tier="semantic"), *e.responses[1:])),
    ),
    ("own_answer", "shows the canary of b", lambda e: replace(e, responses=(response(ONE, "canary-b", tier="semantic"), *e.responses[1:]))),
    ("committed", "neither a lookup nor", committed_with({"requests": 2}, {"lookups": 1, "responses": 1})),
    ("committed", "the row of a waiter was durable", committed_with({"lookups": 2}, {"rows": 1, "misses": 2, "responses": 1})),
    ("committed", "no miss was durable", committed_with({"lookups": 2}, {"rows": 2, "misses": 1, "responses": 1})),
    (
        "committed",
        "neither its row, its answer nor",
        committed_with({"lookups": 1}, {"rows": 2, "misses": 2, "responses": 2}, lookups=log("lookups", FOLLOWS)),
    ),
    ("committed", "no refusal was durable", committed_with({"misses": 2}, {"lookups": 2, "calls": 1})),
    (
        "committed",
        "no refusal was durable",
        committed_with(
            {"misses": 1},
            {"lookups": 1},
            lookups=log("lookups", FOLLOWS),
            misses=log("misses", Miss(request=owned(TWO), skip_semantic=True)),
        ),
    ),
    ("committed", "no outcome in the ledger", committed_with({"calls": 2}, {"ledger": 5})),
    ("committed", "the completion of flight", committed_with({"ledger": 6}, {"answers": 1, "costs": 3})),
    ("committed", "its row of costs", committed_with({"ledger": 3}, {"answers": 2, "costs": 1})),
    (
        "committed",
        "the failure of flight",
        committed_with(
            {"ledger": 1},
            {"costs": 1},
            ledger=placed(FAILED),
            costs=log("costs", cost(error_id(identity(ONE), owned(ONE).fingerprint), ONE, "error")),
        ),
    ),
    ("committed", "its vector", committed_with({"ledger": 1}, {"answers": 2, "costs": 3, "vectors": 1}, ledger=placed(CLUSTERED))),
    ("committed", "its response was not durable", committed_with({"answers": 2}, {"responses": 1})),
    ("committed", "not in the cost store", lambda e: replace(e, stored=(e.stored or ())[1:])),
    ("intended", "has no intent", lambda e: replace(e, bill=(*e.bill, Billed("p", "m", "req-9", "nobody", 1)))),
    (
        "bounded",
        "billed 2 times, 0 attempts",
        lambda e: replace(e, ledger=placed(intent(ONE), intent(ONE, 2), completion(ONE)), bill=(bill(ONE), bill(ONE, 2))),
    ),
    ("bounded", "billed 2 times", lambda e: replace(e, bill=(*e.bill, bill(ONE)))),
    ("bounded", "more than 1", lambda e: replace(e, max_attempts=1)),
    ("after_the_end", "after its completion", ledger(intent(ONE), completion(ONE), intent(ONE, 2), ambiguous(ONE, 2))),
    ("money", "the ledger says", lambda e: replace(e, bill=(bill(ONE, pico=PAID + CAP + PAID + 1), *e.bill[1:]))),
    ("money", "on the bill", lambda e: replace(e, bill=(bill(ONE, pico=PAID + 1), *e.bill[1:]))),
    ("money", "None on the bill", lambda e: replace(e, bill=e.bill[1:])),
    ("money", "above its cap", lambda e: replace(e, bill=(e.bill[0], bill(TWO, pico=CAP + 1), e.bill[2]))),
    ("settled", "left open", ledger(intent(ONE), completion(ONE), intent(TWO), intent(TWO, 2), completion(TWO, 2))),
    ("settled", "batch b was left open", lambda e: replace(e, ledger=(*e.ledger, *placed(batch(ONE))), stored=None, snapshots=())),
    ("settled", "the file f was left", lambda e: replace(e, files=("f",))),
    ("after_the_end", "after its completion", ledger(intent(ONE), completion(ONE), batch(ONE))),
    ("stored", "the cost store has", lambda e: replace(e, stored=(e.stored or ())[1:])),
    ("stored", "caps", lambda e: replace(e, stored=(e.stored or ())[:2])),
    ("stored", "2 rows of an answer", lambda e: replace(e, stored=(*(e.stored or ()), (e.stored or ())[0]))),
    ("apart", "a vector of a holds a prompt of b", lambda e: replace(e, vectors=(Placed("vectors", 0, 0, vector("a", "canary-b 2")),))),
    ("apart", "a group that b leads", lambda e: replace(e, calls=(member(TWO, TWO), member(ONE, TWO)))),
    ("limited", "65 calls open", lambda e: replace(e, most_open=65)),
    ("limited", "took 2000 MB", lambda e: replace(e, memory_mb={"worker-0": 2000.0})),
    ("silent", "shows a secret", lambda e: replace(e, words={"log": b"Authorization: Bearer sk-secret"})),
    ("silent", "a prompt of b", lambda e: replace(e, words={"metrics": b'x{prompt="canary-b 2"} 1'})),
]


def test_a_clean_run_satisfies_all() -> None:
    """With a duplicate on the topic, and an ambiguous call that was paid twice and is in the ledger."""
    assert violations(CLEAN) == []
    assert unexplained(CLEAN) == 0


@pytest.mark.parametrize(("name", "words", "doctor"), DOCTORED, ids=[f"{name}: {words}" for name, words, _ in DOCTORED])
def test_a_doctored_run_is_caught(name: str, words: str, doctor: Doctor) -> None:
    found = violations(doctor(CLEAN))
    assert any(v.invariant == name and words in v.what for v in found), found


EXCUSED: list[tuple[str, Doctor]] = [
    ("who had a response waits no more", committed_with({"lookups": 1}, {"responses": 1})),
    (
        "the lookup that sends the miss is another lane's, and in work",
        committed_with(
            {"lookups": 1},
            {"rows": 1},
            lookups=(*log("lookups", Lookup(request=owned(ONE))), *log("lookups.batch", Lookup(request=owned(ONE)))),
        ),
    ),
    (
        "who can't wait asks again by itself",
        committed_with({"lookups": 1}, {"lookups": 2}, lookups=log("lookups", Lookup(request=owned(TWO)), Lookup(request=BY_ITSELF))),
    ),
    (
        "a follower waits at its leader's flight",
        committed_with({"lookups": 1}, {"rows": 1}, lookups=log("lookups", FOLLOWS), rows=log("rows", waits(TWO, ONE))),
    ),
    ("a follower has its answer", committed_with({"lookups": 1}, {"answers": 2}, lookups=log("lookups", FOLLOWS))),
    (
        "a follower goes back to the misses",
        committed_with(
            {"lookups": 1},
            {"misses": 1},
            lookups=log("lookups", FOLLOWS),
            misses=log("misses", Miss(request=owned(TWO), skip_semantic=True)),
        ),
    ),
    (
        "a miss becomes a follower",
        committed_with({"misses": 1}, {"lookups": 1}, lookups=log("lookups", FOLLOWS), misses=log("misses", Miss(request=owned(TWO)))),
    ),
    ("a miss is refused by the router", committed_with({"misses": 1}, {"answers": 1})),
    ("a fault has deleted the rows", committed_with({"lookups": 2, "answers": 2}, {"responses": 0}, truncated=True)),
]


@pytest.mark.parametrize(("words", "doctor"), EXCUSED, ids=[words for words, _ in EXCUSED])
def test_what_became_of_a_committed_record_may_be_something_else(words: str, doctor: Doctor) -> None:
    assert [v for v in violations(doctor(CLEAN)) if v.invariant == "committed"] == []


def test_a_useless_answer_that_was_billed_excuses_a_second_call() -> None:
    first = intent(ONE)
    useless = Charged(
        flight=first.flight, attempt=first.attempt, number=1, model="m", paid_pico=PAID, usage=USAGE, reason="cut", request=owned(ONE),
        at_ms=NOW,
    )  # fmt: skip
    evidence = Evidence(
        asked=(ONE,),
        responses=(response(ONE),),
        ledger=placed(first, useless, intent(ONE, 2), completion(ONE, 2)),
        bill=(bill(ONE), bill(ONE, 2)),
    )
    assert violations(evidence) == []


def test_expected_answers_are_the_providers() -> None:
    body = {"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "hello"}]}
    assert expected("sim-economy", "hello") == answer(asked_of_chat("sim-economy", body)).texts[0]

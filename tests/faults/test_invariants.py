"""Each invariant is able to fail: a clean run passes all of them, and each doctored one is caught by the one that is meant to."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from inference_engine.connectors.simulation import answer, asked_of_chat
from inference_engine.schemas.answers import Answer, Usage, VectorRecord
from inference_engine.schemas.ledger import Ambiguous, BatchPrepared, Charged, Completion, Intent, LedgerRecord
from inference_engine.schemas.requests import Call, Identity, Request, Route
from inference_engine.schemas.responses import CacheInfo, EngineInfo, ErrorPart, ResponseLine, ResponsePart

from ..pipeline.support import NOW, request
from .evidence import Asked, Billed, Evidence, Placed, Snapshot, Stored
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


def owned(question: Asked) -> Request:
    return request(question.text, who=Identity(tenant=question.tenant, job=question.job, custom_id=question.custom_id))


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


ONE, TWO = asked(1), asked(2, "b")


def identity(question: Asked) -> Identity:
    return Identity(tenant=question.tenant, job=question.job, custom_id=question.custom_id)


CLEAN = Evidence(
    asked=(ONE, TWO),
    responses=(response(ONE), response(TWO), response(TWO)),
    ledger=placed(intent(ONE), intent(TWO), ambiguous(TWO), completion(ONE), intent(TWO, 2), completion(TWO, 2)),
    bill=(bill(ONE), bill(TWO), bill(TWO, 2)),
    stored=(
        Stored("1", "answer", "", PAID, 0, ONE.key),
        Stored("2", "answer", "", PAID, 0, TWO.key),
        Stored("3", "ambiguous", "", 0, CAP, TWO.key),
    ),
    requests=(Placed("requests", 0, 0, identity(ONE)), Placed("requests", 0, 1, identity(TWO))),
    lookups=(Placed("lookups", 0, 0, identity(ONE)), Placed("lookups", 0, 1, identity(TWO))),
    calls=(Placed("calls", 0, 0, intent(ONE).flight), Placed("calls", 0, 1, intent(TWO).flight)),
    snapshots=(Snapshot({("requests", 0): 1, ("calls", 0): 1}, {("lookups", 0): 1, ("ledger", 0): 4}),),
    words={"worker-0.log": b"generation 1: 4 partitions kept"},
    secrets=("sk-secret",),
    canaries={"a": "canary-a", "b": "canary-b"},
)

Doctor = Callable[[Evidence], Evidence]


def vector(tenant: str, text: str) -> VectorRecord:
    return VectorRecord(tenant=tenant, scope="s", fingerprint="f", text=text, vector="", created_ms=NOW, expires_ms=NOW)


def member(question: Asked, leader: Asked) -> Placed[Call]:
    call = Call(request=owned(question), route=Route(models=("m",), reason="test"), group=owned(leader).fingerprint)
    return Placed("calls", 0, 0, call)


def ledger(*records: LedgerRecord) -> Doctor:
    return lambda e: replace(e, ledger=placed(*records), stored=None, snapshots=())


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
    ("committed", "not in lookups", lambda e: replace(e, snapshots=(Snapshot({("requests", 0): 2}, {("lookups", 0): 1}),), responses=())),
    ("committed", "no outcome in the ledger", lambda e: replace(e, snapshots=(Snapshot({("calls", 0): 2}, {("ledger", 0): 5}),))),
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
    ("apart", "a group that b leads", lambda e: replace(e, groups=(member(TWO, TWO), member(ONE, TWO)))),
    ("limited", "65 calls were under way", lambda e: replace(e, most_in_flight=65, allowed_in_flight=64)),
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

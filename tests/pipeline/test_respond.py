"""Answers, responses and cost rows: every dollar on one row, every saving with one cause."""

from decimal import Decimal
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference_engine.pipeline.exact import shared, waiter_of
from inference_engine.pipeline.respond import Clerk, Tier, complete, failed, follower_outcome, usd
from inference_engine.schemas.answers import AnswerRecord, ErrorInfo, Usage
from inference_engine.schemas.ledger import Ambiguous, Charged, Completion, Failure, Intent
from inference_engine.schemas.requests import Follow, Lookup, Miss, Request
from inference_engine.schemas.responses import ResponseLine

from .support import NOW, answer, catalogue, identity, request

CLERK = Clerk(catalogue())
ALL = 140 * 10 * 10**6
"""100 tokens in, 10 tokens out at 4 times the price, 10 USD a million: what `auto` would have cost."""


def completion(asked: Request, *, paid: int = 80, number: int = 1, **more: object) -> Completion:
    return Completion.model_validate(
        {
            "flight": asked.flight,
            "attempt": f"a{number}",
            "number": number,
            "request": asked,
            "answer": answer(paid_pico=paid),
            "cap_pico": 500,
            "attempts": number,
            "spent_pico": paid,
            "at_ms": NOW + 100,
            **more,
        }
    )


def made(asked: Request, **more: Any) -> AnswerRecord:
    record = CLERK.outcome(completion(asked, **more)).answer
    assert record is not None
    return record


def test_a_completion_becomes_an_answer_and_the_row_that_was_paid() -> None:
    outcome = CLERK.outcome(completion(request(user_id="u")))
    assert outcome.answer is not None
    assert outcome.answer.cacheable
    assert outcome.cost is not None
    assert (outcome.cost.kind, outcome.cost.base_cost_pico, outcome.cost.user_id, outcome.cost.latency_ms) == ("answer", 80, "u", 100)
    assert outcome.cost.event_id == "a1"


@given(st.integers(0, 10**12), st.sampled_from(["auto", "big", "small"]), st.sampled_from(["provider", "exact", "semantic", "coalesced"]))
def test_saved_is_counterfactual_minus_paid_whatever_the_cause(paid: int, model: str, tier: Tier) -> None:
    account = CLERK.account(answer(paid_pico=paid), model, tier, NOW)
    saved = account.exact + account.semantic + account.coalescing + account.routing + account.prefix + account.batch
    assert saved == account.counterfactual - account.paid
    assert account.paid == (paid if tier == "provider" else 0)


def test_a_second_completion_of_a_flight_is_booked_and_not_answered() -> None:
    outcome = CLERK.outcome(completion(request(), number=2), first=False)
    assert outcome.answer is None
    assert outcome.cost is not None
    assert (outcome.cost.kind, outcome.cost.base_cost_pico) == ("duplicate", 80)


def test_a_hedge_answers_where_it_is_first_and_is_a_duplicate_where_it_is_not() -> None:
    hedge = completion(request(), number=2).model_copy(update={"purpose": "hedge"})
    first, second = CLERK.outcome(hedge), CLERK.outcome(hedge, first=False)
    assert first.answer is not None
    assert second.answer is None
    assert first.cost is not None
    assert second.cost is not None
    assert (first.cost.kind, second.cost.kind, second.cost.base_cost_pico) == ("answer", "duplicate", 80)


def test_an_ambiguous_attempt_is_booked_at_its_cap_and_replaced_by_its_late_completion() -> None:
    asked = request()
    lost = Ambiguous(flight=asked.flight, attempt="a1", number=1, model="small", cap_pico=500, reason="timeout", request=asked, at_ms=NOW)
    cost = CLERK.outcome(lost).cost
    late = CLERK.outcome(completion(asked)).cost
    assert cost is not None
    assert late is not None
    assert (cost.base_cost_pico, cost.ambiguous_cap_pico) == (0, 500)
    assert cost.event_id == late.event_id
    assert late.version > cost.version
    assert late.ambiguous_cap_pico == 0


def test_a_charged_attempt_costs_without_an_answer() -> None:
    asked = request()
    record = Charged(
        flight=asked.flight,
        attempt="a1",
        number=1,
        model="small",
        paid_pico=7,
        usage=Usage(input_tokens=3, output_tokens=4),
        reason="unreadable",
        request=asked,
        at_ms=NOW,
    )
    outcome = CLERK.outcome(record)
    assert outcome.answer is None
    assert outcome.cost is not None
    assert (outcome.cost.kind, outcome.cost.base_cost_pico, outcome.cost.tokens_input) == ("charged", 7, 3)


def held_back(asked: Request, why: str = "refusal") -> Charged:
    return Charged(flight=asked.flight, attempt="a1", number=1, model="small", paid_pico=80, usage=Usage(input_tokens=10, output_tokens=10),
                   reason="the model refused to answer", discarded=why, request=asked, at_ms=NOW)  # fmt: skip


def test_what_was_paid_for_an_answer_that_was_held_back_is_a_loss_of_routing() -> None:
    asked = request()
    cost = CLERK.outcome(held_back(asked)).cost
    assert cost is not None
    assert (cost.kind, cost.purpose, cost.error_code) == ("charged", "fallback", "refusal")
    assert (cost.base_cost_pico, cost.saved_routing_pico, cost.counterfactual_pico) == (80, -80, 0)
    checked = CLERK.outcome(held_back(asked, "agreement")).cost
    assert checked is not None
    assert (checked.purpose, checked.error_code, checked.saved_routing_pico) == ("cascade", "agreement", -80)
    plain, after = (made(asked, attempt="a2", discarded_pico=pico) for pico in (0, 80))
    lines = [CLERK.respond(waiter_of(asked), record, NOW)[0].engine.savings.routing for record in (plain, after)]
    assert Decimal(lines[0]) - Decimal(lines[1]) == Decimal(80).scaleb(-12)


@pytest.mark.parametrize("kept", [True, False])
def test_an_answer_that_was_given_after_all_takes_the_place_of_its_charge_in_the_costs(kept: bool) -> None:
    """`kept`: by who had held it back; else by a predecessor, who had the same row of a batch and gave it as it was."""
    asked = request()
    charge, given = CLERK.outcome(held_back(asked)).cost, CLERK.outcome(completion(asked, kept=kept)).cost
    assert charge is not None
    assert given is not None
    assert (given.event_id, given.kind) == (charge.event_id, "answer")
    assert given.version > charge.version
    late = CLERK.in_vain(waiter_of(asked), made(asked, kept=kept))
    assert late.version > given.version


def test_an_intent_says_nothing_to_anyone() -> None:
    intent = Intent(flight="f", attempt="a1", number=1, model="small", cap_pico=1, epoch="e", at_ms=NOW, timeout_ms=1)
    outcome = CLERK.outcome(intent)
    assert (outcome.answer, outcome.vector, outcome.cost) == (None, None, None)


def test_the_owner_pays_and_a_waiter_saves_all_of_it() -> None:
    record = made(request())
    line, cost = CLERK.respond(waiter_of(request()), record, NOW + 200)
    assert cost is None
    assert (line.engine.cost_usd, line.engine.cache.tier, line.engine.latency_ms) == (usd(80), "none", 200)
    line, cost = CLERK.respond(waiter_of(request(who=identity("r2"))), record, NOW + 200)
    assert cost is not None
    assert (cost.base_cost_pico, cost.saved_exact_pico, cost.cache_tier) == (0, ALL, "exact")
    assert (line.engine.cost_usd, line.engine.cache.tier, line.engine.savings.exact) == ("0", "exact", usd(ALL))


def test_a_shared_answer_says_whose_it_is_and_how_near() -> None:
    source, asked = request(), request("What are cats?", who=identity("r2"))
    follow = Follow(fingerprint=source.fingerprint, scope=source.scope, kind="coalesced", similarity=0.95)
    record = shared(made(source), Lookup(request=asked, follow=follow), NOW + 150)
    line, cost = CLERK.respond(waiter_of(asked), record, NOW + 200)
    assert (line.engine.cache.tier, line.engine.cache.similarity, line.engine.cache.source_id) == ("coalesced", 0.95, source.fingerprint)
    assert cost is not None
    assert (cost.saved_coalescing_pico, cost.source_id) == (ALL, source.fingerprint)


def test_a_follower_of_a_failed_source_may_lead_and_that_of_a_partial_answer_tries_on_its_own() -> None:
    source, asked = request(), request("What are cats?", who=identity("r2"))
    follow = Follow(fingerprint=source.fingerprint, scope=source.scope, kind="semantic", similarity=0.9, own_ms=NOW - 5)
    lookup = Lookup(request=asked, follow=follow)
    error = failed(source, ErrorInfo(code="unavailable", message="down"), NOW)
    assert follower_outcome(error, lookup, NOW) == Miss(request=asked, since_ms=NOW - 5, fallen=(source.fingerprint,))
    cut = made(source, answer=answer(finish="length"))
    assert follower_outcome(cut, lookup, NOW) == Miss(request=asked, skip_semantic=True)


def test_a_failure_tells_everyone_and_is_never_kept() -> None:
    asked = request()
    record = CLERK.outcome(
        Failure(flight=asked.flight, request=asked, error=ErrorInfo(code="exhausted", message="3 attempts"), attempts=3, at_ms=NOW)
    )
    assert record.answer is not None
    assert not record.answer.cacheable
    line, cost = CLERK.respond(waiter_of(request(who=identity("r2"))), record.answer, NOW)
    assert line.error is not None
    assert line.error.code == "exhausted"
    assert cost is not None
    assert cost.kind == "error"


@pytest.mark.parametrize("code", ["over_budget", "cancelled", "deadline_passed"])
def test_errors_that_are_the_owners_alone_leave_the_request_to_an_heir(code: str) -> None:
    assert failed(request(), ErrorInfo(code=code, message="x"), NOW).request == request()


@pytest.mark.parametrize("finish", ["length", "tool_calls", "content_filter", ""])
def test_only_complete_answers_are_kept(finish: str) -> None:
    assert not complete(answer(finish=finish))
    assert complete(answer())
    refusing = answer()
    refusing.body["choices"][0]["message"]["refusal"] = "no"
    assert not complete(refusing)


def test_a_response_is_in_the_openai_batch_output_form() -> None:
    line, _ = CLERK.respond(waiter_of(request()), made(request()), NOW)
    data = orjson.loads(line.model_dump_json())
    assert set(data) == {"id", "custom_id", "response", "error", "engine"}
    assert data["response"]["status_code"] == 200
    assert data["response"]["body"]["choices"][0]["message"]["content"] == "An animal."


def test_redelivered_responses_are_recognised_by_their_id() -> None:
    record, waiter = made(request()), waiter_of(request())
    assert CLERK.respond(waiter, record, NOW)[0].id == CLERK.respond(waiter, record, NOW + 9)[0].id


@given(st.integers(-(10**15), 10**15))
def test_dollars_are_exact(pico: int) -> None:
    from decimal import Decimal

    assert Decimal(usd(pico)) * 10**12 == pico


def test_a_model_that_left_the_catalogue_keeps_its_bill_and_claims_no_saving() -> None:
    account = CLERK.account(answer(model="gone", paid_pico=80), "auto", "provider", NOW)
    assert (account.paid, account.saved) == (80, 0)
    account = CLERK.account(answer(model="gone", paid_pico=80), "auto", "exact", NOW)
    assert (account.paid, account.saved) == (0, 0)


@pytest.mark.parametrize("kind", ["charged", "duplicate"])
def test_what_was_certainly_paid_replaces_an_ambiguous_row_whichever_comes_last(kind: str) -> None:
    """A new owner may book an attempt as ambiguous while the old one writes what it cost; rows of one id are one event."""
    asked = request()
    lost = Ambiguous(flight=asked.flight, attempt="a1", number=1, model="small", cap_pico=500, reason="reset", request=asked, at_ms=NOW)
    charged = Charged(
        flight=asked.flight, attempt="a1", number=1, model="small", paid_pico=80, usage=Usage(input_tokens=1, output_tokens=1),
        reason="cut", request=asked, at_ms=NOW,
    )  # fmt: skip
    record = charged if kind == "charged" else completion(asked)
    known, unknown = CLERK.outcome(record, first=False).cost, CLERK.outcome(lost).cost
    assert known is not None
    assert unknown is not None
    assert known.event_id == unknown.event_id
    assert known.version > unknown.version


def test_an_error_that_is_not_in_the_ledger_has_its_row_too() -> None:
    """The router refuses without a ledger record; every request has its row, and an error of the ledger has the same one twice."""
    asked = request()
    line, cost = CLERK.respond(waiter_of(asked), failed(asked, ErrorInfo(code="no_capable_model", message="none"), NOW), NOW)
    record = Failure(flight=asked.flight, request=asked, error=ErrorInfo(code="no_capable_model", message="none"), attempts=0, at_ms=NOW)
    assert line.error is not None
    assert cost is not None
    booked = CLERK.outcome(record).cost
    assert booked is not None
    assert (cost.kind, cost.event_id) == ("error", booked.event_id)


def test_another_body_under_the_same_identity_has_rows_and_responses_of_its_own() -> None:
    """Raw producers can do that: both were asked, so neither may take the other's place."""
    asked = [request(text) for text in ("one body", "another body")]
    assert asked[0].identity == asked[1].identity
    info = ErrorInfo(code="exhausted", message="x")
    theirs = [made(request(str(r.body), who=identity("other"))).model_copy(update={"fingerprint": r.fingerprint}) for r in asked]
    hits = [CLERK.respond(waiter_of(r), record, NOW) for r, record in zip(asked, theirs, strict=True)]
    errors = [CLERK.respond(waiter_of(r), failed(r, info, NOW), NOW) for r in asked]
    rows = [row.event_id for _, row in (*hits, *errors) if row is not None]
    assert len(set(rows)) == len(rows) == 4
    assert len({line.id for line, _ in (*hits, *errors)}) == 4


def test_a_response_says_what_lost_calls_of_its_flight_may_have_cost() -> None:
    asked = request()
    line, _ = CLERK.respond(waiter_of(asked), made(asked, ambiguous_pico=500), NOW)
    assert (line.engine.cost_usd, line.engine.ambiguous_cap_usd) == (usd(80), usd(500))
    other, _ = CLERK.respond(waiter_of(request(who=identity("r2"))), made(asked, ambiguous_pico=500), NOW)
    assert other.engine.ambiguous_cap_usd == "0"


def test_a_request_refused_for_its_limit_is_told_that_limit_whatever_it_asks_for_since() -> None:
    asked = request().model_copy(update={"max_cost_pico": 700})
    failure = Failure(flight=asked.flight, request=asked, error=ErrorInfo(code="over_budget", message="no"), attempts=1,
                      ambiguous_pico=500, at_ms=NOW)  # fmt: skip
    record = CLERK.outcome(failure).answer
    assert record is not None
    line, _ = CLERK.respond(waiter_of(asked.model_copy(update={"max_cost_pico": 1400})), record, NOW)
    assert (line.engine.ambiguous_cap_usd, line.engine.max_cost_usd) == (usd(500), usd(700))


def test_a_response_of_an_earlier_version_is_still_read() -> None:
    line, _ = CLERK.respond(waiter_of(request()), made(request()), NOW)
    old = line.model_dump(mode="json")
    del old["engine"]["ambiguous_cap_usd"], old["engine"]["max_cost_usd"]
    assert ResponseLine.model_validate(old) == line

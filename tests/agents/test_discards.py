"""Refusals and cut-off answers: the next model of the route is asked, within the same bounds, and nothing that was paid for is lost."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inference_engine.agents import attempt
from inference_engine.agents.attempt import CallSettings
from inference_engine.agents.discards import Discards
from inference_engine.pipeline.errors import Ambiguous as AmbiguousError
from inference_engine.pipeline.errors import Charged as ChargedError
from inference_engine.pipeline.errors import EngineError, Rejected, Unavailable
from inference_engine.pipeline.models import Catalogue, Model
from inference_engine.pipeline.ports import ProviderReply
from inference_engine.schemas.answers import Usage
from inference_engine.schemas.ledger import Ambiguous, Charged, Completion, Failure
from inference_engine.schemas.requests import Call, Route

from ..pipeline.support import catalogue
from .batchers import Death
from .payers import CAP, PRICE, Bill, World, call, now, worker
from .virtual_time import run

USAGE = Usage(input_tokens=10, output_tokens=5)


def says(finish: str = "stop", text: str = "fine") -> ProviderReply:
    return ProviderReply({"choices": [{"index": 0, "message": {"role": "assistant", "content": text}}]}, USAGE, finish, "p")


OUTCOMES: dict[str, ProviderReply | EngineError] = {
    "fine": says(),
    "refusal": says("content_filter"),
    "cut_off": says("length"),
    "down": Unavailable("503"),
    "lost": AmbiguousError("no answer"),
    "unreadable": ChargedError("not JSON", usage=USAGE, service_tier="standard"),
    "unknown": Rejected("no such model", code="model_not_found"),
}


def world(outcomes: Sequence[str], **settings_: Any) -> World:
    """Models that answer what stands in the list, in the order of the calls; after its end they answer well."""

    async def script(_model: Model, number: int) -> ProviderReply:
        outcome = OUTCOMES[outcomes[number - 1]] if number <= len(outcomes) else says()
        if isinstance(outcome, EngineError):
            raise outcome
        return outcome

    small, big = catalogue().models
    models = (replace(small, max_output_tokens=500), big, replace(big, name="huge", provider_model="huge", max_output_tokens=2_000))
    known: dict[str, Any] = {"call_timeout_s": 60, "intent_slack_s": 5, **settings_}
    return World(provider=Bill(script), models=Catalogue(models, "big"), settings=CallSettings(**known))


def play(of: World, asked: Any = None) -> Completion | Failure:
    async def main() -> None:
        async with worker(of) as one:
            await one.run(asked or call("r1", "small", "big", "huge", model="auto"))

    run(main())
    last = of.records()[-1]
    assert isinstance(last, Completion | Failure)
    return last


def models_of(of: World) -> list[str]:
    return [model for _, model, _ in of.provider.calls]


def test_a_refusal_goes_to_the_next_model_and_both_are_booked_with_the_reason() -> None:
    of = world(["refusal"])
    last = play(of)
    assert models_of(of) == ["small", "big"]
    assert of.kinds() == ["intent", "charged", "intent", "completion"]
    [held] = [r for r in of.records() if isinstance(r, Charged)]
    assert (held.discarded, held.model, held.paid_pico, held.reason) == ("refusal", "small", PRICE, "the model refused to answer")
    assert isinstance(last, Completion)
    assert (last.answer.model_used, last.spent_pico, last.discarded_pico, last.kept) == ("big", 2 * PRICE, PRICE, False)


def test_a_cut_off_answer_goes_past_models_that_write_no_more() -> None:
    of = world(["refusal", "cut_off"])
    of.models = Catalogue(
        (*of.models.models[:2], replace(of.models.models[1], name="same", provider_model="same"), of.models.models[2]), "big"
    )
    play(of, call("r1", "small", "big", "same", "huge", model="auto"))
    assert models_of(of) == ["small", "big", "huge"]


def test_the_last_models_answer_is_given_as_it_is() -> None:
    of = world(["cut_off", "refusal", "refusal"])
    last = play(of)
    assert models_of(of) == ["small", "big", "huge"]
    assert isinstance(last, Completion)
    assert (last.answer.finish_reason, last.answer.model_used) == ("content_filter", "huge")


def test_an_answer_that_was_held_back_is_given_where_the_next_model_gives_none() -> None:
    of = world(["cut_off", "lost", "lost"])
    last = play(of)
    assert isinstance(last, Completion)
    assert (last.kept, last.answer.model_used, last.answer.finish_reason) == (True, "small", "length")
    assert (last.spent_pico, last.discarded_pico, last.ambiguous_pico, last.cap_pico) == (PRICE, 0, 2 * CAP, CAP)
    [held] = [r for r in of.records() if isinstance(r, Charged)]
    assert (held.attempt, held.paid_pico) == (last.attempt, last.answer.paid_pico)


@pytest.mark.parametrize(
    ("fall_back", "model", "asked"),
    [("auto", "auto", 2), ("auto", "small", 1), ("all", "small", 2), ("never", "auto", 1)],
)
def test_a_model_that_was_asked_for_by_name_answers_itself_unless_the_operator_wants_otherwise(
    fall_back: str, model: str, asked: int
) -> None:
    of = world(["refusal"], fall_back=fall_back)
    play(of, call("r1", "small", "big", model=model))
    assert len(of.provider.calls) == asked


@pytest.mark.parametrize("limit", ["on_ambiguous", "cancelled", "max_cost", "deadline"])
def test_what_may_not_be_paid_for_again_is_given_as_it_is(limit: str) -> None:
    of = world(["refusal"])
    inner = of.provider.script

    async def slow(model: Model, number: int) -> ProviderReply:
        await asyncio.sleep(5)
        if limit == "cancelled":
            of.cancelled.add("r1")
        return await inner(model, number)

    of.provider.script = slow
    if limit == "on_ambiguous":
        of.on_ambiguous = "fail"

    async def main() -> None:
        more: dict[str, Any] = {"max_cost": {"max_cost_pico": 2 * CAP - 1}, "deadline": {"deadline_ms": now() + 3_000}}.get(limit, {})
        async with worker(of) as one:
            await one.run(call("r1", "small", "big", model="auto", **more))

    run(main())
    assert of.kinds() == ["intent", "completion"]


@settings(max_examples=150, deadline=None)
@given(st.lists(st.sampled_from(sorted(OUTCOMES)), max_size=7), st.integers(1, 5))
def test_whatever_the_models_answer_a_request_ends_once_within_its_attempts_and_an_answer_that_was_paid_is_given(
    outcomes: list[str], most: int
) -> None:
    of = world(outcomes, max_attempts=most, give_up_s=30.0)
    last = play(of)
    records = of.records()
    assert sum(isinstance(r, Completion | Failure) for r in records) == 1
    billed = [
        a for (_, _, a), outcome in zip(of.provider.calls, [*outcomes, *["fine"] * 9], strict=False) if outcome not in ("down", "unknown")
    ]
    useless = {r.attempt for r in records if isinstance(r, Ambiguous | Charged)}
    assert len(billed) <= min(most, 1 + len(useless))
    readable = [o for o in [*outcomes, *["fine"] * 9][: len(of.provider.calls)] if o in ("fine", "refusal", "cut_off")]
    assert isinstance(last, Completion) is bool(readable)
    certain = {
        r.attempt: r.answer.paid_pico if isinstance(r, Completion) else r.paid_pico for r in records if isinstance(r, Completion | Charged)
    }
    assert last.spent_pico == sum(certain.values())


@settings(max_examples=80, deadline=None)
@given(st.lists(st.sampled_from(["fine", "refusal", "cut_off", "lost"]), max_size=5), st.floats(0.0, 25.0))
def test_a_crash_at_any_time_costs_one_call_more_at_most_and_the_request_is_still_answered(outcomes: list[str], at_s: float) -> None:
    of = world(outcomes, max_attempts=4)
    inner = of.provider.script

    async def slow(model: Model, number: int) -> ProviderReply:
        await asyncio.sleep(5)
        return await inner(model, number)

    of.provider.script = slow
    asked = call("r1", "small", "big", "huge", model="auto")

    async def main() -> None:
        async with worker(of) as one:
            one.start(asked)
            await asyncio.sleep(at_s)
        async with worker(of) as two:
            await two.run(asked)

    run(main())
    records = of.records()
    useless = {r.attempt for r in records if isinstance(r, Ambiguous | Charged)}
    assert len(of.provider.calls) <= min(4, 1 + len(useless))
    [last] = [r for r in records if isinstance(r, Completion | Failure)]
    held = {r.attempt: r for r in records if isinstance(r, Charged)}
    asked_in = [attempt for _, _, attempt in of.provider.calls]
    for r in held.values():
        assert r.model not in models_of(of)[asked_in.index(r.attempt) + 1 :]
    paid = {attempt: r.paid_pico for attempt, r in held.items()}
    assert isinstance(last, Completion) or not held
    if isinstance(last, Completion):
        paid[last.attempt] = last.answer.paid_pico
        assert last.discarded_pico == sum(paid.values()) - last.answer.paid_pico
    assert last.spent_pico == sum(paid.values())


@pytest.fixture
def die(monkeypatch: pytest.MonkeyPatch) -> Callable[[World, Call], Completion | Failure]:
    """Asks; the worker dies as soon as an answer that is held back is durable, and another one takes over."""

    def play(of: World, asked: Call) -> Completion | Failure:
        death = Death("after_held_back")
        monkeypatch.setattr(attempt, "crash_at", death)

        async def main() -> None:
            async with worker(of) as one:
                one.start(asked)
                await death.happened.wait()
            async with worker(of) as two:
                await two.run(asked)

        run(main())
        [last] = [r for r in of.records() if isinstance(r, Completion | Failure)]
        return last

    return play


Dies = Callable[[World, Call], Completion | Failure]
ASKED = call("r1", "small", "big", "huge", model="auto")


def test_an_answer_that_was_held_back_when_its_worker_died_is_given_by_the_next_one_where_the_other_models_give_none(die: Dies) -> None:
    of = world(["cut_off", "lost", "lost"])
    last = die(of, ASKED)
    assert isinstance(last, Completion)
    assert (last.kept, last.answer.model_used, last.answer.finish_reason, last.answer.body) == (True, "small", "length", says().body)
    assert (last.spent_pico, last.discarded_pico, last.ambiguous_pico, last.cap_pico) == (PRICE, 0, 2 * CAP, CAP)
    assert models_of(of).count("small") == 1


def test_what_two_cheap_models_say_is_compared_though_a_worker_died_between_their_answers(die: Dies) -> None:
    of = world(["fine", "fine"])
    route = Route(models=("small", "big", "huge"), reason="cascade", cascade="agreement", cheap=2)
    last = die(of, ASKED.model_copy(update={"route": route}))
    assert isinstance(last, Completion)
    assert (last.answer.model_used, last.discarded_pico, models_of(of)) == ("big", PRICE, ["small", "big"])


def test_one_that_can_not_be_read_for_a_while_is_waited_for(die: Dies, monkeypatch: pytest.MonkeyPatch) -> None:
    of = world(["cut_off", "lost", "lost"])
    fetch, failing = of.topic.fetch, [Unavailable("no broker")] * 3

    async def fetched(partition: int, offset: int) -> bytes:
        if failing:
            raise failing.pop()
        return await fetch(partition, offset)

    monkeypatch.setattr(of.topic, "fetch", fetched)
    assert isinstance(die(of, ASKED), Completion)
    assert (failing, models_of(of).count("small")) == ([], 1)


def test_one_that_is_not_kept_any_more_is_only_a_cost(die: Dies, monkeypatch: pytest.MonkeyPatch) -> None:
    of = world(["cut_off", "lost", "lost"])

    async def fetched(partition: int, offset: int) -> bytes:
        raise Rejected("it is not kept any more", code="answer_expired")

    monkeypatch.setattr(of.topic, "fetch", fetched)
    last = die(of, ASKED)
    assert isinstance(last, Failure)
    assert (last.error.code, last.spent_pico, len(of.provider.calls)) == ("attempts_exhausted", PRICE, 3)


def test_one_whose_place_in_the_ledger_is_not_known_yet_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """A resend hides it until the record is read back; meanwhile the call comes again."""
    of = world(["cut_off", "lost", "lost"])
    append = of.topic.append

    async def resent(*record: Any, **more: Any) -> int:
        await append(*record, **more)
        return -1

    monkeypatch.setattr(of.topic, "append", resent)

    async def main() -> None:
        async with worker(of) as one:
            keep, kept = Discards.keep, asyncio.Event()

            def keeps(self: Discards, record: Charged) -> None:
                keep(self, record)
                kept.set()

            monkeypatch.setattr(Discards, "keep", keeps)
            first = one.start(ASKED)
            await kept.wait()
            first.cancel()
            again = one.start(ASKED)
            await asyncio.sleep(5)
            assert of.kinds() == ["intent", "charged"]
            reading = asyncio.create_task(one.feed())
            await again
            reading.cancel()

    run(main())
    last = of.records()[-1]
    assert isinstance(last, Completion)
    assert (last.kept, models_of(of).count("small")) == (True, 1)


def test_an_answer_that_is_too_large_for_the_ledger_is_not_given_after_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(OUTCOMES, "cut_off", says("length", "word " * 400))
    of = world(["cut_off", "lost", "lost"], max_record_bytes=1_500)
    last = play(of)
    assert isinstance(last, Failure)
    assert (last.error.code, last.spent_pico, of.kinds()[1]) == ("attempts_exhausted", PRICE, "charged")

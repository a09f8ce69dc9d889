"""A cascade: a cheap answer is given where the check accepts it, the better model is asked where not, and all of it is on the books."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inference_engine.pipeline.errors import EngineError, Unavailable
from inference_engine.pipeline.hedge import HedgePolicy
from inference_engine.pipeline.models import Catalogue, Model
from inference_engine.pipeline.ports import Case, Judge, ProviderReply
from inference_engine.schemas.answers import Told
from inference_engine.schemas.ledger import Charged, Completion, Failure
from inference_engine.schemas.requests import Call, Route

from ..pipeline.support import catalogue
from .payers import PRICE, Bill, World, call, worker
from .test_discards import OUTCOMES, models_of, says
from .virtual_time import run

FORM = {"type": "json_object"}
SENTENCE = "A cat is a small animal that lives with people and catches mice when it wants to."


def world(answers: Sequence[str | EngineError]) -> World:
    """The models give these answers in turn."""

    async def script(_model: Model, number: int) -> ProviderReply:
        answer = answers[min(number, len(answers)) - 1]
        if isinstance(answer, EngineError):
            raise answer
        reply = OUTCOMES.get(answer) if answer in ("refusal", "cut_off") else says(text=answer)
        assert isinstance(reply, ProviderReply)
        return reply

    small, big = catalogue().models
    tiny = replace(small, name="tiny", provider_model="tiny")
    return World(provider=Bill(script), models=Catalogue((tiny, small, big), "big"))


def asked(kind: Any, **more: Any) -> Call:
    cheap = ("tiny", "small") if kind == "agreement" else ("tiny",)
    made = call("r1", model="auto")
    body = {**made.request.body, "response_format": FORM} if kind == "structure" else made.request.body
    route = Route(models=(*cheap, "big"), reason="cascade", cascade=kind, cheap=len(cheap))
    return made.model_copy(update={"request": made.request.model_copy(update={"body": body, **more}), "route": route})


def play(of: World, call_: Call, judge: Judge | None = None) -> Completion | Failure:
    async def main() -> None:
        async with worker(of) as one:
            one.stage.parts = replace(one.stage.parts, judge=lambda: judge)
            await one.run(call_)

    run(main())
    last = of.records()[-1]
    assert isinstance(last, Completion | Failure)
    return last


def held(of: World) -> list[tuple[str, str]]:
    return [(r.model, r.discarded) for r in of.records() if isinstance(r, Charged)]


def test_a_cheap_answer_of_the_right_form_is_given_and_nothing_else_is_asked() -> None:
    of = world(['{"cat": 1}'])
    last = play(of, asked("structure"))
    assert isinstance(last, Completion)
    assert (last.answer.model_used, last.spent_pico, of.kinds()) == ("tiny", PRICE, ["intent", "completion"])


def test_a_cheap_answer_of_another_form_is_booked_and_the_better_model_asked_whose_form_is_its_own_affair() -> None:
    of = world(["Here you are: {}", "no JSON either"])
    last = play(of, asked("structure"))
    assert held(of) == [("tiny", "structure")]
    assert isinstance(last, Completion)
    assert (last.answer.model_used, last.spent_pico, last.discarded_pico) == ("big", 2 * PRICE, PRICE)


@pytest.mark.parametrize(
    ("answers", "models", "discarded"),
    [
        (["Paris", "paris."], ["tiny", "small"], ["agreement"]),
        (["Paris", "Lyon", "Paris"], ["tiny", "small", "big"], ["agreement", "agreement"]),
        ([SENTENCE, SENTENCE], ["tiny", "small"], ["agreement"]),
        (["refusal", "Paris", "Paris"], ["tiny", "small", "big"], ["refusal", "agreement"]),
    ],
)
def test_the_second_of_two_cheap_answers_that_agree_is_given_else_the_better_model_is_asked(
    answers: list[str], models: list[str], discarded: list[str]
) -> None:
    of = world(answers)
    last = play(of, asked("agreement"))
    assert models_of(of) == models
    assert [why for _, why in held(of)] == discarded
    assert isinstance(last, Completion)
    assert last.spent_pico == PRICE * len(models)


class Says:
    """A judge of one opinion."""

    at_once = 1

    def __init__(self, opinion: bool | EngineError | None, after_s: float = 0.0) -> None:
        self._opinion, self._after_s = opinion, after_s

    async def agree(self, own: Told, others: Sequence[Told], case: Case) -> list[bool | None]:
        await asyncio.sleep(self._after_s)
        if isinstance(self._opinion, EngineError):
            raise self._opinion
        return [self._opinion for _ in others]


@pytest.mark.parametrize(
    ("judge", "models"),
    [(Says(True), 2), (Says(False), 3), (Says(None), 3), (Says(Unavailable("no embedder")), 3), (Says(True, after_s=60), 3), (None, 3)],
)
def test_free_text_is_left_to_the_judge_and_where_that_does_not_tell_the_better_model_is_asked(judge: Judge | None, models: int) -> None:
    of = world([SENTENCE, "Cats are little beasts which stay near humans, and they hunt mice whenever they like.", "x"])
    play(of, asked("agreement"), judge)
    assert len(models_of(of)) == models


def test_a_cheap_answer_is_given_after_all_where_the_better_model_gives_none() -> None:
    of = world(["Paris", "Lyon", Unavailable("503")])
    last = play(of, asked("agreement", max_cost_pico=None))
    assert isinstance(last, Completion)
    assert (last.kept, last.answer.model_used, last.discarded_pico) == (True, "small", PRICE)


ANSWERS: list[str | EngineError] = ["Paris", "Lyon", "refusal", '{"a": 1}', Unavailable("503")]


@settings(max_examples=80, deadline=None)
@given(st.lists(st.sampled_from(ANSWERS), min_size=1, max_size=6), st.sampled_from(["structure", "agreement"]))
def test_whatever_comes_a_request_ends_once_and_what_was_held_back_was_paid_once(answers: list[str | EngineError], kind: str) -> None:
    of = world(answers)
    last = play(of, asked(kind))
    records = of.records()
    assert sum(isinstance(r, Completion | Failure) for r in records) == 1
    paid = {r.attempt: r.paid_pico for r in records if isinstance(r, Charged)}
    if isinstance(last, Completion):
        paid[last.attempt] = last.answer.paid_pico
        assert last.discarded_pico == sum(paid.values()) - last.answer.paid_pico
    assert last.spent_pico == sum(paid.values())
    assert len(paid) <= 3


def test_a_model_does_not_agree_with_itself_where_its_call_was_hedged() -> None:
    of = world(["Paris"])

    async def script(model: Model, number: int) -> ProviderReply:
        await asyncio.sleep({1: 5.0, 2: 4.0}.get(number, 0.0))
        return says(text="Paris" if model.name == "tiny" else "Lyon")

    of.provider = Bill(script)

    async def main() -> None:
        async with worker(of) as one:
            one.stage.parts = replace(one.stage.parts, hedge=HedgePolicy.of(2.0, "t"))
            await one.run(asked("agreement"))

    run(main())
    last = of.records()[-1]
    assert isinstance(last, Completion)
    assert [model for _, model, _ in of.provider.calls][:2] == ["tiny", "tiny"]
    assert last.answer.model_used != "tiny"

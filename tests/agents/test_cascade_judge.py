"""A cascade by a judge: a cheap answer is given where its grade is good enough, and nothing is given or paid twice for it."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inference_engine.agents.attempt import CallSettings, IsCurrent
from inference_engine.agents.discards import CHECK_S
from inference_engine.agents.grader import Checker
from inference_engine.agents.questions import Questions
from inference_engine.pipeline.errors import EngineError, Rejected, Unavailable
from inference_engine.pipeline.feedback import declined, lesson_of, merged, served
from inference_engine.pipeline.models import Catalogue, Model
from inference_engine.pipeline.ports import ProviderReply
from inference_engine.pipeline.respond import Clerk
from inference_engine.schemas import packets
from inference_engine.schemas.feedback import Rated
from inference_engine.schemas.ledger import ASKING, Ambiguous, Charged, Completion, Failure, Intent
from inference_engine.schemas.requests import Call, Chosen, Route

from ..pipeline.support import catalogue
from .payers import CAP, PRICE, Bill, Worker, World, call, now, worker
from .test_discards import OUTCOMES, says
from .virtual_time import run

Reply = str | EngineError | float
"""A float: so many seconds go by before a reply of 10."""


@dataclass
class Judged(World):
    """A judge, two models, and what lies on the topic of calls."""

    asked: list[Call] = field(default_factory=list)
    may: bool = True


def world(grades: Sequence[Reply], answers: Sequence[str] = (), **settings_: Any) -> Judged:
    """The judge, and the others together, reply this in turn; then `fine`, graded with 10."""
    counts = {"grader": 0, "": 0}

    async def script(model: Model, _number: int) -> ProviderReply:
        of: Sequence[Reply] = grades if model.name == "grader" else answers
        whose = "grader" if model.name == "grader" else ""
        counts[whose] += 1
        reply = of[counts[whose] - 1] if counts[whose] <= len(of) else '{"score": 10}' if whose else "fine"
        if isinstance(reply, EngineError):
            raise reply
        if isinstance(reply, float):
            await asyncio.sleep(reply)
            reply = '{"score": 10}'
        await asyncio.sleep(1)
        known = OUTCOMES.get(reply)
        return known if isinstance(known, ProviderReply) else says(text=reply)

    small, big = catalogue().models
    grader = replace(small, name="grader", provider_model="grader")
    known: dict[str, Any] = {"call_timeout_s": 60, "intent_slack_s": 5, **settings_}
    return Judged(provider=Bill(script), models=Catalogue((small, big, grader), "big"), settings=CallSettings(**known))


def asked(**more: Any) -> Call:
    chosen = Chosen(model="big", expected=0.8, costs=(("big", 100), ("small", 10)))
    made = call("r1", model="auto", **more)
    return made.model_copy(update={"route": Route(models=("small", "big"), reason="cascade", cascade="judge", cheap=1, chosen=chosen)})


@asynccontextmanager
async def judging(of: Judged) -> AsyncIterator[Worker]:
    """A worker whose questions lie on a topic that nobody reads, unless they are made at once; it hears how they end."""

    async def send(partition: int, question: Call) -> None:
        of.asked.append(question)

    async with worker(of, fed=True) as one:
        questions = Questions(send)

        async def make(partition: int, question: Call, is_current: IsCurrent) -> None:
            await one.stage.run(partition, question, question.request.lane, is_current)

        async def hear() -> None:
            heard = 0
            while True:
                for packet in of.topic.packets.get(0, ())[heard:]:
                    heard += 1
                    for record in packets.ledger.decode(packet):
                        if isinstance(record, Completion | Failure) and record.purpose in ASKING:
                            questions.heard(0, record)
                await asyncio.sleep(0.1)

        check = Checker(of.models.get("grader"), questions, make, lambda _: of.may, now)
        one.stage.parts = replace(one.stage.parts, check=check, awaited=questions.awaits)
        hearing = asyncio.create_task(hear())
        try:
            yield one
        finally:
            hearing.cancel()
            for task in questions._begun:
                task.cancel()


def play(of: Judged, call_: Call | None = None) -> Completion | Failure:
    made = call_ or asked()

    async def main() -> None:
        async with judging(of) as one:
            await one.run(made)

    run(main())
    [last] = [r for r in of.records() if isinstance(r, Completion | Failure) and r.flight == made.request.flight]
    return last


def models_of(of: World) -> list[str]:
    return [model for _, model, _ in of.provider.calls]


def held(of: World) -> list[tuple[str, str, float | None]]:
    return [(r.model, r.discarded, r.judged) for r in of.records() if isinstance(r, Charged)]


@pytest.mark.parametrize("grade", ["7", "10", "7.5"])
def test_a_cheap_answer_is_given_where_its_grade_is_good_enough(grade: str) -> None:
    of = world([f'{{"score": {grade}}}'])
    last = play(of)
    assert models_of(of) == ["small", "grader"]
    assert isinstance(last, Completion)
    assert (last.answer.model_used, last.judged, last.spent_pico, last.discarded_pico) == ("small", float(grade) / 10, PRICE, 0)


def test_an_answer_that_is_not_good_enough_is_booked_with_its_grade_and_the_better_model_asked_whose_answer_stands() -> None:
    of = world(['{"score": 6}'])
    last = play(of)
    assert models_of(of) == ["small", "grader", "big"]
    assert held(of) == [("small", "judge", 0.6)]
    assert isinstance(last, Completion)
    assert (last.answer.model_used, last.judged, last.spent_pico, last.discarded_pico) == ("big", None, 2 * PRICE, PRICE)


@pytest.mark.parametrize(
    "grade",
    ["I can't tell", '{"score": 11}', "refusal", Rejected("no", code="model_not_found"), CHECK_S + 60],
    ids=["words", "too much", "refusal", "refused", "late"],
)
def test_where_the_judge_does_not_tell_the_better_model_is_asked(grade: Reply) -> None:
    of = world([grade])
    last = play(of)
    assert held(of) == [("small", "judge", None)]
    assert isinstance(last, Completion)
    assert last.answer.model_used == "big"


def test_where_the_judge_may_not_see_it_the_better_model_is_asked() -> None:
    of = world([])
    of.may = False
    play(of)
    assert models_of(of) == ["small", "big"]


def test_what_another_judge_asked_for_and_nobody_grades_here_is_asked_of_the_better_model() -> None:
    of = world([])

    async def main() -> None:
        async with worker(of) as one:
            await one.run(asked())

    run(main())
    assert models_of(of) == ["small", "big"]


def test_a_refusal_needs_no_judge() -> None:
    of = world([], ["refusal"])
    play(of)
    assert models_of(of) == ["small", "big"]


@pytest.mark.parametrize("limit", ["attempts", "max_cost", "deadline", "cancelled"])
def test_where_no_more_may_be_paid_for_the_cheap_answer_is_given_and_nobody_asked_to_grade_it(limit: str) -> None:
    of = world([], max_attempts=1 if limit == "attempts" else 3)
    if limit == "cancelled":
        inner = of.provider.script

        async def script(model: Model, number: int) -> ProviderReply:
            of.cancelled.add("r1")
            return await inner(model, number)

        of.provider.script = script

    async def main() -> None:
        more: dict[str, Any] = {"max_cost": {"max_cost_pico": 2 * CAP - 1}, "deadline": {"deadline_ms": now() + 500}}.get(limit, {})
        async with judging(of) as one:
            await one.run(asked(**more))

    run(main())
    assert models_of(of) == ["small"]
    assert of.kinds() == ["intent", "completion"]


def test_the_deadline_ends_the_wait_for_a_grade_and_the_answer_that_is_there_is_given() -> None:
    of = world([120.0])

    async def main() -> float:
        async with judging(of) as one:
            await one.run(asked(deadline_ms=now() + 10_000))
            return asyncio.get_running_loop().time()

    assert run(main()) <= 11
    last = of.records()[-1]
    assert isinstance(last, Completion)
    assert last.answer.model_used == "small"


def test_the_better_model_is_asked_before_the_cheap_attempt_could_be_taken_for_lost() -> None:
    of = world([25.0], call_timeout_s=20, intent_slack_s=2)
    play(of)
    at_s = {model: at for at, model, _ in of.provider.calls}
    assert at_s["big"] <= 22.5
    assert CHECK_S > 23


def test_a_grade_does_not_wait_behind_the_calls_that_lie_on_the_topic_and_the_copy_there_is_paid_for_by_nobody() -> None:
    of = world(['{"score": 9}'])

    async def main() -> None:
        async with judging(of) as one:
            await one.run(asked())
            [question] = of.asked
            await one.run(question)
            await one.run(question)

    run(main())
    assert models_of(of) == ["small", "grader"]
    assert of.reemitted == []


def test_the_grade_is_a_flight_of_its_own_in_the_costs_of_the_request_and_against_the_savings_of_routing() -> None:
    of = world(['{"score": 6}'])
    play(of)
    rows = [row for r in of.records() if (row := Clerk(of.models).outcome(r).cost) is not None]
    found = {(row.kind, row.purpose, row.model_used, row.error_code, row.base_cost_pico, row.score) for row in rows}
    assert found == {
        ("charged", "cascade", "small", "judge", PRICE, None),
        ("judge", "cascade", "grader", "", PRICE, 0.6),
        ("answer", "answer", "big", "", PRICE, None),
    }
    assert {row.request_id for row in rows} == {"r1"}
    assert [row.saved_routing_pico for row in rows if row.purpose == "cascade"] == [-PRICE, -PRICE]


def test_a_grade_is_a_lesson_about_the_model_that_answered_unless_a_user_says_otherwise() -> None:
    bad, good = world(['{"score": 2}']), world(['{"score": 9}'])
    play(bad)
    given = play(good)
    assert isinstance(given, Completion)
    [kept_back] = [r for r in bad.records() if isinstance(r, Charged)]
    for news, score in ((declined(kept_back), 0.2), (served(given), 0.9)):
        assert news is not None
        row = merged(None, news)
        lesson, after = lesson_of(row), lesson_of(merged(row, Rated(identity=news.identity, score=0.5, at_ms=1)))
        assert lesson is not None
        assert after is not None
        assert (lesson.model, lesson.score, lesson.judged, after.score, after.judged) == ("small", score, True, 0.5, False)


GRADES: list[Reply] = ['{"score": 9}', '{"score": 1}', "words", Unavailable("503"), Rejected("no", code="model_not_found"), 200.0]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(GRADES), max_size=3), st.lists(st.sampled_from(["fine", "refusal", "cut_off"]), max_size=3))
def test_whatever_comes_a_request_ends_once_and_every_call_that_was_paid_is_booked(grades: list[Reply], answers: list[str]) -> None:
    of = world(grades, answers)
    last = play(of)
    records = of.records()
    own = {r.attempt: r.paid_pico for r in records if isinstance(r, Charged)}
    if isinstance(last, Completion):
        own[last.attempt] = last.answer.paid_pico
    assert last.spent_pico == sum(own.values())
    assert isinstance(last, Completion)
    assert len(of.asked) <= 1


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(['{"score": 9}', '{"score": 1}', 20.0]), st.floats(0.0, 12.0))
def test_a_crash_at_any_time_leaves_no_attempt_open_and_pays_for_no_question_that_nobody_waits_for(grade: Reply, at_s: float) -> None:
    of = world([grade])
    made = asked()

    async def main() -> None:
        async with judging(of) as one:
            one.start(made)
            await asyncio.sleep(at_s)
        graded = models_of(of).count("grader")
        async with judging(of) as two:
            lying = list(of.asked)
            await asyncio.gather(two.run(made), *(two.run(question) for question in lying))
            # Whatever is asked of the second answer is another question.
            assert models_of(of).count("grader") <= graded + len(of.asked) - len(lying)

    run(main())
    records = of.records()
    over = {r.attempt for r in records if not isinstance(r, Intent) and hasattr(r, "attempt")}
    assert {r.attempt for r in records if isinstance(r, Intent)} <= over
    assert sum(isinstance(r, Completion) and r.flight == made.request.flight for r in records) == 1
    for attempt in {attempt for _, _, attempt in of.provider.calls}:
        booked = [r for r in records if isinstance(r, Completion | Charged | Ambiguous) and r.attempt == attempt]
        assert booked

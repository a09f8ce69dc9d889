"""Feedback and what was served meet in any order, and a fall of quality is noticed."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference_engine.pipeline.errors import Rejected
from inference_engine.pipeline.feedback import drifting_since, graded, lesson_of, merged, read_feedback, served
from inference_engine.schemas.feedback import LessonRow, Rated, Served, Speaker
from inference_engine.schemas.requests import Chosen

from .feedback_support import lessons
from .support import identity, request
from .test_respond import completion

CHOSEN = Chosen(model="small", expected=0.7, chance=0.96, costs=(("small", 10), ("big", 100)))


def rated(score: float, at_ms: int = 5, source: Speaker = "user") -> Rated:
    return Rated(identity=identity(), score=score, at_ms=at_ms, source=source)


def given_answer(at_ms: int = 1, **more: Any) -> Served:
    fields: dict[str, Any] = {"model": "small", "chosen": CHOSEN, "features": (1.0, 2.0), **more}
    return Served(identity=identity(), at_ms=at_ms, **fields)


news = st.one_of(
    st.builds(rated, st.sampled_from([0.0, 0.5, 1.0]), st.integers(0, 3), st.sampled_from(["user", "judge"])),
    st.builds(given_answer, st.integers(0, 3), model=st.sampled_from(["small", "big"]), refused=st.booleans()),
)


@given(st.lists(news, max_size=6), st.randoms())
def test_order_and_repetition_change_nothing(events: list[Any], random: Any) -> None:
    def row(of: list[Any]) -> LessonRow | None:
        made: LessonRow | None = None
        for event in of:
            made = merged(made, event)
        return made

    again = [*events, *events]
    random.shuffle(again)
    assert row(again) == row(events)


@given(st.lists(news, max_size=6))
def test_what_a_user_says_counts_whatever_a_judge_says_before_or_after(events: list[Any]) -> None:
    def lesson(of: list[Any]) -> Any:
        made: LessonRow | None = None
        for event in of:
            made = merged(made, event)
        return None if made is None else lesson_of(made)

    users = [event for event in events if getattr(event, "source", "user") == "user"]
    if any(isinstance(event, Rated) for event in users):
        assert lesson(events) == lesson(users)


def test_a_judges_word_is_a_lesson_where_no_user_said_anything_and_is_marked_as_such() -> None:
    row = merged(merged(None, rated(0.4, source="judge")), given_answer())
    lesson, after = lesson_of(row), lesson_of(merged(row, rated(1.0, at_ms=0)))
    assert lesson is not None
    assert after is not None
    assert (lesson.score, lesson.judged, after.score, after.judged) == (0.4, True, 1.0, False)
    refused = lesson_of(merged(merged(None, rated(0.9, source="judge")), given_answer(refused=True)))
    assert refused is not None
    assert (refused.score, refused.judged) == (0.0, False), "no answer is worth nothing, whatever a judge says"


def test_rows_and_ratings_of_earlier_versions_are_read() -> None:
    row = LessonRow.model_validate_json('{"served": null, "score": 0.5, "rated_ms": 3}')
    assert (row.score, row.judged) == (0.5, None)
    old = Rated.model_validate({"type": "rated", "v": 1, "identity": identity().model_dump(), "score": 1, "at_ms": 2})
    assert old.source == "user"


def test_a_judges_reply_is_a_rating_of_the_request_that_it_is_booked_to() -> None:
    said = completion(request())
    choice = {"index": 0, "message": {"role": "assistant", "content": '{"score": 4}'}, "finish_reason": "stop"}
    said = said.model_copy(update={"answer": said.answer.model_copy(update={"body": {"choices": [choice]}})})
    assert graded(said) == Rated(identity=said.request.identity, score=0.4, source="judge", at_ms=said.at_ms)
    assert graded(completion(request())) is None


def test_a_lesson_needs_the_answer_and_what_was_said_of_it() -> None:
    assert lesson_of(merged(None, rated(0.2))) is None
    assert lesson_of(merged(None, given_answer())) is None
    lesson = lesson_of(merged(merged(None, rated(0.2)), given_answer()))
    assert lesson is not None
    assert (lesson.model, lesson.score, lesson.expected, lesson.chance) == ("small", 0.2, 0.7, 0.96)


def test_a_refusal_is_worth_nothing_unless_somebody_says_otherwise() -> None:
    refused = merged(None, given_answer(refused=True))
    assert getattr(lesson_of(refused), "score", None) == 0.0
    assert getattr(lesson_of(merged(refused, rated(0.8))), "score", None) == 0.8


def test_a_fallback_is_learned_from_but_was_not_foretold() -> None:
    lesson = lesson_of(merged(merged(None, given_answer(model="big")), rated(1.0)))
    assert lesson is not None
    assert (lesson.model, lesson.expected, lesson.chance) == ("big", None, None)


def test_only_answers_that_a_learning_router_chose_are_lessons() -> None:
    done = completion(request())
    assert served(done) is None
    made = served(done.model_copy(update={"chosen": CHOSEN}))
    assert made is not None
    assert made.identity == done.request.identity
    assert made.model == done.answer.model_used


@pytest.mark.parametrize(
    "raw", [b"", b"{", b"[]", b'{"custom_id": "a"}', b'{"custom_id": "a", "score": 1.5}', b'{"custom_id": "", "score": 1}',
            b'{"custom_id": "a", "score": NaN}'],
)  # fmt: skip
def test_what_is_no_feedback_is_refused_with_what_to_give(raw: bytes) -> None:
    with pytest.raises(Rejected, match="custom_id"):
        read_feedback(raw, "t", "default", 1)


def test_feedback_is_its_tenants_and_may_leave_the_job_out() -> None:
    made = read_feedback(b'{"custom_id": "r1", "score": 1, "comment": "good"}', "acme", "default", 7)
    assert made == Rated(identity=identity(job="default", tenant="acme"), score=1.0, at_ms=7)


def test_a_fall_of_quality_is_noticed_and_dated() -> None:
    good = lessons(600, expected=0.7)
    bad = lessons(100, seed=3, worth={k: 0.2 for k in (("large", True), ("large", False), ("small", True), ("small", False))},
                  from_ms=600, expected=0.7)  # fmt: skip
    since = drifting_since([*good, *bad])
    assert since is not None
    assert 570 <= since <= 630


def test_a_judge_who_is_stricter_than_users_is_no_drift_and_one_who_grows_stricter_is_where_he_says_most() -> None:
    users = lessons(400, expected=0.7)
    strict = [replace(lesson, score=0.1, judged=True) for lesson in lessons(100, seed=3, expected=0.7, from_ms=400)]
    assert drifting_since([*users, *strict]) is None
    judged = [replace(lesson, judged=True) for lesson in users]
    assert drifting_since([*judged, *strict]) is not None


@pytest.mark.parametrize("seed", range(10))
def test_what_is_as_foretold_is_no_drift(seed: int) -> None:
    assert drifting_since(lessons(2_000, seed, worth=dict.fromkeys([(m, h) for m in ("large", "small") for h in (True, False)], 0.7),
                                  expected=0.7)) is None  # fmt: skip

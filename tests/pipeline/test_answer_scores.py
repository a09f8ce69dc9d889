"""What an answer is worth beside what people expected of it, or beside another model's answer."""

import pytest

from inference_engine.pipeline.answer_scores import score_of
from inference_engine.schemas.answers import Answer, Usage


def says(text: str | None) -> Answer:
    body = {"choices": [{"message": {"role": "assistant", "content": text}}]}
    return Answer(body=body, model_used="m", usage=Usage(input_tokens=1, output_tokens=1), paid_pico=1, finish_reason="stop")


@pytest.mark.parametrize(
    ("text", "expected", "score"),
    [
        ("Paris", "paris.", 1.0),
        ("The capital of France is Paris, of course.", "Paris", 1.0),
        ("The capital of France is Lyon.", "Paris", 0.0),
        ("Parisian life is good", "Paris", 0.0),
        ("5 + 7 = 12, so she has 12 apples and pays $1,200.00.", "1200", 1.0),
        ("She has 12 apples, of 1200", "12", 0.0),
        ("", "Paris", 0.0),
        (None, "Paris", 0.0),
    ],
)
def test_an_expected_value_may_stand_in_a_longer_answer(text: str | None, expected: str, score: float) -> None:
    assert score_of(says(text), expected, None, None) == score


def test_what_is_expected_is_believed_before_another_answer() -> None:
    assert score_of(says("Lyon"), "Paris", says("Lyon"), None) == 0.0


def test_answers_with_a_value_are_compared_by_it() -> None:
    assert score_of(says('{"a": 1.0, "b": 2}'), None, says('{"b": 2, "a": 1}'), None) == 1.0
    assert score_of(says("yes"), None, says("no"), None) == 0.0


def test_free_text_is_compared_by_meaning_and_not_at_all_without_an_embedder() -> None:
    one, other = says("The cat sat on the mat for hours."), says("For hours a cat was sitting there on its mat.")
    assert score_of(one, None, other, None) is None
    assert score_of(one, None, other, lambda _a, _b: 0.83) == 0.83
    assert score_of(one, None, other, lambda _a, _b: -0.2) == 0.0
    assert score_of(one, None, None, lambda _a, _b: 0.9) is None

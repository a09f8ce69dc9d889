"""Which paid answers are held back for another model's."""

from typing import Any

import pytest

from inference_engine.pipeline.unwanted import may_do_better, refused, why_unwanted

from .support import catalogue

SMALL, BIG = catalogue().models


def reply(content: str | None = "text", **message: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "message": {"role": "assistant", "content": content, **message}}]}


@pytest.mark.parametrize(
    ("body", "finish", "why"),
    [
        (reply(), "stop", None),
        (reply(), "content_filter", "refusal"),
        (reply(), "refusal", "refusal"),
        (reply(None, refusal="I can't help with that."), "stop", "refusal"),
        (reply(), "length", "cut_off"),
        (reply(tool_calls=[{}]), "tool_calls", None),
        ({"choices": [{}, {}]}, "length", None),
        ({"choices": []}, "content_filter", "refusal"),
        ({}, "stop", None),
    ],
)
def test_refusals_and_answers_that_the_model_cut_off_are_unwanted(body: dict[str, Any], finish: str, why: str | None) -> None:
    assert why_unwanted({}, body, finish) == why


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_an_answer_that_ends_at_the_requests_own_limit_is_what_was_asked_for(name: str) -> None:
    assert why_unwanted({name: 5}, reply(), "length") is None
    assert why_unwanted({name: 5}, reply(), "content_filter") == "refusal"


@pytest.mark.parametrize("body", [{}, {"choices": None}, {"choices": [None]}, {"choices": [{"message": 3}]}])
def test_what_has_no_message_was_not_refused(body: dict[str, Any]) -> None:
    assert not refused(body, "stop")


def test_a_cut_off_answer_goes_on_only_to_a_model_that_writes_more() -> None:
    assert may_do_better("refusal", SMALL, BIG)
    assert not may_do_better("refusal", SMALL, SMALL)
    assert not may_do_better("cut_off", SMALL, BIG)  # both write 1,000 tokens

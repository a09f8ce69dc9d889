"""Two answers compared by what they say: values exactly, free text only as far as it can be told without a judge."""

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference_engine.pipeline.judge import HEAD, by_value, told
from inference_engine.schemas.answers import Answer, Told, Usage

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=5),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=8,
)


def said(text: object) -> Told:
    choice = {"message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    answer = Answer(
        body={"choices": [choice]}, model_used="m", usage=Usage(input_tokens=1, output_tokens=1), paid_pico=1, finish_reason="stop"
    )
    found = told(answer)
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("one", "other", "agree"),
    [
        ('{"label": "refund", "sure": 1.0}', '{ "sure": 1, "label": "refund" }', True),
        ('{"label": "refund"}', '{"label": "transfer"}', False),
        ("[1, 2]", "[2, 1]", False),
        ("Refund.", "refund", True),
        ("42", "42.0", True),
        ('```json\n{"intent": "refund", "sure": 0.9}\n```', '```\n{\n  "sure": 0.9, "intent": "refund"\n}\n```', True),
        ('```json\n{"intent": "refund"}\n```', '{"intent":"refund"}', True),
        ("```JSON \r\n[1, 2]\r\n```", "[1, 2]", True),
        ('```json\n{"intent": "refund"}\n```', '```json\n{"intent": "top_up"}\n```', False),
        ("```\nRefund\n```", "refund", True),
        ("```\n```", "```\n```", True),
        ("```json\n{}\n```\nor\n```json\n[]\n```", "```json\n{}\n```\nand\n```json\n[]\n```", None),
        ("```python\nx = 1\n```", "x = 1", False),
        ("```json", "```json\n1", False),
        ("42", "43", False),
        ("Yes", "No", False),
        ("yes", "Yes, in most cases you can.", False),
        ("Open the app and choose Cards.", "Open  the app\nand choose Cards.", True),
        ("The fee of a transfer is 5 dollars.", "The fee of a transfer is 50 dollars.", False),
        ("Open the app and choose Cards.", "Choose Cards in the app.", None),
        ("1. Open the app. " * 20, "1. Open it. 2. Choose. " * 20, None),
    ],
)
def test_values_are_compared_as_values_and_free_text_is_left_to_a_judge(one: str, other: str, agree: bool | None) -> None:
    assert by_value(said(one), said(other)) is agree
    assert by_value(said(other), said(one)) is agree


@given(st.lists(JSON) | st.dictionaries(st.text(max_size=3), JSON))
def test_json_written_otherwise_is_the_same_value(value: object) -> None:
    pretty = orjson.dumps(value, option=orjson.OPT_INDENT_2).decode()
    assert by_value(said(orjson.dumps(value).decode()), said(pretty)) is True


def test_long_text_is_kept_by_its_head_and_told_apart_by_all_of_it() -> None:
    one, other = said("to be told " * 100 + "yes"), said("to be told " * 100 + "no")
    assert len(one.text) == HEAD
    assert not one.whole
    assert one.text == other.text
    assert by_value(one, other) is None
    assert by_value(one, said("to be told " * 100 + "yes")) is True


@pytest.mark.parametrize("content", [None, "", "  ", [{"type": "text"}]])
def test_an_answer_without_text_is_nothing_to_compare(content: object) -> None:
    with pytest.raises(AssertionError):
        said(content)

"""Tables of scored and priced answers: bad lines are named, what can't be compared is left out and said."""

from typing import Any

import numpy as np
import orjson
import pytest

from inference_engine.pipeline.errors import ConfigError
from inference_engine.pipeline.routing_table import Table, comparable, parse_table


def line(**changes: Any) -> bytes:
    return orjson.dumps({"prompt": "hi", "scores": {"a": 0, "b": 1}, "costs": {"a": 0.1, "b": 0.2}} | changes)


def parsed(*lines: bytes) -> Table:
    return parse_table(lines, "t.jsonl").table


def test_a_table_is_read_with_missing_values_and_groups() -> None:
    made = parsed(line(group=3), line(scores={"b": 0.5, "c": None}, costs={"c": 1}), b"\n")
    assert made.models == ("a", "b", "c")
    np.testing.assert_array_equal(made.scores, [[0, 1, np.nan], [np.nan, 0.5, np.nan]])
    np.testing.assert_array_equal(made.costs, [[0.1, 0.2, np.nan], [np.nan, np.nan, 1]])
    assert made.groups is not None
    assert made.groups[0] == "3"
    assert made.groups[1] != made.groups[0]


def test_right_and_wrong_may_be_said_as_true_and_false() -> None:
    np.testing.assert_array_equal(parsed(line(scores={"a": False, "b": True})).scores, [[0, 1]])


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        (b"{", "is not JSON"),
        (b"[]", "is not an object"),
        (line(prompt=""), 'no "prompt"'),
        (line(prompt=7), 'no "prompt"'),
        (line(scores={"a": 80}), "score of 80 for 'a'"),
        (line(scores={"a": "1"}), "'1' for 'a'"),
        (line(scores=[1]), 'no "scores"'),
        (line(scores={"a": None}), 'no number in "scores"'),
        (line(costs={"a": -1}), "cost of -1"),
        (line(costs=None), 'no "costs"'),
        (line(group=[1]), '"group"'),
        (b'{"prompt": "x", "scores": {"a": NaN}, "costs": {}}', "is not JSON"),
    ],
)
def test_a_bad_line_is_left_out_and_named_with_its_number_and_reason(bad: bytes, why: str) -> None:
    made = parse_table([line(), bad, line()], "t.jsonl")
    assert len(made.table) == 2
    assert "t.jsonl: 1 lines are left out: line 2 " in made.notes[0]
    assert why in made.notes[0]


def test_a_file_without_a_good_line_says_what_a_line_is() -> None:
    with pytest.raises(ConfigError, match=r"line 1 is not JSON.*a line is"):
        parse_table([b"{"], "t.jsonl")
    with pytest.raises(ConfigError, match="empty"):
        parse_table([], "t.jsonl")


def test_a_model_without_any_price_is_never_compared() -> None:
    made, notes = comparable(parsed(*[line(scores={"a": 0, "b": 1, "free": 1}) for _ in range(20)]), "t")
    assert made.models == ("a", "b")
    assert "free left out" in notes[0]


def test_a_model_that_hardly_any_prompt_knows_is_left_out() -> None:
    common, rare = line(scores={"a": 1, "b": 0}), line(scores={"a": 1, "b": 0, "c": 1}, costs={"a": 1, "b": 1, "c": 1})
    made, notes = comparable(parsed(*[common] * 30, rare), "t")
    assert made.models == ("a", "b")
    assert "c left out" in notes[0]


def test_where_nearly_all_prompts_are_complete_only_those_are_measured() -> None:
    three = line(scores={"a": 1, "b": 0, "c": 1}, costs={"a": 1, "b": 1, "c": 1})
    made, notes = comparable(parsed(*[three] * 30, line(scores={"a": 1})), "t")
    assert made.models == ("a", "b", "c")
    assert "1 of 31 prompts lack" in notes[0]
    assert len(made.measured()) == 30


def test_where_few_prompts_are_complete_what_is_missing_is_estimated_and_said() -> None:
    names = "abc"
    lines = [line(scores={m: i % 2 for m in names if m != names[i % 3]}, costs=dict.fromkeys(names, 2)) for i in range(30)]
    made, notes = comparable(parsed(*lines), "t")
    assert made.models == ("a", "b", "c")
    assert "33% of the values that they are measured on are estimated" in notes[0]
    measured = made.measured()
    assert len(measured) == 30
    np.testing.assert_allclose(measured.scores, [[i % 2] * 3 for i in range(30)])  # the others say how hard a prompt is
    np.testing.assert_allclose(measured.costs, 2)
    assert np.isnan(made.scores).sum() == 30  # what is learned from is what was scored


def test_too_little_to_compare_is_an_error_that_says_what_is_needed() -> None:
    with pytest.raises(ConfigError, match="2 models and 10 prompts"):
        comparable(parsed(*[line()] * 9), "t")
    with pytest.raises(ConfigError, match="1 models"):
        comparable(parsed(*[line(scores={"a": 1})] * 20), "t")

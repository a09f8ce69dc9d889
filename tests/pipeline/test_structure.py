"""The form of an answer is checked by what its request asked for; what is not understood finds nothing wrong."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference_engine.pipeline.structure import asks_for_form, violation

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 1},
        "age": {"type": ["integer", "null"], "minimum": 0},
        "kind": {"enum": ["a", "b"]},
        "friends": {"type": "array", "items": {"$ref": "#/$defs/name"}, "maxItems": 2},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
    "$defs": {"name": {"type": "string"}},
}


def asked(schema: Any) -> dict[str, Any]:
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}}


@pytest.mark.parametrize(
    "value",
    [{"name": "Ann", "age": 3}, {"name": "Ann", "age": None, "kind": "b", "friends": ["Bob", "Cy"]}, {"name": "Ann", "age": 3.0}],
)
def test_what_has_the_form_is_let_through(value: Any) -> None:
    assert violation(asked(PERSON), json.dumps(value)) is None


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ([], "the answer is no object"),
        ({"name": "Ann"}, "has no 'age'"),
        ({"name": "", "age": 3}, "the answer.name has 0 characters"),
        ({"name": "Ann", "age": "3"}, "the answer.age is no integer or null"),
        ({"name": "Ann", "age": True}, "the answer.age is no integer or null"),
        ({"name": "Ann", "age": 3.5}, "the answer.age is no integer or null"),
        ({"name": "Ann", "age": -1}, "the answer.age is out of bounds"),
        ({"name": "Ann", "age": 1, "kind": "c"}, "the answer.kind is none of the allowed values"),
        ({"name": "Ann", "age": 1, "friends": ["Bob", 2]}, r"the answer.friends\[1\] is no string"),
        ({"name": "Ann", "age": 1, "friends": ["a", "b", "c"]}, "the answer.friends has 3 items"),
        ({"name": "Ann", "age": 1, "shoe": 1}, "has 'shoe', which is not allowed"),
    ],
)
def test_what_has_not_is_named(value: Any, said: str) -> None:
    with pytest.raises(AssertionError, match=said):
        assert not violation(asked(PERSON), json.dumps(value)), violation(asked(PERSON), json.dumps(value))


def test_text_around_json_is_not_json() -> None:
    assert "not JSON" in (violation({"response_format": {"type": "json_object"}}, "Here you are: {}") or "")
    assert "not JSON" in (violation({"response_format": {"type": "json_object"}}, None) or "")
    assert violation({"response_format": {"type": "json_object"}}, "[1]") == "it is no JSON object"
    assert violation({"response_format": {"type": "json_object"}}, "{}") is None


@pytest.mark.parametrize("body", [{}, {"response_format": {"type": "text"}}, {"response_format": "json"}])
def test_a_request_without_a_form_asks_for_none(body: dict[str, Any]) -> None:
    assert not asks_for_form(body)
    assert violation(body, "anything") is None


def test_alternatives_are_counted() -> None:
    either = {"anyOf": [{"type": "string"}, {"type": "number"}]}
    assert violation(asked(either), "1") is None
    assert violation(asked(either), "null") is not None
    one = {"oneOf": [{"type": "number"}, {"minimum": 0}]}
    assert "more than one" in (violation(asked(one), "1") or "")


def test_a_schema_that_refers_to_itself_ends() -> None:
    tree = {"type": "object", "properties": {"left": {"$ref": "#"}, "right": {"$ref": "#"}}}
    assert violation(asked(tree), json.dumps({"left": {"left": {}, "right": {}}})) is None
    assert violation(asked(tree), json.dumps({"left": {"left": 3}})) == "the answer.left.left is no object"
    assert violation(asked({"$ref": "#"}), "1") is None
    violation(asked({"anyOf": [{"$ref": "#"}, {"$ref": "#"}], "allOf": [{"$ref": "#"}, {"$ref": "#"}]}), "1")  # 4^60 ways to look


anything = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["type", "properties", "items", "enum", "a"]), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(anything, anything)
def test_no_schema_makes_the_check_fail(schema: Any, value: Any) -> None:
    violation(asked(schema), json.dumps(value))


@given(st.dictionaries(st.text(max_size=5), st.integers(), max_size=4))
def test_a_form_that_was_made_from_a_value_lets_it_through_and_not_without_one_of_its_fields(value: dict[str, int]) -> None:
    schema = {
        "type": "object",
        "properties": {k: {"type": "integer"} for k in value},
        "required": list(value),
        "additionalProperties": False,
    }
    assert violation(asked(schema), json.dumps(value)) is None
    for name in value:
        assert violation(asked(schema), json.dumps({k: v for k, v in value.items() if k != name})) is not None

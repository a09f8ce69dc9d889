"""The numbers of a text, as the veto compares them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference_engine.pipeline.numbers import numbers

SAME = [
    ("a refund of 20 pounds", "£20 refund"),
    ("1,000,000 users", "1000000 users"),
    ("two weeks ago", "2 weeks ago"),
    ("twenty-five dollars", "$25.00"),
    ("two hundred and fifty thousand", "250000"),
    ("$3.50", "3.5 dollars"),
    ("my one card", "my card"),
    ("I was charged twice", "I was charged two times"),
    ("in 5 km", "in 5km"),
    ("by 10 percent", "by 10%"),
    ("GPT-4", "gpt 4"),
    ("007", "7"),
    ("the 3rd time", "the 3 rd time"),
]
DIFFERENT = [
    ("a refund of 20 pounds", "a refund of 200 pounds"),
    ("20 pounds", "20 dollars"),
    ("Python 3.1", "Python 3.10"),
    ("3 weeks", "three days"),
    ("from 5 to 10", "from 10 to 5"),
    ("-5 degrees", "5 degrees"),
    ("x²", "x³"),
    ("½ a cup", "¼ a cup"),
    ("1,5", "15"),
    ("2 tries", "my tries"),
    ("at 10 am", "at 10 pm"),
    ("2024-05-01", "2024-06-01"),
    ("二人", "三人"),
    ("v1.2.3", "v1.2.4"),
]


@pytest.mark.parametrize(("a", "b"), SAME)
def test_the_same_number_is_the_same_however_it_is_written(a: str, b: str) -> None:
    assert numbers(a) == numbers(b)


@pytest.mark.parametrize(("a", "b"), DIFFERENT)
def test_different_numbers_units_and_orders_differ(a: str, b: str) -> None:
    assert numbers(a) != numbers(b)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ()),
        ("no figures here", ()),
        ("two, three", ("2", "3")),
        ("two three", ("2", "3")),
        ("twenty five and six", ("25", "6")),
        ("two hundred and six", ("206",)),
        ("hundred thousand things", ()),
        ("10:30", ("10", "30")),
        ("3-5 items", ("3", "5")),
        ("٣ apples", ("3",)),
    ],
)
def test_numbers_come_in_their_order(text: str, expected: tuple[str, ...]) -> None:
    assert numbers(text) == expected


@given(st.text(max_size=200))
def test_any_text_has_numbers_and_outer_space_or_case_change_none(text: str) -> None:
    assert numbers(f"  {text} ") == numbers(text)
    if text.isascii():
        assert numbers(text.upper()) == numbers(text)


@given(st.integers(0, 10**12), st.integers(0, 10**12))
def test_two_integers_agree_only_where_they_are_equal(a: int, b: int) -> None:
    assert (numbers(f"order {a:,} now") == numbers(f"order {b} now")) == (a == b)

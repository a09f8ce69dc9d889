"""The semantic decision: nothing that may not be shared is shared, and the reason says why."""

import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference_engine.pipeline.ports import Neighbour, Point
from inference_engine.pipeline.semantic import Features, Hit, Miss, StaticPolicy, Verdict, comparable_text, decide, features_of

NOW = 1_000_000_000
HOUR = 3_600_000
STATIC = StaticPolicy()


def near(text: str, similarity: float, *, age_ms: int = 0, expires_ms: int = NOW + 1, name: str = "") -> Neighbour:
    point = Point(name or text, np.zeros(1, dtype=np.float32), "acme", "s", text, NOW - age_ms, expires_ms)
    return Neighbour(point, similarity)


def test_an_empty_neighbourhood_is_a_miss() -> None:
    assert decide("where is my card", [], STATIC, NOW) == Miss("nothing similar was answered yet in this scope")


def test_the_threshold_itself_is_a_hit_and_less_is_a_miss_that_names_it() -> None:
    hit = decide("where is my card", [near("my card is where?", 0.92)], STATIC, NOW)
    assert isinstance(hit, Hit)
    assert hit.verdict.reason == "similarity 0.920"
    miss = decide("where is my card", [near("my card is where?", 0.9199)], STATIC, NOW)
    assert isinstance(miss, Miss)
    assert "below 0.92" in miss.reason
    assert miss.nearest is not None


def test_different_numbers_are_a_miss_at_any_similarity_and_the_next_candidate_is_tried() -> None:
    wrong, right = near("refund of 200 pounds", 0.99), near("my refund of 20 pounds", 0.95)
    miss = decide("refund of 20 pounds", [wrong], STATIC, NOW)
    assert isinstance(miss, Miss)
    assert miss.reason == "its numbers differ: 20£ against 200£"
    hit = decide("refund of 20 pounds", [right, wrong], STATIC, NOW)
    assert isinstance(hit, Hit)
    assert hit.neighbour is right


def test_the_same_text_is_a_hit_even_where_rounding_made_it_less_similar() -> None:
    hit = decide("where is my card", [near("where is my car", 0.95), near("where is my card", 0.91)], STATIC, NOW)
    assert isinstance(hit, Hit)
    assert hit.verdict.reason == "the same text"


def test_the_expired_and_the_old_are_refused() -> None:
    assert isinstance(decide("a", [near("a", 1.0, expires_ms=NOW)], STATIC, NOW), Miss)
    old = decide("a", [near("a", 1.0, age_ms=24 * HOUR + 1)], STATIC, NOW)
    assert isinstance(old, Miss)
    assert old.reason == "older than 24 h"
    assert isinstance(decide("a", [near("a", 1.0, age_ms=24 * HOUR)], STATIC, NOW), Hit)


def test_the_access_gate_counts_what_was_served() -> None:
    gated = StaticPolicy(min_access_count=4)
    candidate = near("b", 0.95)
    assert isinstance(decide("a", [candidate], gated, NOW, access_counts={"b": 3}), Miss)
    assert isinstance(decide("a", [candidate], gated, NOW, access_counts={"b": 4}), Hit)


def test_a_threshold_that_would_share_everything_is_refused() -> None:
    with pytest.raises(ValueError, match="CACHE_SIMILARITY_THRESHOLD"):
        StaticPolicy(threshold=0.0)


def test_another_policy_takes_the_place_of_the_static_one() -> None:
    """A policy that estimates a probability decides by margin and group, which the features carry."""

    @dataclasses.dataclass(frozen=True)
    class Cautious:
        floor: float = 0.5

        def accept(self, features: Features) -> Verdict:
            return Verdict(features.margin > 0.1 and features.same_group >= 2, "learned", probability=0.99)

    found = [near("p", 0.9), near("q", 0.85), near("r", 0.7)]
    groups = {"p": "g", "q": "g"}
    hit = decide("x", found, Cautious(), NOW, groups=groups)
    assert isinstance(hit, Hit)
    assert hit.verdict.probability == 0.99
    assert isinstance(decide("x", found, Cautious(), NOW), Miss)


def test_features_know_the_margin_to_the_nearest_other_group() -> None:
    found = [near("p", 0.9), near("q", 0.85), near("r", 0.7)]
    features = features_of("x", found[0], found, NOW, {"p": "g", "q": "g"}, {"p": 7})
    assert features.margin == pytest.approx(0.2)
    assert (features.same_group, features.access_count, features.identical) == (2, 7, False)
    assert features_of("x", found[0], found[:1], NOW).margin == 1.0


neighbourhoods = st.lists(
    st.builds(
        near,
        st.sampled_from(["a", "b", "a 1", "b 2", "c"]),
        st.floats(-1, 1),
        age_ms=st.integers(0, 48 * HOUR),
        expires_ms=st.integers(NOW - 5, NOW + 5),
    ),
    max_size=6,
)


@given(st.sampled_from(["a", "b 1", "c 2"]), neighbourhoods, st.randoms())
def test_a_hit_passes_every_gate_and_the_order_of_neighbours_is_no_matter(text: str, found: list[Neighbour], random: Any) -> None:
    decision = decide(text, found, STATIC, NOW)
    shuffled = list(found)
    random.shuffle(shuffled)
    again = decide(text, shuffled, STATIC, NOW)
    assert type(again) is type(decision)
    if isinstance(decision, Hit):
        assert isinstance(again, Hit)
        assert again.verdict == decision.verdict
        point = decision.neighbour.point
        assert point.expires_ms > NOW
        assert NOW - point.created_ms <= 24 * HOUR
        assert point.text == text or decision.neighbour.similarity >= 0.92
        assert [c for c in point.text if c.isdigit()] == [c for c in text if c.isdigit()]


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


SHAREABLE = [
    ([user("hello")], "hello"),
    ([user(" hello\n")], "hello"),
    ([{"role": "system", "content": "be kind"}, user("hello")], "hello"),
    ([user("a"), {"role": "assistant", "content": "b"}, user("c")], "c"),
    ([user([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}])], "a\nb"),
]
UNSHAREABLE = [
    [],
    [user("")],
    [user("  \n ")],
    [user(None)],
    [user([])],
    [user([{"type": "text", "text": "what is this"}, {"type": "image_url", "image_url": {"url": "data:"}}])],
    [user("a"), {"role": "assistant", "content": "b"}],
    [user("a"), {"role": "tool", "content": "42", "tool_call_id": "1"}],
    [user("a"), {"role": "tool", "content": "42", "tool_call_id": "1"}, user("and now?")],
    [user("continue"), {"role": "assistant", "content": "b"}, user("continue")],
    [user("continue"), {"role": "assistant", "content": "b"}, user(" continue ")],
]


@pytest.mark.parametrize(("messages", "text"), SHAREABLE)
def test_the_last_user_turn_is_what_is_compared(messages: list[dict[str, Any]], text: str) -> None:
    assert comparable_text({"messages": messages}) == text


@pytest.mark.parametrize("messages", UNSHAREABLE)
def test_images_tools_empty_and_repeated_turns_are_never_compared(messages: list[dict[str, Any]]) -> None:
    assert comparable_text({"messages": messages}) is None

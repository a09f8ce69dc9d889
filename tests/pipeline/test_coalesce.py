"""Coalescing: every prompt is planned once, and no follower is further from its leader than the policy allows."""

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference_engine.connectors.embedder import HashEmbedder
from inference_engine.pipeline.coalesce import Group, Merge, Pending, Plan, plan
from inference_engine.pipeline.numbers import numbers
from inference_engine.pipeline.ports import Vectors
from inference_engine.pipeline.semantic import Features, StaticPolicy, Verdict

STATIC = StaticPolicy()
BANKING = Path(__file__).parents[1] / "data" / "banking77" / "test.csv"


def circle(*degrees: float) -> Vectors:
    """Unit vectors in the plane: two of them at 20 degrees have cosine 0.94, at 25 degrees 0.906, at 40 degrees 0.77."""
    return np.array([[math.cos(math.radians(d)), math.sin(math.radians(d))] for d in degrees], dtype=np.float32).reshape(-1, 2)


def prompts(n: int, text: str = "") -> list[Pending]:
    return [Pending(f"k{i}", text or f"prompt {chr(97 + i)}", i) for i in range(n)]


def keys(result: Plan) -> list[str]:
    """Every key that the plan names as a join, a leader or a follower."""
    merges = [m for g in result.groups for m in g.merges]
    return [j.key for j in result.joins] + [m.leader for m in merges] + [f.key for m in merges for f in m.followers]


def calls(result: Plan) -> dict[str, list[str]]:
    return {m.leader: [f.key for f in m.followers] for g in result.groups for m in g.merges}


def test_near_prompts_share_one_call_and_a_stranger_has_its_own() -> None:
    result = plan(prompts(3), circle(0, 10, 120), STATIC)
    assert calls(result) == {"k0": ["k1"], "k2": []}
    assert result.groups[0].merges[0].followers[0].similarity == pytest.approx(math.cos(math.radians(10)), abs=1e-5)


def test_an_empty_window_is_an_empty_plan() -> None:
    assert plan([], circle(), STATIC) == Plan((), ())


def test_a_chain_is_cut_into_followers_of_their_own_leader() -> None:
    """0-20-40-60 degrees is one DBSCAN cluster; its ends have cosine 0.5."""
    assert calls(plan(prompts(4), circle(0, 20, 40, 60), STATIC)) == {"k1": ["k0", "k2"], "k3": []}


def test_different_numbers_are_never_merged_but_sent_side_by_side() -> None:
    window = [Pending(f"k{i}", f"status of order {i}", i) for i in range(3)]
    result = plan(window, circle(0, 1, 2), STATIC)
    assert calls(result) == {"k0": [], "k1": [], "k2": []}
    assert len(result.groups) == 1


def test_similar_prompts_are_one_group_led_by_the_most_central() -> None:
    """At 25 degrees no answer is shared, but the prefix is sent in one stretch, the middle one first."""
    result = plan(prompts(4), circle(0, 25, 50, 180), STATIC)
    assert result.groups == (Group((Merge("k1"), Merge("k0"), Merge("k2"))), Group((Merge("k3"),)))


def test_a_group_is_no_larger_than_asked() -> None:
    result = plan(prompts(7), circle(*range(0, 175, 25)), STATIC, max_group=3)
    assert [len(g.merges) for g in result.groups] == [3, 3, 1]


def test_a_later_miss_follows_a_leader_that_is_in_flight() -> None:
    sent = [Pending("sent", "prompt sent", 0), Pending("nearer", "prompt nearer", 0)]
    result = plan(prompts(2), circle(0, 90), STATIC, in_flight=sent, in_flight_vectors=circle(15, 5))
    assert [(j.key, j.leader) for j in result.joins] == [("k0", "nearer")]
    assert calls(result) == {"k1": []}


def test_nobody_joins_a_leader_with_other_numbers_or_through_another_prompt() -> None:
    """k0 is near k1, k1 is near the leader: that does not make k0 the leader's follower."""
    sent = [Pending("sent", "prompt", 0)]
    chain = plan(prompts(2), circle(40, 20), STATIC, in_flight=sent, in_flight_vectors=circle(0))
    assert [j.key for j in chain.joins] == ["k1"]
    assert calls(chain) == {"k0": []}
    other = plan(prompts(1), circle(0), STATIC, in_flight=[Pending("sent", "prompt 7", 0)], in_flight_vectors=circle(0))
    assert other.joins == ()


def test_prompts_that_the_embedder_did_not_see_are_alone() -> None:
    zeros = np.zeros((3, 2), dtype=np.float32)
    assert calls(plan(prompts(3, "the same text"), zeros, STATIC)) == {"k0": [], "k1": [], "k2": []}


def test_a_key_that_pends_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="pending twice"):
        plan([*prompts(1), *prompts(1)], circle(0, 0), STATIC)


def test_leaders_in_flight_without_vectors_are_refused() -> None:
    with pytest.raises(ValueError, match="1 leaders are in flight, but there are 0 vectors"):
        plan(prompts(1), circle(0), STATIC, in_flight=prompts(1))


@dataclass(frozen=True)
class OnlySame:
    """A learned policy may refuse what is above its floor."""

    floor: float = 0.5

    def accept(self, features: Features) -> Verdict:
        return Verdict(features.identical, "only the same text")


def test_the_policy_has_the_last_word_within_a_cluster() -> None:
    window = [Pending("a", "x", 0), Pending("b", "y", 1), Pending("c", "x", 2)]
    assert calls(plan(window, circle(0, 1, 2), OnlySame())) == {"a": ["c"], "b": []}


windows = st.lists(st.tuples(st.sampled_from(["a", "b", "call 1", "call 2"]), st.floats(0, 180), st.integers(0, 3)), max_size=24)


def built(rows: Sequence[tuple[str, float, int]], name: str) -> tuple[list[Pending], Vectors]:
    return [Pending(f"{name}{i}", text, at) for i, (text, _, at) in enumerate(rows)], circle(*(angle for _, angle, _ in rows))


@given(windows, windows, st.integers(1, 5))
def test_every_prompt_is_planned_exactly_once_and_every_follower_is_near_its_leader(
    rows: list[tuple[str, float, int]], sent: list[tuple[str, float, int]], max_group: int
) -> None:
    window, vectors = built(rows, "k")
    flights, flight_vectors = built(sent, "f")
    result = plan(window, vectors, STATIC, in_flight=flights, in_flight_vectors=flight_vectors, max_group=max_group)
    assert sorted(keys(result)) == sorted(p.key for p in window)
    assert all(0 < len(g.merges) <= max_group for g in result.groups)
    vector = {p.key: v for p, v in zip([*window, *flights], [*vectors, *flight_vectors], strict=True)}
    text = {p.key: p.text for p in [*window, *flights]}
    pairs = [(f.key, m.leader, f.similarity) for g in result.groups for m in g.merges for f in m.followers]
    pairs += [(j.key, j.leader, j.similarity) for j in result.joins]
    for follower, leader, similarity in pairs:
        assert float(vector[follower] @ vector[leader]) == pytest.approx(similarity, abs=1e-4)
        assert similarity >= STATIC.threshold - 1e-4
        assert numbers(text[follower]) == numbers(text[leader])


@given(windows, st.lists(st.tuples(st.integers(0, 23), st.integers(0, 23)), max_size=40))
def test_nobody_follows_whom_it_followed_in_vain(rows: list[tuple[str, float, int]], vain: list[tuple[int, int]]) -> None:
    prompts, vectors = built(rows, "k")
    window = [replace(p, fallen=tuple(f"k{b}" for a, b in vain if a == i and b != i)) for i, p in enumerate(prompts)]
    fallen = {p.key: p.fallen for p in window}
    flights = {"in_flight": window[:3], "in_flight_vectors": vectors[:3]}
    for result in (plan(window, vectors, STATIC), plan(window[3:], vectors[3:], STATIC, **flights)):  # type: ignore[arg-type]
        followed = [(f.key, m.leader) for g in result.groups for m in g.merges for f in m.followers]
        assert not [pair for pair in [*followed, *((j.key, j.leader) for j in result.joins)] if pair[1] in fallen[pair[0]]]


@given(windows, st.randoms())
def test_the_order_of_arrival_in_the_list_changes_nothing(rows: list[tuple[str, float, int]], random: Any) -> None:
    window, vectors = built(rows, "k")
    order = list(range(len(window)))
    random.shuffle(order)
    assert plan([window[i] for i in order], vectors[order], STATIC) == plan(window, vectors, STATIC)


@given(windows)
def test_no_two_leaders_of_a_plan_could_have_shared_a_call_in_a_window_of_equals(rows: list[tuple[str, float, int]]) -> None:
    """A leader that is left alone has no other leader left alone that it may follow."""
    window, vectors = built(rows, "k")
    text = {p.key: p.text for p in window}
    vector = {p.key: v for p, v in zip(window, vectors, strict=True)}
    alone = [leader for leader, followers in calls(plan(window, vectors, STATIC)).items() if not followers]
    for i, a in enumerate(alone):
        for b in alone[:i]:
            assert numbers(text[a]) != numbers(text[b]) or float(vector[a] @ vector[b]) < STATIC.threshold + 1e-4


def test_real_questions_are_merged_by_their_words_and_planned_once() -> None:
    with BANKING.open() as f:
        texts = sorted({row["text"] for row in csv.DictReader(f)})[:200]
    doubled = [*texts, *(f"{text}?" for text in texts[::4])]
    window = [Pending(f"k{i}", text, i) for i, text in enumerate(doubled)]
    result = plan(window, HashEmbedder().embed(doubled), STATIC)
    assert sorted(keys(result)) == sorted(p.key for p in window)
    merged = {f.key: m.leader for g in result.groups for m in g.merges for f in m.followers}
    assert len(merged) > 10

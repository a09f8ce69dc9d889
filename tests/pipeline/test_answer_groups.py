"""Groups of equal answers: links are transitive, a noisy judge neither merges everything nor goes unnoticed."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from inference_engine.pipeline.answer_groups import AnswerGroups, Vote

points = st.sampled_from("abcdefgh")


@given(st.lists(st.tuples(points, points), max_size=20))
def test_groups_are_the_connected_parts_of_all_links_in_any_order(links: list[tuple[str, str]]) -> None:
    forward, backward = AnswerGroups(), AnswerGroups()
    for one, two in links:
        forward.link(one, two)
    for one, two in reversed(links):
        backward.link(two, one)
    for one in "abcdefgh":
        for two in "abcdefgh":
            assert (forward.of(one) == forward.of(two)) == (backward.of(one) == backward.of(two))
    assert all(forward.of(one) == forward.of(two) for one, two in links)


@given(st.lists(st.tuples(points, points), max_size=20), points)
def test_a_forgotten_point_comes_back_as_a_stranger(links: list[tuple[str, str]], gone: str) -> None:
    groups = AnswerGroups()
    for one, two in links:
        groups.link(one, two)
    groups.forget(gone)
    assert all(groups.of(gone) != groups.of(other) for other in "abcdefgh" if other != gone)


def test_the_majority_of_a_group_speaks_for_it() -> None:
    groups = AnswerGroups()
    groups.link("a", "b")
    groups.link("a", "c")
    heard = groups.hear("new", [Vote("a", False), Vote("b", True), Vote("c", True), Vote("d", False)], {})
    assert heard == {"a": True, "b": True, "c": True, "d": False}
    assert groups.of("new") == groups.of("a")
    assert groups.of("new") != groups.of("d")


def test_one_word_for_a_group_that_nobody_expected_is_not_believed_before_the_judge_is_known() -> None:
    groups = AnswerGroups()
    groups.hear("new", [Vote("far", True)], {"far": 0.05})
    assert groups.of("new") != groups.of("far")
    groups.hear("other", [Vote("near", True)], {"near": 0.6})
    assert groups.of("other") == groups.of("near")


def noisy(noise: float) -> AnswerGroups:
    random = np.random.default_rng(3)
    groups, kept = AnswerGroups(), [f"{g}-{i}" for g in range(10) for i in range(4)]
    for point in kept:
        groups.link(point, point.split("-")[0] + "-0")
    for i in range(400):
        own = str(random.integers(10))
        found = [str(p) for p in random.choice(kept, size=4)] + [f"{own}-{j}" for j in range(4)]
        votes = [Vote(p, (p.split("-")[0] == own) != (random.random() < noise)) for p in dict.fromkeys(found)]
        groups.hear(f"{own}-new{i}", votes, {f"{own}-0": 0.9})
    return groups


def test_the_judges_noise_is_measured_by_how_groups_contradict_themselves() -> None:
    clean, dirty = noisy(0.0).judge_noise, noisy(0.05).judge_noise
    assert clean == 0.0
    assert dirty is not None
    assert 0.02 < dirty < 0.08


def test_a_judge_that_errs_one_time_in_twenty_merges_no_established_groups() -> None:
    groups = noisy(0.05)
    assert len({groups.of(f"{g}-0") for g in range(10)}) == 10

"""The learned decision: what it may never share, what it asks for audits, and what a lesson changes."""

import numpy as np
import pytest

from inference_engine.pipeline.answer_groups import Vote
from inference_engine.pipeline.learned import NEIGHBOURS, LearnedPolicy, Learner, row_of
from inference_engine.pipeline.learned_settings import LearnedSettings
from inference_engine.pipeline.ports import Neighbour, Point
from inference_engine.pipeline.semantic import Features

NOW = 1_000
EAGER = LearnedPolicy(weights=(-11.0, 8.0, 0.5, 7.0, 2.0), threshold=0.9)


def near(name: str, similarity: float, text: str = "where it is", *, expires_ms: int = NOW + 1, created_ms: int = 0) -> Neighbour:
    return Neighbour(Point(name, np.zeros(1, dtype=np.float32), "t", "s", text, created_ms, expires_ms), similarity)


def alone(name: str) -> str:
    return name


def test_before_anything_was_learned_nothing_is_shared_not_even_the_same_text() -> None:
    considered = Learner().consider("where is it", "s", [near("a", 1.0)], NOW)
    assert not considered.share
    assert considered.best is not None


def test_numbers_that_differ_are_as_if_they_were_not_there() -> None:
    found = [near("a", 0.99, "refund of 200"), near("b", 0.95, "refund of 20")]
    considered = EAGER.consider("the refund of 20", found, NOW, alone)
    assert considered.best is not None
    assert considered.best.neighbour.point.id == "b"
    assert considered.best.row[2] == pytest.approx(0.95)  # no margin to the one with another number
    assert not EAGER.consider("refund of 3", found, NOW, alone).share


def test_the_expired_and_what_is_older_than_the_scope_is_trusted_are_not_there() -> None:
    assert EAGER.consider("x", [near("a", 0.99, "x")], NOW, alone).share
    assert not EAGER.consider("x", [near("a", 0.99, "x", expires_ms=NOW)], NOW, alone).candidates
    assert not EAGER.consider("x", [near("a", 0.99, "x", created_ms=4)], NOW, alone, trusted_since_ms=5).candidates


def test_a_group_of_many_can_win_over_a_single_one_that_is_nearer() -> None:
    found = [near("odd", 0.905), *(near(f"m{i}", 0.9) for i in range(5))]
    considered = EAGER.consider("where is it", found, NOW, lambda p: "m" if p.startswith("m") else p)
    assert considered.best is not None
    assert considered.best.neighbour.point.id == "m0"
    assert considered.best.row == pytest.approx(row_of(0.9, -0.005, 5 / NEIGHBOURS))


def test_a_near_answer_of_another_group_speaks_against_sharing() -> None:
    assert EAGER.consider("x", [near("a", 0.9, "x")], NOW, alone).share
    assert not EAGER.consider("x", [near("a", 0.9, "x"), near("b", 0.89, "x")], NOW, alone).share
    assert EAGER.consider("x", [near("a", 0.9, "x"), near("b", 0.89, "x")], NOW, lambda _: "one").share


def test_the_order_of_neighbours_is_no_matter() -> None:
    found = [near("a", 0.9), near("b", 0.9), near("c", 0.7)]
    assert EAGER.consider("x", found, NOW, alone) == EAGER.consider("x", found[::-1], NOW, alone)


def test_as_a_policy_for_pairs_it_refuses_below_its_floor() -> None:
    learner = taught(LearnedSettings())
    floor = learner.policy.floor
    assert 0.0 < floor < 1.0
    for cosine in np.arange(0.0, floor, 0.01):
        assert not learner.policy.accept(Features(similarity=float(cosine), margin=float(cosine))).accepted


def test_audits_come_at_their_rate_and_more_often_where_it_is_less_certain() -> None:
    learner = taught(LearnedSettings(audit_rate=0.05))
    random = np.random.default_rng(0)
    chances = random.uniform(0.9, 0.9999, size=4000)
    audited = [(float(p), rate) for p in chances if (rate := learner.audit(float(p))) is not None]
    unsure = sum(p < 0.95 for p, _ in audited) / sum(chances < 0.95)
    sure = sum(p > 0.99 for p, _ in audited) / sum(chances > 0.99)
    assert unsure > 1.5 * sure > 0.0
    # Each audit stands for 1 / rate hits: together for all of them.
    assert sum(1.0 / rate for _, rate in audited) == pytest.approx(4000, rel=0.1)


def taught(settings: LearnedSettings, *, n: int = 600, seed: int = 0) -> Learner:
    """Answers agree where the cosine is above 0.7, with some doubt around it."""
    random, learner = np.random.default_rng(seed), Learner(settings)
    for i in range(n):
        cosine = float(random.uniform(0.2, 1.0))
        teach(learner, i, cosine, bool(random.random() < 1 / (1 + np.exp(-60 * (cosine - 0.7)))))
    return learner


def teach(learner: Learner, i: int, cosine: float, agrees: bool, scope: str = "s") -> None:
    considered = learner.consider("x", scope, [near(f"old{i}", cosine, created_ms=i, expires_ms=1 << 60)], i)
    best = considered.best
    learner.counted(scope, best.row if best else None)
    learner.learn(scope, f"new{i}", considered, [Vote(f"old{i}", agrees)], i)


def test_what_was_learned_is_where_the_answers_agree() -> None:
    policy = taught(LearnedSettings()).policy
    assert policy.accept(Features(similarity=0.95, margin=0.95)).accepted
    assert not policy.accept(Features(similarity=0.6, margin=0.6)).accepted


def test_a_tighter_bound_shares_less() -> None:
    thresholds = [taught(LearnedSettings(bound=bound)).policy.threshold for bound in (0.001, 0.01, 0.1)]
    assert thresholds == sorted(thresholds, reverse=True)
    assert len(set(thresholds)) == 3


def test_a_scope_whose_answers_change_is_distrusted_alone() -> None:
    learner = taught(LearnedSettings())
    for i in range(600, 660):
        teach(learner, i, 0.95, True, scope="calm")
        if not learner.fallbacks:
            teach(learner, i, 0.95, False, scope="changed")
    assert [f.scope for f in learner.fallbacks] == ["changed"]
    assert 600 <= learner.trusted_since("changed") <= 605
    assert learner.trusted_since("calm") == 0


def test_answers_that_change_everywhere_start_all_anew() -> None:
    learner = taught(LearnedSettings())
    for i in range(600, 640):
        teach(learner, i, 0.95, False)
    assert len(learner.fallbacks) == 1
    assert learner.fallbacks[0].scope is None
    assert not learner.policy.shares
    assert 595 <= learner.trusted_since("any") <= 605


def test_what_is_contradicted_again_and_soon_rests_and_is_not_forgotten() -> None:
    learner = taught(LearnedSettings())
    for begin in (600, 1600):
        for i in range(begin, begin + 400):
            if len(learner.fallbacks) < 1 + (begin > 600):
                teach(learner, i, 0.95, False)
        if begin == 600:
            retaught(learner, 1000, 1600)
    assert [f.scope for f in learner.fallbacks] == [None, None]
    assert len(learner.state().lessons) > 500
    retaught(learner, 2000, 2060)
    assert learner.policy.shares
    assert not learner.shares
    retaught(learner, 2060, 2160)
    assert learner.shares


def retaught(learner: Learner, begin: int, end: int) -> None:
    random = np.random.default_rng(begin)
    for i in range(begin, end):
        cosine = float(random.uniform(0.2, 1.0))
        teach(learner, i, cosine, bool(random.random() < 1 / (1 + np.exp(-60 * (cosine - 0.7)))))


@pytest.mark.parametrize("bad", [{"bound": 0.0}, {"bound": 1.0}, {"audit_rate": 0.0}, {"audit_rate": 1.5}])
def test_a_bound_that_is_none_is_refused(bad: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="above 0"):
        LearnedSettings(**bad)  # type: ignore[arg-type]

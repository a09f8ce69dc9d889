"""The policy that feedback taught: when it may choose, what it spends on learning, and when it steps back."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from inference_engine.connectors.taught_file import pack_router, unpack_router
from inference_engine.pipeline.errors import Rejected
from inference_engine.pipeline.feedback_policy import FeedbackPolicy
from inference_engine.pipeline.route import Ranking
from inference_engine.pipeline.routing_policies import QuantilePolicy
from inference_engine.pipeline.taught_router import FIRST_LESSONS, TOLD, TaughtRouter, teach

from .feedback_support import WORTH, lessons
from .test_routing_policies import SMALL_LARGE, asked, at

COLD = QuantilePolicy(min_quality=0.9)


def taught(count: int, *, seed: int = 0, worth: dict[tuple[str, bool], float] | None = None, drifts: int = 0) -> TaughtRouter:
    return teach(lessons(count, seed, worth=worth), np.random.default_rng(0), drifts=drifts)


@pytest.fixture(scope="module")
def learned() -> TaughtRouter:
    return taught(1_200)


def policy(state: TaughtRouter | None, exploration: float = 0.0) -> FeedbackPolicy:
    return FeedbackPolicy(lambda tenant: state if tenant == "t" else None, COLD, COLD, exploration)


def vector(hard: bool) -> np.ndarray:
    made = np.zeros(12, dtype=np.float32)
    made[0] = 1.0 if hard else -1.0
    return made


def ranked(state: TaughtRouter | None, hard: bool, draw: float = 0.9, exploration: float = 0.0) -> Ranking:
    return policy(state, exploration).rank(replace(asked("x"), tenant="t", draw=draw), vector(hard), SMALL_LARGE)


def test_what_feedback_taught_chooses_once_it_is_surely_above_the_static_choice(learned: TaughtRouter) -> None:
    assert learned.status == "learned"
    assert ranked(learned, hard=True).models[0] == "large"
    easy = ranked(learned, hard=False)
    assert easy.models[0] == "small"
    assert "learned from feedback" in easy.reason


def test_where_prompts_tell_nothing_the_best_static_choice_is_taken_and_said() -> None:
    state = taught(400, worth={("large", True): 0.9, ("large", False): 0.9, ("small", True): 0.4, ("small", False): 0.4})
    assert state.status == "static"
    for hard in (True, False):
        made = ranked(state, hard)
        assert made.models[0] == "large"
        assert "best static choice" in made.reason


@pytest.mark.parametrize("small", [0.55, 0.6])
def test_the_best_static_choice_is_the_same_for_short_and_long_prompts(small: float) -> None:
    worth = {("large", True): 0.8, ("large", False): 0.8, ("small", True): small, ("small", False): small}
    state = teach(lessons(800, worth=worth, lengths=(0.9, 1.0, 1.1)), np.random.default_rng(0))
    assert state.status == "static"
    strict = FeedbackPolicy(lambda tenant: state, COLD, QuantilePolicy(min_quality=0.95), 0.0)
    features = replace(asked("x"), tenant="t", draw=0.9)
    for offers in (at(0.9), at(0.99), at(1.01), at(1.1)):
        assert strict.rank(features, vector(True), offers).models[0] == "large"


def test_prompts_are_not_told_apart_by_a_model_that_hardly_answered_any() -> None:
    """What is known of its answers is nearly all foretold, so that the comparison would judge a forecast by itself."""
    for seed in range(3):
        state = teach(lessons(1_000, seed, large=0.99), np.random.default_rng(0))
        assert min(state.heard) < TOLD
        assert state.status == "static"


def test_before_enough_was_heard_somebody_else_decides() -> None:
    state = taught(FIRST_LESSONS - 1)
    assert state.status == "cold"
    for known in (state, None):
        assert ranked(known, hard=True).models == COLD.rank(asked("x"), None, SMALL_LARGE).models


def test_another_tenants_lessons_decide_nothing(learned: TaughtRouter) -> None:
    made = policy(learned).rank(replace(asked("x"), tenant="other"), vector(True), SMALL_LARGE)
    assert made.models == COLD.rank(asked("x"), None, SMALL_LARGE).models


@pytest.mark.parametrize("count", [0, FIRST_LESSONS - 1, 100, 1_200])
def test_at_most_the_allowed_share_explores_and_the_chances_are_true(count: int) -> None:
    state = taught(count) if count else None
    trials = 2_000
    made = [ranked(state, hard=i % 2 == 0, draw=(i // 2) / (trials / 2), exploration=0.05) for i in range(trials)]
    assert sum(m.chosen is not None and m.chosen.explored for m in made) <= 0.05 * trials
    easy = made[1::2]
    counted = Counter(m.models[0] for m in easy)
    for m in easy:
        assert m.chosen is not None
        assert m.chosen.model == m.models[0]
        assert m.chosen.chance == pytest.approx(counted[m.models[0]] / len(easy), abs=0.003)


def test_one_flight_is_always_routed_in_the_same_way(learned: TaughtRouter) -> None:
    for draw in np.linspace(0, 0.06, 50):
        assert ranked(learned, True, float(draw), 0.05) == ranked(learned, True, float(draw), 0.05)


def test_after_a_drift_the_best_static_choice_of_what_was_heard_since_is_taken() -> None:
    worse = {("large", True): 0.9, ("large", False): 0.9, ("small", True): 0.1, ("small", False): 0.1}
    state = taught(30, worth=worse, drifts=1)
    assert state.status == "drifted"
    made = ranked(state, hard=False)
    assert made.models[0] == "large"
    assert "learns anew" in made.reason


def test_what_was_taught_survives_its_bytes(learned: TaughtRouter) -> None:
    tenant, back = unpack_router(pack_router("acme", learned))
    assert tenant == "acme"
    assert replace(back, model=None) == replace(learned, model=None, means=back.means)
    for hard in (True, False):
        told, draws = learned.predict("x", vector(hard))
        again, same = back.predict("x", vector(hard))
        np.testing.assert_allclose(again, told, atol=0.02)
        assert draws is not None
        assert same is not None
        np.testing.assert_allclose(same, draws, atol=0.05)
    with pytest.raises(Rejected, match="learned again"):
        unpack_router(b"something else")


def test_a_prompt_without_its_embedding_is_not_told_from_others(learned: TaughtRouter) -> None:
    told, draws = learned.predict("x", None)
    np.testing.assert_allclose(told, learned.means)
    assert draws is None


def test_the_lower_bound_is_kept_where_there_is_nothing_to_learn() -> None:
    """Where nothing distinguishes prompts, hardly ever is learned what is not there."""
    even = dict.fromkeys(WORTH, 0.6) | {("large", True): 0.8, ("large", False): 0.8}
    assert sum(taught(200, seed=seed, worth=even).status == "learned" for seed in range(12)) <= 2

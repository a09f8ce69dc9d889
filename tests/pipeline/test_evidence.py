"""What compared answers can prove: never less than they show, and the less of them the less."""

from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference_engine.pipeline.evidence import may_share, wrong_at_most
from inference_engine.pipeline.learned_settings import LearnedSettings

LESSONS = st.lists(st.tuples(st.floats(0.01, 1.0), st.booleans(), st.floats(1.0, 9.0)), max_size=40)


@given(LESSONS, st.floats(0.01, 1.0), st.randoms(use_true_random=False))
def test_it_is_at_least_the_share_that_was_wrong_and_knows_no_order(
    lessons: list[tuple[float, bool, float]], chance: float, random: Random
) -> None:
    found = shown(lessons, chance)
    above = [(agrees, weight) for told, agrees, weight in lessons if told >= chance]
    wrong = sum(weight for agrees, weight in above if not agrees) / sum(weight for _, weight in above) if above else 1.0
    assert wrong - 1e-9 <= found <= 1.0
    random.shuffle(lessons)
    assert shown(lessons, chance) == pytest.approx(found)


def shown(lessons: list[tuple[float, bool, float]], chance: float) -> float:
    told, labels, weights = (np.array([lesson[i] for lesson in lessons], dtype=np.float64) for i in range(3))
    return float(wrong_at_most(np.array([chance]), told, labels, weights, 2.5)[0])


def test_a_few_that_stand_for_many_prove_less_than_as_many_that_stand_for_themselves() -> None:
    many = shown([(0.9, True, 1.0)] * 400, 0.5)
    few = shown([(0.9, True, 1.0)] * 200 + [(0.9, True, 10.0)] * 20, 0.5)
    assert few > 2 * many


def test_what_is_predicted_perfectly_is_shared_only_as_far_as_it_was_shown() -> None:
    chances, promised = np.full(1000, 0.999999), LearnedSettings(bound=0.01)
    assert may_share(chances, np.full(1000, 0.001), promised, 4000, 2000) == 1000
    assert may_share(chances, np.full(1000, 0.04), promised, 4000, 2000) == 500
    assert may_share(chances, np.full(1000, 0.04), LearnedSettings(bound=0.01, per="hit"), 4000, 2000) == 0

"""Curves of cost against quality, and the measures taken from them, on tables that can be counted by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from inference_engine.pipeline.routing_curve import (
    Ends,
    Predictions,
    area,
    choices,
    cost_curve,
    grid,
    least_cost,
    least_share,
    outcomes,
    share_curve,
)

WEAK, STRONG = np.array([0.0, 1.0, 0.0, 1.0]), np.array([1.0, 1.0, 1.0, 1.0])
ONCE = np.ones((1, 4))


def test_apgr_is_one_half_for_a_policy_that_sees_no_difference() -> None:
    x, y = share_curve(np.zeros(4), ONCE, WEAK, STRONG)
    assert area(x[0], y[0]) == pytest.approx(0.5)
    assert least_share(x[0], y[0], 0.8) == pytest.approx(0.8)


def test_apgr_and_cpt_of_a_perfect_order_are_those_counted_by_hand() -> None:
    """Half of the prompts gain: all is recovered at half of the calls. Area: a triangle of 0.25 and a rectangle of 0.5."""
    x, y = share_curve(STRONG - WEAK, ONCE, WEAK, STRONG)
    assert area(x[0], y[0]) == pytest.approx(0.75)
    assert least_share(x[0], y[0], 0.5) == pytest.approx(0.25)
    worst = share_curve(WEAK - STRONG, ONCE, WEAK, STRONG)
    assert area(worst[0][0], worst[1][0]) == pytest.approx(0.25)


def test_a_prompt_of_a_resample_counts_as_often_as_it_was_drawn() -> None:
    x, y = share_curve(np.array([4.0, 3.0, 2.0, 1.0]), np.array([[2.0, 0.0, 1.0, 1.0]]), WEAK, STRONG)
    np.testing.assert_allclose(x[0], [0, 0.5, 0.5, 0.75, 1])
    np.testing.assert_allclose(y[0], [0, 2 / 3, 2 / 3, 1, 1])


def test_with_more_models_the_axis_is_the_extra_cost_and_a_coin_has_one_half() -> None:
    quality, cost = np.array([[0.8, 0.5]]), np.array([[10.0, 1.0]])
    ends = ((np.array([0.5]), np.array([1.0])), (np.array([0.8]), np.array([10.0])))
    x, y = cost_curve(quality, cost, *ends)
    assert area(x[0], y[0]) == pytest.approx(0.5)
    x, y = cost_curve(np.array([[0.8, 0.8, 0.5]]), np.array([[10.0, 5.5, 1.0]]), *ends)
    assert area(x[0], y[0]) == pytest.approx(0.75)


def test_where_best_and_cheapest_cost_the_same_nothing_is_defined() -> None:
    same = (np.array([0.5]), np.array([1.0]))
    x, y = cost_curve(np.array([[0.5]]), np.array([[1.0]]), same, same)
    assert np.isnan(area(x[0], y[0]))
    assert np.isnan(least_share(x[0], y[0], 0.5))


def test_the_price_moves_choices_from_the_best_to_the_cheapest_and_of_equals_the_cheaper_is_taken() -> None:
    predicted = Predictions(np.array([[0.5, 0.9], [0.5, 0.6], [0.7, 0.7]]), np.array([[1.0, 2.0]] * 3))
    assert choices(predicted, 0.0).tolist() == [1, 1, 0]
    assert choices(predicted, 0.2).tolist() == [1, 0, 0]
    assert choices(predicted, np.inf).tolist() == [0, 0, 0]


def test_a_static_mix_reaches_every_point_between_its_models() -> None:
    predicted = Predictions(np.array([[0.5, 0.9]] * 4), np.array([[1.0, 3.0]] * 4))
    points = grid(predicted)
    made = outcomes(predicted, points, predicted.scores, predicted.costs)
    quality, cost = made.scores.mean(axis=0)[None, :], made.costs.mean(axis=0)[None, :]
    assert least_cost(quality, cost, np.array([0.7]))[0] == pytest.approx(2.0, abs=0.05)
    assert least_cost(quality, cost, np.array([0.91]))[0] == np.inf


def test_ends_are_the_best_and_the_cheapest_and_of_equals_the_cheaper_and_the_better() -> None:
    assert Ends.of(np.array([[0.9, 0.9, 0.1, 0.2]]), np.array([[5.0, 3.0, 1.0, 1.0]])) == Ends(cheapest=3, best=1)
    assert Ends.of(np.array([[0.9, 0.5]]), np.array([[1.0, 5.0]])) == Ends(cheapest=1, best=0)


@given(
    arrays(np.float64, (12, 3), elements=st.floats(0, 1)),
    arrays(np.float64, (12, 3), elements=st.sampled_from([0.0, 0.001, 0.01, 1.0])),
)
def test_every_operating_point_is_a_mix_of_real_choices_from_dearest_to_cheapest(scores: np.ndarray, costs: np.ndarray) -> None:
    predicted = Predictions(scores, costs)
    points = grid(predicted)
    made = outcomes(predicted, points, scores, costs)
    assert (made.scores >= scores.min(axis=1)[:, None] - 1e-9).all()
    assert (made.scores <= scores.max(axis=1)[:, None] + 1e-9).all()
    assert (np.diff(made.costs.mean(axis=0)) <= 1e-9).all()
    assert made.scores[:, 0].mean() == pytest.approx(scores.max(axis=1).mean())
    assert made.costs[:, -1].mean() == pytest.approx(costs.min(axis=1).mean())

"""The batch lane goes as fast as the urgent lanes' latency allows, never faster and never not at all."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference_engine.pipeline.lanes import LAWS, Bounds, Flow, GradientLaw, Law, MultiplicativeLaw, advance, smoothed, turn_of

BOUNDS = Bounds()
bounds = st.builds(
    lambda low, more, window, wider: Bounds(low, low + more, window, window + wider),
    st.integers(1, 100),
    st.integers(0, 100),
    st.floats(1, 100),
    st.floats(0, 1_000),
)
laws = st.sampled_from([law for name, law in LAWS.items() if name != "fixed"])


def settle(law: Law, capacity: float, *, target_ms: float = 10.0, steps: int = 3_000) -> list[float]:
    """Rates under a law where latency is that of a queue which serves `capacity` requests per second."""
    flow, rates = Flow(BOUNDS.slowest), []
    for _ in range(steps):
        load = min(0.99, flow.rate / capacity)
        flow = advance(flow, 2.0 / (1 - load), law=law, target_ms=target_ms, bounds=BOUNDS)
        rates.append(flow.rate)
    return rates


def test_the_bounds_are_the_lanes_of_the_design() -> None:
    assert (BOUNDS.slowest, BOUNDS.fastest) == (160, 6_400)
    assert (turn_of(160, BOUNDS).size, turn_of(160, BOUNDS).window_ms) == (32, 200)
    assert (turn_of(6_400, BOUNDS).size, turn_of(6_400, BOUNDS).window_ms) == (64, 10)


@given(bounds, st.lists(st.tuples(st.floats(0, 10_000), st.booleans()), max_size=30), laws, st.floats(0.1, 1_000))
def test_whatever_is_observed_the_rate_keeps_within_its_bounds(
    bounds: Bounds, seen: list[tuple[float, bool]], law: Law, target: float
) -> None:
    flow = Flow(bounds.slowest)
    for latency, wanted in seen:
        flow = advance(flow, latency, law=law, target_ms=target, bounds=bounds, wanted=wanted)
        assert bounds.floor * 0.999 <= flow.rate <= bounds.fastest * 1.001


@given(bounds, st.floats(0.01, 1e6))
def test_a_turn_keeps_its_size_and_its_window_and_comes_to_the_rate(bounds: Bounds, rate: float) -> None:
    turn = turn_of(rate, bounds)
    assert bounds.min_size <= turn.size <= bounds.max_size
    assert bounds.min_window_ms <= turn.window_ms <= bounds.max_window_ms
    assert 1000 * turn.size / turn.window_ms == pytest.approx(max(bounds.slowest, bounds.hold(rate)), rel=0.5 / bounds.min_size + 0.01)


@given(bounds, st.lists(st.floats(0.01, 1e6), min_size=2, max_size=10))
def test_a_faster_lane_has_no_smaller_turns_and_no_longer_windows(bounds: Bounds, rates: list[float]) -> None:
    turns = [turn_of(rate, bounds) for rate in sorted(rates)]
    for slower, faster in pairwise(turns):
        assert slower.size <= faster.size
        assert slower.window_ms >= faster.window_ms - 1e-9


def test_the_law_of_the_design_document_grows_by_a_fifth_below_four_fifths_and_shrinks_by_a_fifth_above_the_target() -> None:
    law = MultiplicativeLaw()
    assert law.next_rate(1_000, 79.9, 100, BOUNDS) == 1_200
    assert law.next_rate(1_000, 80.0, 100, BOUNDS) == 1_000
    assert law.next_rate(1_000, 100.0, 100, BOUNDS) == 1_000
    assert law.next_rate(1_000, 100.1, 100, BOUNDS) == 800


def test_the_gradient_law_adds_a_step_and_cuts_in_proportion_to_the_overshoot() -> None:
    law = GradientLaw(step=0.01)
    assert law.next_rate(1_000, 5, 10, BOUNDS) == 1_064
    assert law.next_rate(1_000, 12.5, 10, BOUNDS) == 864
    assert law.next_rate(1_000, 1_000, 10, BOUNDS) == 564, "never more than by half"


@pytest.mark.parametrize("capacity", [500, 2_000, 5_000])
def test_under_a_steady_load_the_latency_comes_to_the_target(capacity: float) -> None:
    rates = settle(LAWS["gradient"], capacity)[-500:]
    latencies = [2.0 / (1 - min(0.99, rate / capacity)) for rate in rates]
    mean = sum(latencies) / len(latencies)
    assert 5.0 < mean < 14.0
    assert min(rates) > 0.4 * capacity


def test_a_rate_that_nobody_uses_is_not_raised_so_that_the_next_job_does_not_begin_with_a_flood() -> None:
    flow = Flow(3_000)
    for _ in range(300):
        flow = advance(flow, 0.1, law=GradientLaw(), target_ms=10, bounds=BOUNDS, wanted=False)
    assert flow.rate == BOUNDS.slowest


def test_the_latency_is_smoothed_as_the_design_document_says() -> None:
    assert smoothed(100.0, 200.0, 0.1) == 110.0


@pytest.mark.parametrize("wrong", [(0, 4, 1.0, 2.0), (4, 3, 1.0, 2.0), (1, 2, 0.0, 2.0), (1, 2, 3.0, 2.0)])
def test_impossible_bounds_are_refused(wrong: tuple[int, int, float, float]) -> None:
    with pytest.raises(ValueError, match="can't be"):
        Bounds(*wrong)

"""Windows close for a reason, and the lanes keep the design's sizes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference_engine.pipeline.window import Arrivals, should_close, wait_ms, window_policies
from inference_engine.schemas.record import Lane

STANDARD = window_policies()[Lane.STANDARD]


def test_the_defaults_are_the_lanes_of_the_design() -> None:
    lanes = window_policies()
    assert {lane: (p.min_size, p.max_size, p.max_wait_ms) for lane, p in lanes.items()} == {
        Lane.EXPRESS: (1, 4, 10),
        Lane.STANDARD: (4, 32, 50),
        Lane.BATCH: (32, 64, 200),
    }


@given(st.integers(1, 500), st.integers(0, 500), st.integers(0, 1000), st.integers(0, 100))
def test_any_allowed_setting_gives_three_windows_within_it(low: int, more: int, wait: int, express: int) -> None:
    lanes = window_policies(min_size=low, max_size=low + more, max_wait_ms=wait, express_max_wait_ms=express)
    assert all(p.max_size <= low + more for p in lanes.values())
    assert lanes[Lane.EXPRESS].max_wait_ms <= lanes[Lane.STANDARD].max_wait_ms <= lanes[Lane.BATCH].max_wait_ms
    assert lanes[Lane.EXPRESS].max_size <= lanes[Lane.STANDARD].max_size <= lanes[Lane.BATCH].max_size


@pytest.mark.parametrize(("low", "high"), [(0, 4), (5, 4)])
def test_impossible_sizes_are_refused_by_the_name_of_the_setting(low: int, high: int) -> None:
    with pytest.raises(ValueError, match="BATCH_MIN_SIZE"):
        window_policies(min_size=low, max_size=high)


def test_an_empty_window_never_closes() -> None:
    assert should_close(STANDARD, size=0, age_ms=10_000, more_queued=False) is None


def test_a_window_closes_when_full_or_old_or_when_nobody_else_comes() -> None:
    assert should_close(STANDARD, size=32, age_ms=0) == "full"
    assert should_close(STANDARD, size=1, age_ms=50) == "old"
    assert should_close(STANDARD, size=1, age_ms=10, wait_ms=10) == "old"
    assert should_close(STANDARD, size=4, age_ms=0, more_queued=False) == "nobody_else"
    assert should_close(STANDARD, size=3, age_ms=49, more_queued=False) is None
    assert should_close(STANDARD, size=31, age_ms=49) is None


@given(st.integers(1, 100), st.floats(50, 1000), st.floats(0, 1000))
def test_a_prompt_never_waits_longer_than_its_lane_allows(size: int, age: float, wait: float) -> None:
    assert should_close(STANDARD, size=size, age_ms=age, wait_ms=wait) is not None


@given(st.sampled_from(list(Lane)), st.floats(0, 1e5), st.booleans())
def test_a_window_waits_at_least_ten_ms_and_at_most_what_its_lane_allows(lane: Lane, per_s: float, calls_wait: bool) -> None:
    policy = window_policies()[lane]
    assert 10 <= wait_ms(policy, per_s=per_s, calls_wait=calls_wait) <= policy.max_wait_ms


def test_the_wait_follows_the_load() -> None:
    batch = window_policies()[Lane.BATCH]
    assert wait_ms(STANDARD, per_s=0.1) == 10, "nobody else is to be expected"
    assert wait_ms(STANDARD, per_s=100) == 50
    assert wait_ms(STANDARD, per_s=1_000) == 32, "full by then"
    assert wait_ms(batch, per_s=100) == 200
    assert wait_ms(batch, per_s=10_000) == 10
    assert wait_ms(STANDARD, per_s=0.1, calls_wait=True) == 50, "the call would wait for its permit anyway"


def test_arrivals_are_counted_per_second_and_forgotten() -> None:
    arrivals, now = Arrivals(), 0.0
    for _ in range(1_000):
        now += 0.01
        rate = arrivals.add(1, now)
    assert 95 < rate < 105
    assert arrivals.add(0, now + 5) < 1

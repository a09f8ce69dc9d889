"""Windows close for a reason, and the lanes keep the design's sizes."""

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference_engine.pipeline.window import FixedSize, WindowPolicy, adapt, should_close, wait_ms, window_policies
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
    assert should_close(STANDARD, size=0, age_ms=10_000, permits_free=0, more_queued=False) is None


def test_a_window_closes_when_full_old_out_of_permits_or_when_nobody_else_comes() -> None:
    assert should_close(STANDARD, size=32, age_ms=0) == "full"
    assert should_close(STANDARD, size=1, age_ms=50) == "old"
    assert should_close(STANDARD, size=1, age_ms=0, permits_free=0) == "no_permits"
    assert should_close(STANDARD, size=4, age_ms=0, more_queued=False) == "nobody_else"
    assert should_close(STANDARD, size=3, age_ms=49, permits_free=1, more_queued=False) is None
    assert should_close(STANDARD, size=31, age_ms=49, permits_free=None) is None


@given(st.integers(1, 100), st.floats(0, 1000))
def test_a_prompt_never_waits_longer_than_its_lane_allows(size: int, age: float) -> None:
    assert should_close(STANDARD, size=size, age_ms=age) is not None or wait_ms(STANDARD, age) > 0


@dataclass(frozen=True)
class Jump:
    to: int

    def next_target(self, policy: WindowPolicy, latency_p95_ms: float) -> int:
        return self.to


@given(st.integers(-10, 1000))
def test_a_law_moves_the_target_only_within_the_lane(to: int) -> None:
    adapted = adapt(STANDARD, Jump(to), 100.0)
    assert adapted.target == min(32, max(4, to))
    assert should_close(adapted, size=adapted.target, age_ms=0) == "full"


def test_the_fixed_law_changes_nothing() -> None:
    assert adapt(STANDARD, FixedSize(), 10_000.0) == STANDARD

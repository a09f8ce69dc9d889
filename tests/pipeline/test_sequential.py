"""Comparing while it runs: looking at every step finds differences where there are some, and seldom where there are none."""

from collections.abc import Callable
from math import inf

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from inference_engine.pipeline.sequential import LEAST_UNITS, Interval, Sums, difference, mean_of, mixture, p_value

Values = NDArray[np.float64]
ALPHA = 0.05
STEP, UNITS = 25, 3_000


def sums(y: Values, n: Values | None = None) -> Sums:
    n = np.ones_like(y) if n is None else n
    return Sums(len(y), float(n.sum()), float(y.sum()), float((y * y).sum()), float((y * n).sum()), float((n * n).sum()))


def looks(values: Values, variant: NDArray[np.bool_]) -> list[Interval]:
    """The difference as it is seen after every 25 units."""
    found = []
    for t in range(2 * LEAST_UNITS, len(values) + 1, STEP):
        seen, inside = values[:t], variant[:t]
        made = difference(sums(seen[~inside]), sums(seen[inside]), ALPHA)
        assert made is not None
        found.append(made)
    return found


def naive(values: Values, variant: NDArray[np.bool_]) -> bool:
    """Does a plain 5 % test fire at some look?"""
    for t in range(2 * LEAST_UNITS, len(values) + 1, STEP):
        one, other = sums(values[:t][~variant[:t]]), sums(values[:t][variant[:t]])
        assert one.mean is not None
        assert other.mean is not None
        if abs(one.mean - other.mean) > 1.96 * np.sqrt(one.variance + other.variance):
            return True
    return False


STREAMS: list[tuple[str, Callable[[np.random.Generator], Values]]] = [
    ("latencies", lambda r: np.exp(r.normal(size=UNITS))),
    ("scores", lambda r: (r.random(UNITS) < 0.8).astype(float)),
    ("rare failures", lambda r: (r.random(UNITS) < 0.02).astype(float)),
]


@pytest.mark.parametrize(("what", "draw"), STREAMS, ids=[what for what, _ in STREAMS])
def test_looking_all_the_time_finds_no_difference_more_often_than_stated(what: str, draw: Callable[[np.random.Generator], Values]) -> None:
    random = np.random.default_rng(7)
    fooled, plain, runs = 0, 0, 200
    for _ in range(runs):
        values, variant = draw(random), random.random(UNITS) < 0.5
        fooled += any(look.differs for look in looks(values, variant))
        plain += naive(values, variant)
    assert fooled / runs <= ALPHA
    assert plain / runs > 3 * ALPHA  # which is why the plain test can't be looked at


def test_users_who_come_back_are_not_taken_for_many() -> None:
    """Requests of a user are alike: counted as independent they would make differences out of nothing."""
    random = np.random.default_rng(3)
    fooled, by_request, runs, users = 0, 0, 120, 400
    for _ in range(runs):
        variant, own = random.random(users) < 0.5, random.normal(size=users)
        busy = np.exp(random.normal(size=users))
        y, n, yy = np.zeros(users), np.zeros(users), np.zeros(users)
        hit = wrong = False
        for _ in range(25):
            who = random.choice(users, size=200, p=busy / busy.sum())
            value = 5 + own[who] + random.normal(size=200)
            np.add.at(y, who, value)
            np.add.at(n, who, 1)
            np.add.at(yy, who, value**2)
            control, treated = (np.flatnonzero((variant == inside) & (n > 0)) for inside in (False, True))
            found = difference(sums(y[control], n[control]), sums(y[treated], n[treated]), ALPHA)
            one, other = (Sums(int(n[arm].sum()), n[arm].sum(), y[arm].sum(), yy[arm].sum(), y[arm].sum(), n[arm].sum())
                          for arm in (control, treated))  # fmt: skip
            alone = difference(one, other, ALPHA)
            assert found is not None
            assert alone is not None
            hit, wrong = hit or found.differs, wrong or alone.differs
        fooled, by_request = fooled + hit, by_request + wrong
    assert fooled / runs <= ALPHA
    assert by_request / runs > 3 * ALPHA


def test_a_difference_that_is_there_is_found_and_stays_inside() -> None:
    random = np.random.default_rng(5)
    found, missed, runs = 0, 0, 60
    for _ in range(runs):
        variant = random.random(UNITS) < 0.5
        seen = looks(random.normal(size=UNITS) + 0.3 * variant, variant)
        found += any(look.low > 0 for look in seen)
        missed += any(not look.low <= 0.3 <= look.high for look in seen)
    assert found == runs
    assert missed / runs <= ALPHA


values_ = st.lists(st.floats(-1e3, 1e3), min_size=LEAST_UNITS, max_size=LEAST_UNITS + 50)


@given(values_, values_)
def test_swapping_the_variants_turns_the_sign_and_p_is_below_alpha_just_where_they_differ(one: list[float], other: list[float]) -> None:
    a, b = sums(np.array(one)), sums(np.array(other))
    there, back = difference(a, b, ALPHA), difference(b, a, ALPHA)
    assert there is not None
    assert back is not None
    assert (there.value, there.p) == pytest.approx((-back.value, back.p))
    if there.p is not None and abs(there.p - ALPHA) > 1e-6:
        assert (there.p < ALPHA) is there.differs


def test_nothing_is_said_too_early_or_without_any_spread() -> None:
    few, many = sums(np.arange(float(LEAST_UNITS - 1))), sums(np.arange(500.0))
    assert difference(few, many, ALPHA) == Interval(many.mean - few.mean)  # type: ignore[operator]
    flat = sums(np.zeros(1_000))
    assert difference(flat, flat, ALPHA) == Interval(0.0, -inf, inf, None)
    assert difference(Sums(), many, ALPHA) is None
    assert mean_of(Sums(), ALPHA) is None


def test_a_mean_lies_in_an_interval_that_more_units_narrow() -> None:
    random = np.random.default_rng(1)
    widths = []
    for count in (200, 800, 3_200):
        found = mean_of(sums(random.normal(2.0, 1.0, count)), ALPHA)
        assert found is not None
        assert found.low < 2.0 < found.high
        widths.append(found.high - found.low)
    assert widths == sorted(widths, reverse=True)


def test_the_interval_is_narrowest_in_comparison_at_the_planned_number() -> None:
    """Relative to the error of a mean, around 1,000 units."""

    def relative(units: int, planned: int) -> float:
        information = units * mixture(ALPHA, planned)
        return float((1 + 1 / information) * np.log((1 + information) / ALPHA**2))

    assert relative(1_000, 1_000) == pytest.approx(min(relative(1_000, planned) for planned in range(100, 5_000, 10)), rel=1e-3)


def test_an_enormous_difference_has_a_p_value_of_nothing() -> None:
    assert p_value(1e9, 10.0) == 0.0
    assert p_value(0.0, 10.0) == 1.0

"""Which way a request goes, when a file is closed, and when a batch is given up."""

from datetime import date
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference_engine.pipeline.errors import Unpriced
from inference_engine.pipeline.flights import Held
from inference_engine.pipeline.models import Model, Prices
from inference_engine.pipeline.provider_batch import (
    FLEX_S,
    MOST_TRIES,
    BatchTraits,
    WayPrices,
    choose,
    closes,
    fits,
    give_up_ms,
    grouped,
    late,
    needed_s,
    next_poll_s,
    way_prices,
)
from inference_engine.schemas.record import Lane

TRAITS = BatchTraits(rows=100, file_bytes=1_000)
ALL = WayPrices(sync=100, flex=50, batch=50)
DAY_S = 86_400.0
NOW = 1_000_000_000


def held(at_ms: int = NOW, *, size: int = 10, deadline_ms: int | None = None, model: str = "m") -> Held:
    return Held(0, model, size, deadline_ms, at_ms)


@given(st.floats(0, 10 * DAY_S), st.floats(0, DAY_S), st.sampled_from(Lane), st.integers(1, 200), st.integers(1, 200), st.booleans())
def test_a_batch_is_chosen_only_where_it_is_cheaper_and_leaves_time_to_ask_again(
    left_s: float, took_s: float, lane: Lane, sync: int, batch: int, parked: bool
) -> None:
    way = choose(left_s=left_s, lane=lane, prices=WayPrices(sync, None, batch), traits=TRAITS, took_s=took_s, parked=parked)
    if way == "batch":
        assert batch < sync
        assert lane is not Lane.EXPRESS
        assert left_s >= took_s + TRAITS.reserve_s
    else:
        assert way == "sync"


def test_the_ways_by_the_time_that_is_left() -> None:
    def way(left_s: float | None, **more: object) -> str:
        arguments: dict[str, object] = {"lane": Lane.STANDARD, "prices": ALL, "traits": TRAITS, **more}
        return choose(left_s=left_s, **arguments)  # type: ignore[arg-type]

    assert way(DAY_S) == "batch"
    assert way(DAY_S, lane=Lane.EXPRESS) == "sync"
    assert way(None) == "sync"
    assert way(FLEX_S) == "flex"
    assert way(FLEX_S - 1) == "sync"
    assert way(DAY_S, took_s=DAY_S) == "flex"
    assert way(DAY_S, traits=None) == "flex"
    assert way(DAY_S, tries=MOST_TRIES) == "flex"
    assert way(DAY_S, tries=None) == "flex"


def test_who_was_let_in_is_not_late_before_its_file_can_be_closed() -> None:
    least = needed_s(TRAITS, 0) + TRAITS.longest_gather_s
    assert choose(left_s=least, lane=Lane.BATCH, prices=ALL, traits=TRAITS) == "batch"
    parked = held(deadline_ms=NOW + int(least * 1000))
    assert not late(parked, NOW + int(TRAITS.longest_gather_s * 1000), TRAITS, 0)
    assert late(parked, NOW + int(TRAITS.longest_gather_s * 1000) + 1, TRAITS, 0)
    assert not late(held(), NOW, TRAITS, DAY_S)


def test_a_file_is_closed_when_it_is_full_when_nothing_comes_any_more_or_when_somebody_has_waited_long_enough() -> None:
    quiet, longest = int(TRAITS.gather_s * 1000), int(TRAITS.longest_gather_s * 1000)
    assert not closes([], NOW, TRAITS)
    assert not closes([held(NOW - quiet + 1)], NOW, TRAITS)
    assert closes([held(NOW - quiet)], NOW, TRAITS)
    assert not closes([held(NOW - longest + 1), held(NOW)], NOW, TRAITS)
    assert closes([held(NOW - longest), held(NOW)], NOW, TRAITS)
    assert closes([held()] * 100, NOW, TRAITS)
    assert closes([held(size=1_000)], NOW, TRAITS)


@given(st.lists(st.integers(1, 1_500), max_size=400))
def test_no_file_is_above_the_limits_but_one_of_a_single_line(lines: list[int]) -> None:
    files: list[list[int]] = [[]]
    for line in lines:
        if not fits(len(files[-1]), sum(files[-1]), line, TRAITS):
            files.append([])
        files[-1].append(line)
    assert [line for file in files for line in file] == lines
    assert all(len(file) <= TRAITS.rows and (sum(file) <= TRAITS.file_bytes or len(file) == 1) for file in files)


def test_a_hurried_request_does_not_share_a_file_with_a_patient_one() -> None:
    hour = 3_600_000
    waiting = {"a": held(deadline_ms=NOW + 24 * hour), "b": held(deadline_ms=NOW + 20 * hour), "c": held(deadline_ms=NOW + 3 * hour),
               "d": held(deadline_ms=NOW + 24 * hour, model="other")}  # fmt: skip
    assert sorted(map(sorted, grouped(waiting, NOW).values())) == [["a", "b"], ["c"], ["d"]]


def test_a_batch_is_given_up_in_time_for_the_row_with_the_least_of_it() -> None:
    assert give_up_ms([NOW + 9_000_000, None, NOW + 5_000_000], TRAITS) == NOW + 5_000_000 - int(TRAITS.reserve_s * 1000)
    assert give_up_ms([None], TRAITS) is None


def test_looks_become_rarer_up_to_a_bound() -> None:
    waits = [next_poll_s(n, TRAITS) for n in range(100)]
    assert waits == sorted(waits)
    assert (waits[0], waits[-1]) == (TRAITS.poll_s, TRAITS.longest_poll_s)


def test_what_people_set_takes_the_place_of_a_trait() -> None:
    changed = TRAITS.adjusted(gather_s=2, poll_s=1, turnaround_s=30, reserve_s=90, rows=7)
    assert (changed.gather_s, changed.longest_gather_s, changed.poll_s, changed.longest_poll_s) == (2, 40, 1, 20)
    assert (changed.turnaround_s, changed.reserve_s, changed.rows) == (30, 90, 7)
    assert TRAITS.adjusted() == TRAITS


def test_the_ways_are_compared_by_the_tables_prices_and_a_tier_that_was_asked_for_is_kept() -> None:
    day, body = date(2026, 11, 25), {"messages": [{"role": "user", "content": "x" * 4_000}], "max_tokens": 100}
    mini = Model("gpt-4o-mini", "openai", "gpt-4o-mini", "economy", 100_000, 16_000)
    found = way_prices(mini, body, day)
    assert found.batch is not None
    assert found.batch * 2 == found.sync
    assert way_prices(mini, {**body, "service_tier": "priority"}, day) == WayPrices(found.sync)
    claude = Model("claude-haiku-4-5", "anthropic", "claude-haiku-4-5", "economy", 100_000, 16_000)
    assert way_prices(claude, body, day).flex is None
    assert way_prices(claude, body, day).batch is not None
    own = Model("own", "vllm", "own", "economy", 100_000, 16_000, prices=Prices(Decimal(1), Decimal(1), batch_factor=Decimal("0.3")))
    assert way_prices(own, body, day).flex is None
    with pytest.raises(Unpriced):
        way_prices(Model("no-such", "openai", "no-such", "economy", 1, 1), body, day)

"""A model that keeps failing is left alone for a while, and asked again by one call at a time."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference_engine.pipeline.breaker import Breaker, BreakerPolicy, verdict
from inference_engine.pipeline.errors import Ambiguous, Charged, EngineError, Rejected, Unavailable, Unpriced
from inference_engine.schemas.answers import Usage

POLICY = BreakerPolicy(threshold=5, rest_s=5.0, most_rest_s=60.0)


def opened(now: float = 0.0) -> Breaker:
    breaker = Breaker(POLICY)
    for _ in range(5):
        breaker.failed(now, probe=breaker.began())
    return breaker


def test_it_opens_after_five_failures_in_a_row_and_not_after_four() -> None:
    breaker = Breaker(POLICY)
    for _ in range(4):
        breaker.failed(0.0, probe=breaker.began())
    assert breaker.state(0.0) == "closed"
    breaker.succeeded(probe=False)
    for _ in range(4):
        breaker.failed(0.0, probe=breaker.began())
    assert breaker.state(0.0) == "closed", "a success in between begins the count anew"
    breaker.failed(0.0, probe=breaker.began())
    assert (breaker.state(0.0), breaker.opened) == ("open", 1)


def test_after_its_rest_one_call_tries_and_the_others_wait_for_it() -> None:
    breaker = opened()
    assert breaker.ready_at() == 5.0
    assert breaker.state(4.9) == "open"
    assert breaker.state(5.0) == "half_open"
    assert breaker.began()
    assert breaker.ready_at() == float("inf")
    breaker.succeeded(probe=True)
    assert breaker.state(5.1) == "closed"
    assert not breaker.began()


def test_a_rest_doubles_with_each_try_that_fails_up_to_a_minute() -> None:
    breaker, now, rests = opened(), 0.0, []
    for _ in range(6):
        now = breaker.ready_at()
        breaker.failed(now, probe=breaker.began())
        rests.append(breaker.ready_at() - now)
    assert rests == [10, 20, 40, 60, 60, 60]
    breaker.succeeded(probe=breaker.began())
    for _ in range(5):
        breaker.failed(now, probe=breaker.began())
    assert breaker.ready_at() - now == 5, "once well, it begins anew"


def test_calls_that_were_sent_before_it_opened_change_nothing() -> None:
    breaker = opened()
    breaker.succeeded(probe=False)
    assert breaker.state(1.0) == "open"
    breaker.failed(1.0, probe=False)
    assert (breaker.ready_at(), breaker.opened) == (5.0, 1)


def test_a_try_that_says_nothing_makes_room_for_the_next_one() -> None:
    breaker = opened()
    breaker.gone(probe=breaker.began())
    assert breaker.state(6.0) == "half_open"
    assert breaker.ready_at() <= 6.0


@pytest.mark.parametrize(
    ("error", "well"),
    [
        (None, True),
        (Unavailable("429", rate_limited=True), None),
        (Unavailable("503"), False),
        (Ambiguous("500"), False),
        (Charged("empty", usage=Usage(input_tokens=1, output_tokens=1), service_tier="standard"), False),
        (Rejected("too long", code="context_length_exceeded"), True),
        (Rejected("key", code="provider_auth"), False),
        (Rejected("no such model", code="model_not_found"), False),
        (Unpriced("a tier"), None),
    ],
)
def test_what_a_call_says_about_its_model(error: EngineError | None, well: bool | None) -> None:
    assert verdict(error) is well


STEPS = st.lists(st.tuples(st.sampled_from(["begin", "fail", "succeed", "gone"]), st.floats(0, 30)), max_size=80)


@given(STEPS)
def test_in_any_order_of_events_at_most_one_call_tries_and_it_never_shuts_for_good(steps: list[tuple[str, float]]) -> None:
    breaker, now = Breaker(POLICY), 0.0
    under_way: list[bool] = []
    for what, later in steps:
        now += later
        if what == "begin":
            if breaker.ready_at() <= now:
                under_way.append(breaker.began())
        elif under_way:
            probe = under_way.pop(0)
            if what == "fail":
                breaker.failed(now, probe=probe)
            elif what == "succeed":
                breaker.succeeded(probe=probe)
            else:
                breaker.gone(probe=probe)
        assert sum(under_way) <= 1
        assert breaker.ready_at() < float("inf") or any(under_way), "whoever waits is waited for by somebody"
        assert breaker.state(now) != "closed" or breaker.ready_at() == float("-inf")

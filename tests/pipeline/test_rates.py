"""A provider's limit is used to the full and not exceeded, whatever it counts and however late it says so."""

import heapq
from collections import deque
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inference_engine.pipeline.rates import KeyRates, Kind, Pace, RateSeen, amounts, per_minute


@dataclass
class TokenBucket:
    """A provider that counts in a bucket of `burst_s`, as OpenAI: what is asked for, or as Anthropic: what is used."""

    limit: float
    burst_s: float = 1.0
    level: float = field(init=False)
    seen: float = 0.0
    counted: float = 0.0

    def __post_init__(self) -> None:
        self.level = self.capacity

    @property
    def capacity(self) -> float:
        return self.limit * self.burst_s / 60

    def fill(self, now: float) -> None:
        self.level = min(self.capacity, self.level + (now - self.seen) * self.limit / 60)
        self.seen = now

    def take(self, now: float, amount: float) -> bool:
        self.fill(now)
        if self.level < min(amount, self.capacity):
            return False
        self.level -= amount
        self.counted += amount
        return True

    def tells(self, now: float) -> tuple[float, float]:
        self.fill(now)
        return max(0, int(self.level)), (self.capacity - self.level) * 60 / self.limit


@dataclass
class SlidingWindow:
    """A provider that counts the last 60 s."""

    limit: float
    taken: deque[tuple[float, float]] = field(default_factory=deque)
    counted: float = 0.0

    def take(self, now: float, amount: float) -> bool:
        while self.taken and self.taken[0][0] <= now - 60:
            self.taken.popleft()
        if sum(a for _, a in self.taken) + amount > self.limit:
            return False
        self.taken.append((now, amount))
        self.counted += amount
        return True

    def tells(self, now: float) -> tuple[float, float]:
        return max(0, int(self.limit - sum(a for at, a in self.taken if at > now - 60))), 0.0


@dataclass(frozen=True)
class Played:
    """How a simulated hour, or a part of it, went."""

    counted: float
    admitted: int
    refused: int

    @property
    def refusals(self) -> float:
        return self.refused / (self.refused + self.admitted)


def play(
    provider: TokenBucket | SlidingWindow,
    rates: KeyRates,
    *,
    kind: Kind,
    seconds: float,
    latency_s: float,
    estimate: float = 1.0,
    counts: float = 1.0,
    tells: bool = True,
    told_at_start: bool = False,
    since: float = 0.0,
) -> Played:
    """Calls without end: each counts `counts` where `estimate` was expected. What was counted before `since` is left out."""
    now, paused, counted_before, admitted, refused = 0.0, 0.0, 0.0, 0, 0
    ends: list[tuple[float, int, float, dict[Kind, float], tuple[float, float] | None, bool]] = []
    number = 0
    estimated = amounts(estimate, 0)
    while now < seconds:
        begin = max(paused, rates.ready_at())
        if ends and ends[0][0] <= max(now, begin):
            now, _, began, taken, told, ok = heapq.heappop(ends)
            told = told or provider.tells(now)
            rates.settle(taken, estimated, None if ok else amounts(0, 0))
            rates.heard()
            if tells:
                limit = provider.limit
                rates.observe([RateSeen(kind, limit, *told)] if told[1] else [RateSeen(kind, limit, told[0])], now, now - began)
            if not ok:
                rates.refused(now)
                paused = max(paused, now + 0.1)
            continue
        if begin > now:
            rates.held()
        now = max(now, begin)
        taken = rates.take(estimated, now)
        ok = provider.take(now, 1.0 if kind == "requests" else counts)
        if now < since:
            counted_before = provider.counted
        else:
            admitted, refused = admitted + ok, refused + (not ok)
        number += 1
        told = provider.tells(now) if told_at_start else None
        heapq.heappush(ends, (now + (latency_s if ok else 0.01), number, now, taken, told, ok))
    return Played(provider.counted - counted_before, admitted, refused)


@pytest.mark.parametrize("told_at_start", [True, False])
@pytest.mark.parametrize("latency_s", [0.2, 2.0, 20.0])
@pytest.mark.parametrize("provider", [TokenBucket(600), TokenBucket(600, burst_s=60), TokenBucket(6_000), TokenBucket(120)], ids=str)
def test_a_limit_of_requests_is_used_to_98_percent_and_less_than_1_percent_are_refused(
    provider: TokenBucket, latency_s: float, told_at_start: bool
) -> None:
    again = TokenBucket(provider.limit, provider.burst_s)
    played = play(
        again, KeyRates({"requests": again.limit}), kind="requests", seconds=300, latency_s=latency_s, told_at_start=told_at_start
    )
    assert played.counted >= 0.98 * again.limit * 300 / 60
    assert played.refusals < 0.01


def test_where_the_bucket_holds_one_call_nothing_can_be_steered_by_and_a_margin_is_kept() -> None:
    played = play(TokenBucket(60), KeyRates({"requests": 60}), kind="requests", seconds=600, latency_s=0.2, told_at_start=True)
    assert played.counted >= 0.97 * 600
    assert played.refusals < 0.01


@pytest.mark.parametrize("latency_s", [0.2, 2.0])
def test_a_provider_that_counts_the_last_minute_is_used_to_98_percent_too(latency_s: float) -> None:
    provider = SlidingWindow(600)
    played = play(provider, KeyRates({"requests": 600}), kind="requests", seconds=600, latency_s=latency_s)
    assert played.counted >= 0.98 * 600 * 10
    assert played.refusals < 0.01


@pytest.mark.parametrize("counts", [100, 250, 400])
@pytest.mark.parametrize("latency_s", [0.2, 2.0])
def test_however_a_provider_counts_tokens_its_limit_is_used_to_98_percent(latency_s: float, counts: float) -> None:
    """Calls estimated at 250 tokens count 100, 250 or 400: after a minute of learning that makes no difference."""
    provider = TokenBucket(120_000)
    rates = KeyRates({"tokens": 120_000})
    played = play(
        provider, rates, kind="tokens", seconds=400, latency_s=latency_s, estimate=250, counts=counts, since=100, told_at_start=True
    )
    assert played.counted >= 0.98 * 120_000 * 5
    assert played.refusals < 0.01


def test_a_limit_that_nobody_configured_is_learned_from_the_first_reply() -> None:
    provider = TokenBucket(600, burst_s=60)
    played = play(provider, KeyRates({}, careful=True), kind="requests", seconds=300, latency_s=0.5, told_at_start=True)
    assert played.counted >= 0.98 * 600 * 5
    assert played.refusals < 0.01


def test_where_replies_say_nothing_the_configured_limit_is_kept_with_a_margin() -> None:
    provider = TokenBucket(600)
    played = play(provider, KeyRates({"requests": 600}), kind="requests", seconds=300, latency_s=0.2, tells=False)
    assert 0.97 * 3_000 <= played.counted <= 3_000
    assert played.refused == 0


def test_a_lower_limit_of_the_operators_own_is_kept_whatever_the_provider_allows() -> None:
    provider = TokenBucket(6_000)
    played = play(provider, KeyRates({"requests": 600}), kind="requests", seconds=300, latency_s=0.2)
    assert played.counted <= 600 * 5


@given(st.floats(1, 1e6), st.integers(1, 1_000))
def test_a_limit_per_day_in_the_same_headers_is_told_by_the_time_until_it_is_full(limit: float, missing: int) -> None:
    """OpenAI's free accounts: 200 requests, 199 left, full again in 7 min 12 s."""
    missing = min(missing, int(limit))
    daily = RateSeen("requests", limit, limit - missing, missing / limit * 86_400)
    minutely = RateSeen("requests", limit, limit - missing, missing / limit * 60)
    assert missing == 0 or per_minute(daily) == pytest.approx(limit / 1440, rel=1e-3) or missing / limit * 1440 < 0.6
    assert per_minute(minutely) == limit


@settings(max_examples=200)
@given(
    st.lists(
        st.tuples(st.sampled_from(["take", "observe", "refused", "share", "give"]), st.floats(0, 1e4), st.floats(0.0, 1e3)), max_size=60
    )
)
def test_whatever_is_heard_the_rate_stays_positive_and_the_wait_finite(steps: list[tuple[str, float, float]]) -> None:
    pace, now = Pace("tokens", 1_000), 0.0
    for what, number, more in steps:
        now += more / 100
        if what == "take":
            pace.take(number, now)
        elif what == "give":
            pace.give_back(number)
        elif what == "observe":
            pace.binding = number > 5_000
            pace.observe(RateSeen("tokens", number + 1, more, more / 7 or None), now, more)
        elif what == "refused":
            pace.refused(now)
        else:
            pace.set_share(max(0.01, more / 1e3))
        assert 0 < pace.per_second < 1e6
        assert pace.ready_at() < now + 1e12

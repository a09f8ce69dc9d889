"""A provider's limits per minute: how fast calls may begin, learned from what its replies say.

    configured, learned limit -> rate
    remaining, reset          -> how full the provider's bucket is -> trim of the rate

Starts are spaced out evenly (generic cell rate algorithm, ITU-T I.371), so that a provider that counts over a sliding window sees no burst.
Where replies say what remains, the rate is steered so that `HEADROOM_S` of it are left in the provider's bucket: never full, so that
nothing of the limit is lost, and never empty, so that nothing is refused (a proportional-integral controller; its gain falls with the
delay of what it sees). All times are seconds of one monotonic clock.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

Kind = Literal["requests", "tokens", "input_tokens", "output_tokens"]
KINDS: tuple[Kind, ...] = ("requests", "tokens", "input_tokens", "output_tokens")

HEADROOM_S = 0.5
"""Of the limit's rate: what should be left in the provider's bucket."""
BLIND_USE = 0.98
"""What is dared of a limit where replies don't say what remains: clocks and counting differ."""
_TRIM: Mapping[bool, tuple[float, float]] = {True: (0.5, 1.005), False: (0.2, 5.0)}
"""Bounds of the trim: a request is a request, but how a provider counts tokens is its own affair."""
_LEAD: Mapping[bool, tuple[float, float]] = {True: (0.5, 1.01), False: (0.5, 1.03)}
"""Of requests, of tokens. Sent exactly as fast as it fills, a bucket loses nothing: faster than that is needed only for what was missed,
and for tokens while the trim is still learning what a call counts."""
_GAIN = 0.4
_REFUSED = 0.9
FIRST_PER_S = 16
"""Calls that begin at once, and per second, before anything is known of a limit."""
_FULL = 0.9


@dataclass(frozen=True, slots=True)
class RateSeen:
    """What a reply says about one limit of its model and key."""

    kind: Kind
    limit: float
    remaining: float
    reset_s: float | None = None
    """Until it is full again."""


def per_minute(seen: RateSeen) -> float:
    """The rate at which the limit fills. Usually the limit is per minute; where the time until it is full says otherwise (limits per day
    travel in the same headers), what is missing over that time."""
    missing = seen.limit - seen.remaining
    if seen.reset_s and missing > 0 and seen.remaining + seen.reset_s * seen.limit / 60 > 1.5 * seen.limit + 1:
        return 60 * missing / seen.reset_s
    return seen.limit


class Pace:
    """One limit. `configured`: per minute, None where only the replies say."""

    def __init__(self, kind: Kind, configured: float | None, *, share: float = 1.0, use: float = BLIND_USE, burst_s: float = 0.5) -> None:
        """`share`: our part of the limit. `use`: see `BLIND_USE`. `burst_s`: how much unused time may be caught up, so that a busy event
        loop costs no throughput."""
        self.kind: Kind = kind
        self.configured = configured
        self.learned: float | None = None
        self._use, self._burst, self._share = use, burst_s, share
        self._free_at = float("-inf")
        self._trim = self._lead = 1.0
        self._capacity = self._largest = 0.0
        self._seen_at: float | None = None
        self._refused_at = float("-inf")
        self.binding = False
        """Was it this limit that calls waited for, since the last reply?"""

    @property
    def per_minute(self) -> float:
        """The whole limit; infinite where there is none."""
        known = [limit for limit in (self.configured, self.learned) if limit is not None]
        return min(known, default=float("inf"))

    @property
    def reported(self) -> bool:
        """Do replies say what remains of it?"""
        return self._seen_at is not None

    @property
    def per_second(self) -> float:
        """What we may begin now."""
        use = 1.0 if self.reported else self._use
        return max(self.per_minute / 60 * self._share * use * self._trim * self._lead, 1e-9)

    def set_share(self, share: float) -> None:
        self._share = share

    def ready_at(self) -> float:
        return self._free_at

    def take(self, amount: float, now: float) -> None:
        self._free_at = max(self._free_at, now - self._burst) + amount / self.per_second
        self._largest = max(self._largest, amount)

    def give_back(self, amount: float) -> None:
        """What was taken and not used; negative where more was used."""
        self._free_at -= amount / self.per_second

    def observe(self, seen: RateSeen, now: float, delay_s: float) -> None:
        """`delay_s`: how old what the reply says may be: the call's duration."""
        limit = per_minute(seen)
        self.learned = limit
        if self.configured is not None and self.configured < limit:
            # The operator leaves the rest of the limit to others: what remains of it says nothing about our part.
            self._seen_at, self._trim, self._lead = None, 1.0, 1.0
            return
        rate = limit / 60
        left = seen.remaining if seen.reset_s is None else max(seen.remaining, self._capacity - seen.reset_s * rate)
        self._capacity = max(self._capacity, seen.remaining + (0.0 if seen.reset_s is None else min(seen.reset_s * rate, limit)))
        since = 0.0 if self._seen_at is None else min(now - self._seen_at, 1.0)
        self._seen_at = now
        self._steer(left, rate, max(since, 0.0), delay_s)
        self.binding = False

    def _steer(self, left: float, rate: float, since_s: float, delay_s: float) -> None:
        spare = self._capacity - self._largest
        if spare < self._largest:
            # A bucket of hardly more than one call is empty after each: nothing can be seen of how full it is.
            self._lead, self._trim = self._use, min(1.0, self._trim + 0.003 * since_s)
            return
        wanted_s = min(HEADROOM_S, spare / rate / 2)
        gain = _GAIN / (1 + 1.3 * delay_s)
        error = left / rate - wanted_s
        slowest, fastest = _LEAD[self.kind == "requests"]
        self._lead = min(fastest, max(slowest, 1 + gain * error))
        if error > 0 and not self.binding:
            return  # nobody was held back by it: a full bucket is no sign of being too slow
        low, high = _TRIM[self.kind == "requests"]
        growth = gain * gain / 4 * max(-1.0, min(1.0, error))
        if self.kind != "requests" and left >= _FULL * self._capacity:
            growth = max(growth, gain / 3)
        self._trim = min(high, max(low, self._trim * (1 + growth * since_s)))

    def refused(self, now: float) -> None:
        """The provider said that the limit is exceeded: a step back, once for all calls that were told so at a time."""
        if now - self._refused_at > 1.0:
            self._refused_at = now
            self._trim = max(_TRIM[self.kind == "requests"][0], self._trim * _REFUSED)


class KeyRates:
    """All limits of one model with one key."""

    def __init__(
        self, configured: Mapping[Kind, float | None], *, share: float = 1.0, use: float = BLIND_USE, careful: bool = False
    ) -> None:
        """`careful`: the provider's replies will say what its limits are, and until the first one nothing is known: begin slowly."""
        self._share, self._use = share, use
        unknown = careful and configured.get("requests") is None
        self._first = Pace("requests", 60 * FIRST_PER_S, use=1.0, burst_s=1.0) if unknown else None
        self._paces: dict[Kind, Pace] = {
            kind: Pace(kind, limit, share=share, use=use) for kind, limit in configured.items() if limit is not None
        }
        self.usual = 1.0
        """Tokens used per token estimated, a running mean."""

    @property
    def paces(self) -> Iterable[Pace]:
        return self._paces.values()

    def set_share(self, share: float) -> None:
        self._share = share
        for pace in self._paces.values():
            pace.set_share(share)

    def ready_at(self) -> float:
        """When the next call may begin."""
        ready = float("-inf") if self._first is None else self._first.ready_at()
        for pace in self._paces.values():
            ready = max(ready, pace.ready_at())
        return ready

    def held(self) -> None:
        """Calls wait for the limit that is ready last."""
        latest = max(self._paces.values(), key=Pace.ready_at, default=None)
        if latest is not None:
            latest.binding = True

    def heard(self) -> None:
        """A reply came: what the provider has to say about its limits is known."""
        self._first = None

    def take(self, amounts: Mapping[Kind, float], now: float) -> dict[Kind, float]:
        """Reserves for one call; returns what was taken, to be settled."""
        taken: dict[Kind, float] = {}
        if self._first is not None:
            self._first.take(1, now)
        for kind, pace in self._paces.items():
            amount = amounts[kind]
            # A provider that reports its total of tokens counts what is asked for, and gives nothing back.
            if kind != "requests" and not (kind == "tokens" and pace.reported):
                amount *= self.usual
            pace.take(amount, now)
            taken[kind] = amount
        return taken

    def settle(self, taken: Mapping[Kind, float], estimated: Mapping[Kind, float], used: Mapping[Kind, float] | None) -> None:
        """The call is over. `used`: by its usage; zeros where it was turned away; None: nobody knows, it counts as taken. A request counts
        even where it was turned away."""
        if used is None:
            return
        for kind, amount in taken.items():
            pace = self._paces.get(kind)
            kept = kind == "requests" or (kind == "tokens" and used["tokens"] > 0 and pace is not None and pace.reported)
            if pace is not None and not kept:
                pace.give_back(amount - used[kind])
        if used["tokens"] and estimated["tokens"]:
            self.usual += 0.05 * (used["tokens"] / estimated["tokens"] - self.usual)

    def observe(self, seen: Iterable[RateSeen], now: float, delay_s: float) -> None:
        for one in seen:
            if one.limit <= 0:
                continue
            pace = self._paces.get(one.kind)
            if pace is None:
                pace = self._paces[one.kind] = Pace(one.kind, None, share=self._share, use=self._use)
            pace.observe(one, now, delay_s)

    def refused(self, now: float) -> None:
        binding = [pace for pace in self._paces.values() if pace.binding] or list(self._paces.values())
        for pace in binding:
            pace.refused(now)


def amounts(input_tokens: float, output_tokens: float) -> dict[Kind, float]:
    """What one call counts against each limit."""
    return {
        "requests": 1,
        "tokens": input_tokens + output_tokens,
        "input_tokens": input_tokens,
        "output_tokens": output_tokens,
    }

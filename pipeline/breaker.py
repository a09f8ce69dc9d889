"""A circuit breaker per model: after some failures in a row nobody asks it for a while, then one call tries.

    closed     -> open       after `threshold` failures in a row
    open       -> half_open  after a rest
    half_open  -> closed     the one call that is let through succeeded
               -> open       it failed: the rest doubles

After Nygard, Release It! (2007). Times are seconds of one monotonic clock.
"""

from dataclasses import dataclass
from typing import Literal

from .errors import EngineError, Rejected, Unavailable, Unpriced

State = Literal["closed", "open", "half_open"]

_OF_ALL_REQUESTS = frozenset({"provider_auth", "model_not_found", "provider_redirect"})
"""Refusals that are no request's own fault: every other one would hear the same."""


@dataclass(frozen=True, slots=True)
class BreakerPolicy:
    """When it opens, and for how long.

    The rests are short: calls fail for reasons of their own, too, and while half of 60 prompts did, rests of up to a minute kept the others
    waiting for more than two. What may be paid for is bounded by the attempts of each request, not by this.
    """

    threshold: int = 5
    rest_s: float = 1.0
    most_rest_s: float = 2.0


class Breaker:
    """One model's."""

    def __init__(self, policy: BreakerPolicy) -> None:
        self.policy = policy
        self.failures = 0
        """In a row."""
        self.opened = 0
        """How often, in all."""
        self._rest_s = policy.rest_s
        self._until: float | None = None
        self._probing = False

    def state(self, now: float) -> State:
        if self._until is None:
            return "closed"
        return "half_open" if self._probing or now >= self._until else "open"

    def ready_at(self) -> float:
        """When the next call may begin: infinite while the one that tries is under way."""
        if self._probing:
            return float("inf")
        return float("-inf") if self._until is None else self._until

    def began(self) -> bool:
        """A call begins, as `ready_at` allowed. True: it is the one that tries, and must be told of by `succeeded`, `failed` or `gone`."""
        if self._until is not None:
            self._probing = True
        return self._probing

    def succeeded(self, *, probe: bool) -> None:
        if self._until is not None and not probe:
            return  # it was sent before the others failed
        self.failures, self._until, self._probing, self._rest_s = 0, None, False, self.policy.rest_s

    def failed(self, now: float, *, probe: bool) -> None:
        if self._until is not None and not probe:
            return
        self.failures += 1
        if probe:
            self._rest_s = min(self.policy.most_rest_s, 2 * self._rest_s)
        if probe or self.failures >= self.policy.threshold:
            self._until, self._probing = now + self._rest_s, False
            self.opened += not probe

    def gone(self, *, probe: bool) -> None:
        """The call says nothing about the model: it was not sent, or only told to come later."""
        if probe:
            self._probing = False


def verdict(error: EngineError | None) -> bool | None:
    """What the end of a call says about its model: well, not well, or nothing."""
    if error is None:
        return True
    if isinstance(error, Unavailable):
        return None if error.rate_limited else False
    if isinstance(error, Rejected):
        return error.code not in _OF_ALL_REQUESTS
    if isinstance(error, Unpriced):
        return None
    # Charged: paid for, and of no use; Ambiguous: perhaps so.
    return False

"""When a window of pending prompts closes, per lane.

Waiting lets prompts meet: larger windows merge more and embed faster, and each millisecond of it is latency. So express hardly waits.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import exp
from typing import Literal

from ..schemas.record import Lane

Close = Literal["full", "old", "nobody_else"]


@dataclass(frozen=True, slots=True)
class WindowPolicy:
    """One lane's window. `target` is the size at which it closes, within min_size and max_size."""

    min_size: int
    max_size: int
    max_wait_ms: int
    target: int

    def __post_init__(self) -> None:
        if not 1 <= self.min_size <= self.target <= self.max_size:
            raise ValueError(
                f"a window of {self.min_size} to {self.max_size} prompts that closes at {self.target} can't be: "
                "BATCH_MIN_SIZE must be at least 1 and at most BATCH_MAX_SIZE"
            )
        if self.max_wait_ms < 0:
            raise ValueError(f"BATCH_MAX_WAIT_MS is {self.max_wait_ms}, but nobody waits less than 0 ms")


def window_policies(
    *, min_size: int = 4, max_size: int = 64, max_wait_ms: int = 50, express_max_wait_ms: int = 10, batch_max_wait_ms: int = 200
) -> Mapping[Lane, WindowPolicy]:
    """The lanes' windows from BATCH_MIN_SIZE, BATCH_MAX_SIZE and BATCH_MAX_WAIT_MS.

    The defaults give express 1-4 and 10 ms, standard 4-32 and 50 ms, batch 32-64 and 200 ms. Other settings keep these proportions:
    max_size is the batch lane's, half of it the standard lane's, a sixteenth of it express's; max_wait_ms is the standard lane's,
    express waits no longer than that, the batch lane no shorter.
    """
    if not 1 <= min_size <= max_size:
        raise ValueError(f"BATCH_MIN_SIZE is {min_size} and BATCH_MAX_SIZE {max_size}: set 1 <= BATCH_MIN_SIZE <= BATCH_MAX_SIZE")
    express, standard = max(1, max_size // 16), max(min_size, max_size // 2)
    return {
        Lane.EXPRESS: _fixed(1, express, min(express_max_wait_ms, max_wait_ms)),
        Lane.STANDARD: _fixed(min_size, standard, max_wait_ms),
        Lane.BATCH: _fixed(max(min_size, max_size // 2), max_size, max(max_wait_ms, batch_max_wait_ms)),
    }


def _fixed(min_size: int, max_size: int, max_wait_ms: int) -> WindowPolicy:
    return WindowPolicy(min_size, max_size, max_wait_ms, target=max_size)


def should_close(policy: WindowPolicy, *, size: int, age_ms: float, wait_ms: float | None = None, more_queued: bool = True) -> Close | None:
    """Why the window closes now, or None: it goes on waiting.

    `size` prompts pend, the oldest for `age_ms` of `wait_ms` (None: what the lane allows). `more_queued`: whether prompts are known to be
    on their way; without them min_size is enough.
    """
    if size <= 0:
        return None
    if size >= policy.target:
        return "full"
    if age_ms >= min(policy.max_wait_ms, policy.max_wait_ms if wait_ms is None else wait_ms):
        return "old"
    if not more_queued and size >= policy.min_size:
        return "nobody_else"
    return None


SHORTEST_MS = 10.0
"""So long a window waits where nobody else is to be expected."""


def wait_ms(policy: WindowPolicy, *, per_s: float, calls_wait: bool = False) -> float:
    """How long a window that opens now waits at most, by the load: `per_s` prompts of its lane come per second.

    As long as it takes to fill it, where others come at all; as long as the lane allows, where calls wait for the provider's limits (as its
    replies tell them) anyway, so that waiting costs nothing and merges more.
    """
    shortest = min(SHORTEST_MS, policy.max_wait_ms)
    if calls_wait:
        return float(policy.max_wait_ms)
    if per_s * policy.max_wait_ms < 1000:
        return float(shortest)
    return min(float(policy.max_wait_ms), max(shortest, 1000 * policy.target / per_s))


@dataclass(slots=True)
class Arrivals:
    """How many come per second: a mean that forgets within about a second. Times in seconds of one monotonic clock."""

    per_s: float = 0.0
    at: float = float("-inf")
    memory_s: float = 1.0

    def add(self, count: int, now: float) -> float:
        """Counts, and returns the rate."""
        self.per_s = self.per_s * exp(-max(0.0, now - self.at) / self.memory_s) + count / self.memory_s
        self.at = now
        return self.per_s

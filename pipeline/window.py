"""When a window of pending prompts closes, per lane.

Waiting lets prompts meet: larger windows merge more and embed faster, and each millisecond of it is latency. So express hardly waits.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, Protocol

from ..schemas.record import Lane

Close = Literal["full", "old", "no_permits", "nobody_else"]


@dataclass(frozen=True, slots=True)
class WindowPolicy:
    """One lane's window. `target` is the size at which it closes, within min_size and max_size; a `SizeLaw` may move it."""

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


def should_close(
    policy: WindowPolicy, *, size: int, age_ms: float, permits_free: int | None = None, more_queued: bool = True
) -> Close | None:
    """Why the window closes now, or None: it goes on waiting.

    `size` prompts pend, the oldest for `age_ms`. `permits_free`: how many more prompts this lane may hold (None: no limit); at 0 nobody can
    come in, so waiting gains nothing. `more_queued`: whether prompts are known to be on their way; without them min_size is enough.
    """
    if size <= 0:
        return None
    if size >= policy.target:
        return "full"
    if age_ms >= policy.max_wait_ms:
        return "old"
    if permits_free is not None and permits_free <= 0:
        return "no_permits"
    if not more_queued and size >= policy.min_size:
        return "nobody_else"
    return None


def wait_ms(policy: WindowPolicy, age_ms: float) -> float:
    """How long the window may still wait."""
    return max(0.0, policy.max_wait_ms - age_ms)


class SizeLaw(Protocol):
    """How the target size follows what was observed."""

    def next_target(self, policy: WindowPolicy, latency_p95_ms: float) -> int: ...


@dataclass(frozen=True, slots=True)
class FixedSize:
    """The target stays where it is, whatever the latency."""

    def next_target(self, policy: WindowPolicy, latency_p95_ms: float) -> int:
        return policy.target


def adapt(policy: WindowPolicy, law: SizeLaw, latency_p95_ms: float) -> WindowPolicy:
    """The window with the size that the law asks for, kept within its bounds."""
    target = law.next_target(policy, latency_p95_ms)
    return replace(policy, target=min(policy.max_size, max(policy.min_size, target)))

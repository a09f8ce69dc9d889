"""Waits on conditions, never for a span of time."""

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

LOOK_EVERY_S = 0.05


def until(condition: Callable[[], T | None], what: str, *, within_s: float = 60.0) -> T:
    """The first result of `condition` that is true. Raises AssertionError, naming `what`, where none came in time."""
    deadline = time.monotonic() + within_s
    while True:
        found = condition()
        if found:
            return found
        if time.monotonic() > deadline:
            raise AssertionError(f"did not happen within {within_s:.0f} s: {what}")
        time.sleep(LOOK_EVERY_S)

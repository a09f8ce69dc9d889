"""Named places at which a fault test kills the process, as a power cut would: `CRASH_AT=after_send:3` dies at the third passage."""

import os
import signal
from dataclasses import dataclass

from ..pipeline.errors import ConfigError

POINTS = frozenset({"before_intent", "after_intent", "after_send", "after_completion", "before_ack"})


@dataclass(slots=True)
class _Armed:
    point: str
    left: int


def _read(value: str | None) -> _Armed | None:
    if not value:
        return None
    point, _, count = value.partition(":")
    if point not in POINTS or not (count or "1").isdecimal():
        raise ConfigError(f"CRASH_AT={value!r} names no crash point; use one of {', '.join(sorted(POINTS))}, with :N for its Nth passage")
    return _Armed(point, int(count or "1"))


_armed = _read(os.environ.get("CRASH_AT"))


def crash_at(point: str) -> None:
    """Does nothing, unless the environment asked for a crash here."""
    if _armed is None or _armed.point != point:
        return
    _armed.left -= 1
    if _armed.left <= 0:
        os.kill(os.getpid(), signal.SIGKILL)

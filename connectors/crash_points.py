"""Named places at which a fault test kills the process, as a power cut would: `CRASH_AT=after_send:3` dies at the third passage."""

import os
import signal
from collections.abc import Mapping
from dataclasses import dataclass

from ..pipeline.errors import ConfigError

POINTS: Mapping[str, str] = {
    "after_lookup": "ingest: the lookup is durable, the request is not acknowledged",
    "after_join": "exact: the waiter's row and the miss are durable, the lookup is not acknowledged",
    "after_route": "route: the calls are durable, the misses are not acknowledged",
    "before_intent": "call: everything is decided, nothing is written",
    "after_intent": "call: the intent is committed, nothing is sent",
    "after_send": "call: the answer is here and paid for, nothing is written",
    "after_held_back": "call: an answer that is not given yet is durable, the next model is not asked",
    "after_completion": "call: the completion is durable, nothing is acknowledged",
    "before_ack": "call: done, not acknowledged",
    "after_parked": "call: the ledger owns the call, its packet is not acknowledged",
    "before_prepared": "batch: the file is at the provider, nothing is written",
    "after_prepared": "batch: its intents are committed, nothing is submitted",
    "after_submit": "batch: the provider works on it, nobody has written that down",
    "after_submitted": "batch: the provider's id is durable",
    "in_collection": "batch: the outcomes of some of its rows are durable",
    "after_collection": "batch: the outcomes of all of its rows are durable, its files are still there",
    "after_forget": "batch: its files are deleted, and it is not closed",
    "after_outcome": "respond: the answer and its cost are durable, the completion is not acknowledged",
    "in_fan_out": "exact: some of those who wait for an answer have been sent it",
    "after_fan_out": "exact: everyone has it, and their rows still say that they wait",
}
"""Name -> the stage, and what is durable there."""

OF_BATCHES = frozenset({"after_parked", *(point for point, what in POINTS.items() if what.startswith("batch:"))})
"""Passed only where calls go into provider batches."""
OF_REFUSALS = frozenset({"after_held_back"})
"""Passed only where a model refuses, or is cut off, and another one may be asked."""


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

"""What a learner knows, as a value that can be kept: a snapshot, and its packed form of a few hundred kilobytes.

    Learner.state() -> LearnerState -> pack -> bytes -> unpack -> LearnerState -> Learner.restored

A learner that was restored decides, audits and learns as the one that was kept. Floats travel as they are (8 bytes each): rounded
features could fall on the other side of a threshold.
"""

import io
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson

from .drift import DriftMonitor

VERSION = 2
_READABLE = (1, 2)
"""1 had fewer sums of the monitors, and nothing on fallbacks of all scopes."""

Row = tuple[float, float, float, float]
"""Cosine, -log(1 - cosine), margin, share of the same group: the features without the bias."""


@dataclass(frozen=True, slots=True)
class Lesson:
    """One compared answer."""

    row: Row
    agrees: bool
    weight: float
    scope: str
    at_ms: int


Seen = tuple[str, Row] | None
"""Scope and best candidate of one request; None where it had none."""


@dataclass(frozen=True, slots=True)
class LearnerState:
    """All of a learner but its settings, which may change from one start to the next."""

    promise: str
    """The bound for which the threshold was found, in words."""
    weights: tuple[float, ...]
    threshold: float
    floor: float
    offsets: Mapping[str, float]
    lessons: tuple[Lesson, ...]
    seen: tuple[Seen, ...]
    since_fit: int
    since_start: int
    audit_debt: tuple[float, ...]
    audit_scale: float
    drift: DriftMonitor
    drift_by_scope: Mapping[str, DriftMonitor]
    """Those asked longest ago first."""
    trusted_all: int
    trusted: Mapping[str, int]
    fell: Mapping[str, int]
    resting: Mapping[str, int]
    fell_all: int
    """Times that all scopes together fell back, one soon after the other."""
    resting_all: int
    groups: Mapping[str, str]
    """Point to the name of its answer group."""
    groups_made: int
    judge_votes: int
    judge_minority: int


def pack(state: LearnerState) -> bytes:
    """The state as a compressed archive of arrays. CPU-bound, tens of milliseconds: call it in a thread."""
    scopes: dict[str, int] = {}

    def number(scope: str) -> int:
        return scopes.setdefault(scope, len(scopes))

    lessons, seen = state.lessons, state.seen
    arrays = {
        "lesson_rows": _rows([lesson.row for lesson in lessons]),
        "lesson_agrees": np.array([lesson.agrees for lesson in lessons], dtype=np.bool_),
        "lesson_weights": np.array([lesson.weight for lesson in lessons], dtype="<f8"),
        "lesson_scopes": np.array([number(lesson.scope) for lesson in lessons], dtype="<i4"),
        "lesson_at_ms": np.array([lesson.at_ms for lesson in lessons], dtype="<i8"),
        "seen_rows": _rows([(0.0, 0.0, 0.0, 0.0) if s is None else s[1] for s in seen]),
        "seen_scopes": np.array([-1 if s is None else number(s[0]) for s in seen], dtype="<i4"),
    }
    head = {
        "v": VERSION,
        "promise": state.promise,
        "scopes": list(scopes),
        "weights": state.weights,
        "threshold": state.threshold,
        "floor": state.floor,
        "offsets": dict(state.offsets),
        "since": [state.since_fit, state.since_start],
        "audit": [list(state.audit_debt), state.audit_scale],
        "drift": _monitor(state.drift),
        "drift_by_scope": [[scope, _monitor(m)] for scope, m in state.drift_by_scope.items()],
        "trusted_all": state.trusted_all,
        "trusted": dict(state.trusted),
        "fell": dict(state.fell),
        "resting": dict(state.resting),
        "all": [state.fell_all, state.resting_all],
        "groups": dict(state.groups),
        "judge": [state.groups_made, state.judge_votes, state.judge_minority],
    }
    out = io.BytesIO()
    np.savez_compressed(out, allow_pickle=False, head=np.frombuffer(orjson.dumps(head), dtype=np.uint8), **arrays)
    return out.getvalue()


def unpack(raw: bytes) -> LearnerState:
    """Raises `ValueError` where the bytes are no state that this version understands."""
    version: object = None
    try:
        with np.load(io.BytesIO(raw), allow_pickle=False) as archive:
            head: dict[str, Any] = orjson.loads(archive["head"].tobytes())
            version = head["v"]
            if version in _READABLE:
                return _state(head, {name: archive[name] for name in archive.files if name != "head"})
    except (KeyError, TypeError, IndexError, ValueError, AttributeError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"the bytes are not the state of a learned decision: {error!r}") from error
    raise ValueError(f"the state of the learned decision has version {version}, this program understands {_READABLE}")


def _state(head: dict[str, Any], arrays: dict[str, Any]) -> LearnerState:
    scopes: list[str] = head["scopes"]
    fell_all, resting_all = head["all"] if head["v"] > 1 else (0, 0)
    columns = (arrays[f"lesson_{name}"].tolist() for name in ("rows", "agrees", "weights", "scopes", "at_ms"))
    seen = zip(arrays["seen_rows"].tolist(), arrays["seen_scopes"].tolist(), strict=True)
    return LearnerState(
        promise=head["promise"],
        weights=tuple(head["weights"]),
        threshold=head["threshold"],
        floor=head["floor"],
        offsets=head["offsets"],
        lessons=tuple(
            Lesson(_row(row), agrees, weight, scopes[scope], at) for row, agrees, weight, scope, at in zip(*columns, strict=True)
        ),
        seen=tuple(None if scope < 0 else (scopes[scope], _row(row)) for row, scope in seen),
        since_fit=head["since"][0],
        since_start=head["since"][1],
        audit_debt=tuple(head["audit"][0]),
        audit_scale=head["audit"][1],
        drift=DriftMonitor.restored(*head["drift"]),
        drift_by_scope={scope: DriftMonitor.restored(*monitor) for scope, monitor in head["drift_by_scope"]},
        trusted_all=head["trusted_all"],
        trusted=head["trusted"],
        fell=head["fell"],
        resting=head["resting"],
        fell_all=fell_all,
        resting_all=resting_all,
        groups=head["groups"],
        groups_made=head["judge"][0],
        judge_votes=head["judge"][1],
        judge_minority=head["judge"][2],
    )


def _rows(rows: Sequence[Row]) -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.array(rows, dtype="<f8").reshape(len(rows), 4)


def _row(values: Sequence[float]) -> Row:
    cosine, nearness, margin, same = values
    return cosine, nearness, margin, same


def _monitor(monitor: DriftMonitor) -> list[list[float] | list[int]]:
    return [monitor.sums, monitor.rising_since]

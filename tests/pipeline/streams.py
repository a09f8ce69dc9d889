"""Streams of made-up questions: directions in space for groups, with as much spread as wanted."""

import itertools

import numpy as np

from inference_engine.connectors.vector_index import BruteForceIndex
from inference_engine.pipeline.embed import unit_rows
from inference_engine.pipeline.ports import Embedded
from inference_engine.pipeline.replay import Line, Outcome, ReplayOptions, replay

DIMENSION = 32


def clusters(n: int, groups: int, *, spread: float = 0.16, seed: int = 0) -> tuple[list[Line], Embedded]:
    """`n` questions of `groups` intents; at this spread two of one intent have a cosine of about 0.5 to 0.8, near intents overlap."""
    random = np.random.default_rng(seed)
    centres = unit_rows(random.normal(size=(groups, DIMENSION)))
    of = random.integers(groups, size=n)
    vectors = unit_rows(centres[of] + random.normal(size=(n, DIMENSION)) * spread * random.uniform(0.2, 1.2, size=(n, 1)))
    lines = [Line(f"question of {word(i)}", f"g{g}") for i, g in enumerate(of)]
    return lines, Embedded(vectors, np.ones(n, dtype=np.bool_))


def word(i: int) -> str:
    """A name without a digit: numbers that differ are a veto."""
    return "".join("abcdefghij"[int(d)] for d in str(i))


def play(lines: list[Line], embedded: Embedded, options: ReplayOptions | None = None, *, noise: float = 0.0, seed: int = 1) -> Outcome:
    ticks = itertools.count()
    random = np.random.default_rng(seed)
    index = BruteForceIndex(embedded.vectors.shape[1], clock=lambda: 0)
    return replay(lines, embedded, index, options or ReplayOptions(), lambda: next(ticks), lambda: bool(random.random() < noise))


def error(outcome: Outcome, begin: int = 0, end: int | None = None) -> float:
    """Wrong shared answers per request."""
    part = outcome.decided[begin:end]
    return sum(d.shared is not None and d.right is False for d in part) / len(part)


def hit_rate(outcome: Outcome, begin: int = 0, end: int | None = None) -> float:
    part = outcome.decided[begin:end]
    return sum(d.shared is not None for d in part) / len(part)

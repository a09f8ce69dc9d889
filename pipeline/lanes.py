"""Adaptive lanes: how fast the batch lane goes on while express and standard want the same worker.

    latency of the urgent lanes -> smoothed -> law -> rate of the batch lane -> turn (so many requests, then a pause)

A worker handles all lanes in one event loop, so what the batch lane does in one piece is latency for the others. The controlled quantity is
the batch lane's rate: its batch size over its window, from the smallest batch in the longest window (32 in 200 ms) to the largest in the
shortest (64 in 10 ms). While nobody urgent is there, nothing is held back.
"""

import math
from dataclasses import dataclass
from typing import Literal, Protocol

LawName = Literal["gradient", "multiplicative", "fixed"]


@dataclass(frozen=True, slots=True)
class Bounds:
    """Of one lane's turns: requests begun at once, and ms from one turn to the next."""

    min_size: int = 32
    max_size: int = 64
    min_window_ms: float = 10.0
    max_window_ms: float = 200.0

    def __post_init__(self) -> None:
        if not (1 <= self.min_size <= self.max_size and 0 < self.min_window_ms <= self.max_window_ms):
            raise ValueError(
                f"turns of {self.min_size} to {self.max_size} requests in {self.min_window_ms} to {self.max_window_ms} ms can't be"
            )

    @property
    def slowest(self) -> float:
        """Requests per second: the smallest size in the longest window. The lane begins with it."""
        return 1000 * self.min_size / self.max_window_ms

    @property
    def floor(self) -> float:
        """Never less, so that the batch lane always gets on: for a machine that can't do the slowest rate beside the others."""
        return self.slowest / 8

    @property
    def fastest(self) -> float:
        return 1000 * self.max_size / self.min_window_ms

    def hold(self, rate: float) -> float:
        return min(self.fastest, max(self.floor, rate))


FORGOTTEN = 0.98
"""What is left of a rate per control interval in which nobody made use of all of it."""


class Law(Protocol):
    """How the rate follows the latency; called once per control interval."""

    def next_rate(self, rate: float, latency_ms: float, target_ms: float, bounds: Bounds) -> float:
        """Requests per second; what lies beyond the bounds is cut off by the caller."""
        ...


@dataclass(frozen=True, slots=True)
class MultiplicativeLaw:
    """The design document's law: b x1.2 below 0.8 T, x0.8 above T, otherwise as it is."""

    grow: float = 1.2
    shrink: float = 0.8
    low: float = 0.8

    def next_rate(self, rate: float, latency_ms: float, target_ms: float, bounds: Bounds) -> float:
        if latency_ms < self.low * target_ms:
            return rate * self.grow
        return rate * self.shrink if latency_ms > target_ms else rate


@dataclass(frozen=True, slots=True)
class GradientLaw:
    """Additive increase, and a decrease in proportion to the overshoot: rate x T/L + step.

    After Netflix's concurrency limits (gradient2), with the target in place of the latency without load: that one depends on what shares
    the machine, the target does not.
    """

    step: float = 0.003
    """Of the fastest rate, per control interval."""
    most_cut: float = 0.5

    def next_rate(self, rate: float, latency_ms: float, target_ms: float, bounds: Bounds) -> float:
        gradient = min(1.0, max(self.most_cut, target_ms / latency_ms)) if latency_ms > 0 else 1.0
        return rate * gradient + self.step * bounds.fastest


@dataclass(frozen=True, slots=True)
class FixedLaw:
    """The fastest rate, whatever the latency."""

    def next_rate(self, rate: float, latency_ms: float, target_ms: float, bounds: Bounds) -> float:
        return bounds.fastest


LAWS: dict[LawName, Law] = {"gradient": GradientLaw(), "multiplicative": MultiplicativeLaw(), "fixed": FixedLaw()}


@dataclass(frozen=True, slots=True)
class Flow:
    """What is remembered from one control interval to the next."""

    rate: float
    """Of the batch lane, requests per second."""
    latency_ms: float = 0.0
    """Of the urgent lanes, smoothed."""


def smoothed(before: float, seen: float, alpha: float) -> float:
    """Exponentially weighted mean."""
    return before + alpha * (seen - before)


def advance(
    flow: Flow,
    latency_ms: float,
    *,
    law: Law,
    target_ms: float,
    bounds: Bounds,
    alpha: float = 0.1,
    wanted: bool = True,
) -> Flow:
    """One control interval: `latency_ms` was seen in it.

    `wanted`: was the batch lane held back in it? A rate that nobody makes use of says nothing about what can be borne: it is not raised,
    and slowly forgotten, so that the next job does not begin with a flood.
    """
    latency = smoothed(flow.latency_ms, latency_ms, alpha)
    rate = law.next_rate(flow.rate, latency, target_ms, bounds)
    if not wanted:
        rate = min(rate, max(bounds.slowest, FORGOTTEN * flow.rate))
    return Flow(bounds.hold(rate), latency)


@dataclass(frozen=True, slots=True)
class Turn:
    """So many requests now, the next ones after the window."""

    size: int
    window_ms: float


def turn_of(rate: float, bounds: Bounds) -> Turn:
    """Size and window grow and shrink together along the rate, both in proportion to its logarithm. Below the slowest rate as at it."""
    rate = max(bounds.slowest, bounds.hold(rate))
    span = math.log(bounds.fastest / bounds.slowest)
    share = math.log(rate / bounds.slowest) / span if span > 0 else 0.0
    size = bounds.min_size * (bounds.max_size / bounds.min_size) ** share
    return Turn(
        max(bounds.min_size, min(bounds.max_size, round(size))), min(bounds.max_window_ms, max(bounds.min_window_ms, 1000 * size / rate))
    )

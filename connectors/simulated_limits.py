"""Requests and tokens per minute of the simulated server, with the headers that the real ones send."""

import math
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime


@dataclass(slots=True)
class Bucket:
    """A token bucket; `now` in seconds of a monotonic clock."""

    per_minute: float
    burst_s: float
    level: float = field(init=False)
    seen: float = 0.0

    def __post_init__(self) -> None:
        self.level = self.capacity

    @property
    def capacity(self) -> float:
        return max(1.0, self.per_minute * self.burst_s / 60)

    def fill(self, now: float) -> None:
        if self.seen:
            self.level = min(self.capacity, self.level + (now - self.seen) * self.per_minute / 60)
        self.seen = now

    def wait_for(self, amount: float) -> float:
        """Seconds until `amount` could be taken (a full bucket takes anything, and goes into debt)."""
        return max(0.0, min(amount, self.capacity) - self.level) * 60 / self.per_minute


@dataclass(slots=True)
class Limits:
    """Limits per model. None: unlimited, and no headers."""

    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    burst_s: float = 1.0
    """How many seconds' worth may come at once."""
    refused: int = 0
    _buckets: dict[str, tuple[Bucket | None, Bucket | None]] = field(default_factory=dict)

    @property
    def active(self) -> bool:
        return self.requests_per_minute is not None or self.tokens_per_minute is not None

    def take(self, model: str, tokens: int) -> float | None:
        """None where the call may go on, else the seconds to wait."""
        if not self.active:
            return None
        requests, budget = self._of(model)
        now = time.monotonic()
        wait = 0.0
        for bucket, amount in ((requests, 1), (budget, tokens)):
            if bucket is not None:
                bucket.fill(now)
                wait = max(wait, bucket.wait_for(amount))
        if wait > 0:
            self.refused += 1
            return wait
        if requests is not None:
            requests.level -= 1
        if budget is not None:
            budget.level -= tokens
        return None

    def _of(self, model: str) -> tuple[Bucket | None, Bucket | None]:
        found = self._buckets.get(model)
        if found is None:
            found = self._buckets[model] = (
                Bucket(self.requests_per_minute, self.burst_s) if self.requests_per_minute else None,
                Bucket(self.tokens_per_minute, self.burst_s) if self.tokens_per_minute else None,
            )
        return found

    def headers(self, model: str, protocol: str) -> dict[str, str]:
        """As OpenAI (a duration) or Anthropic (a moment) says what is left and when it is full again."""
        if not self.active:
            return {}
        made: dict[str, str] = {}
        for kind, bucket in zip(("requests", "tokens"), self._of(model), strict=True):
            if bucket is not None:
                left, full_in = max(0, math.floor(bucket.level)), (bucket.capacity - bucket.level) * 60 / bucket.per_minute
                if protocol == "anthropic":
                    moment = datetime.fromtimestamp(time.time() + full_in, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
                    figures = {"limit": f"{bucket.per_minute:g}", "remaining": str(left), "reset": moment}
                    made |= {f"anthropic-ratelimit-{kind}-{name}": value for name, value in figures.items()}
                else:
                    figures = {"limit": f"{bucket.per_minute:g}", "remaining": str(left), "reset": f"{full_in:.3f}s"}
                    made |= {f"x-ratelimit-{name}-{kind}": value for name, value in figures.items()}
        return made

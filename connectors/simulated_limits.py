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
    """Limits per account: a model with a key. None: unlimited, and no headers.

    OpenAI's `tokens` count when a call is admitted, with all that it may produce, and nothing is given back. Anthropic counts input when
    a call is admitted, and output as it is made: a call is refused only where that bucket is in debt.
    """

    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    input_tokens_per_minute: float | None = None
    output_tokens_per_minute: float | None = None
    burst_s: float = 1.0
    """How many seconds' worth may come at once."""
    refused: int = 0
    admitted: int = 0
    counted_tokens: float = 0
    """Against whichever limit of tokens there is."""
    _buckets: dict[str, dict[str, Bucket]] = field(default_factory=dict)

    @property
    def active(self) -> bool:
        return any(self._limits().values())

    def _limits(self) -> dict[str, float | None]:
        return {
            "requests": self.requests_per_minute,
            "tokens": self.tokens_per_minute,
            "input-tokens": self.input_tokens_per_minute,
            "output-tokens": self.output_tokens_per_minute,
        }

    def take(self, account: str, input_tokens: int, most_output: int) -> float | None:
        """None where the call may go on, else the seconds to wait."""
        if not self.active:
            return None
        amounts = {"requests": 1, "tokens": input_tokens + most_output, "input-tokens": input_tokens, "output-tokens": 0}
        buckets, now, wait = self._of(account), time.monotonic(), 0.0
        for kind, bucket in buckets.items():
            bucket.fill(now)
            wait = max(wait, bucket.wait_for(amounts[kind]))
        if wait > 0:
            self.refused += 1
            return wait
        self.admitted += 1
        for kind, bucket in buckets.items():
            bucket.level -= amounts[kind]
            self.counted_tokens += amounts[kind] if kind != "requests" else 0
        return None

    def produced(self, account: str, output_tokens: int) -> None:
        """The call's answer has so many tokens."""
        bucket = self._of(account).get("output-tokens")
        if bucket is not None:
            bucket.fill(time.monotonic())
            bucket.level -= output_tokens
            self.counted_tokens += output_tokens

    def clear(self) -> None:
        """Forgets the counts, not the buckets."""
        self.refused = self.admitted = 0
        self.counted_tokens = 0

    def _of(self, account: str) -> dict[str, Bucket]:
        found = self._buckets.get(account)
        if found is None:
            found = self._buckets[account] = {kind: Bucket(limit, self.burst_s) for kind, limit in self._limits().items() if limit}
        return found

    def headers(self, account: str, protocol: str) -> dict[str, str]:
        """As OpenAI (a duration) or Anthropic (a moment) says what is left and when it is full again."""
        if not self.active:
            return {}
        made: dict[str, str] = {}
        now = time.monotonic()
        for kind, bucket in self._of(account).items():
            bucket.fill(now)
            left, full_in = max(0, math.floor(bucket.level)), (bucket.capacity - bucket.level) * 60 / bucket.per_minute
            if protocol == "anthropic":
                moment = datetime.fromtimestamp(time.time() + full_in, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
                figures = {"limit": f"{bucket.per_minute:g}", "remaining": str(left), "reset": moment}
                made |= {f"anthropic-ratelimit-{kind}-{name}": value for name, value in figures.items()}
            else:
                figures = {"limit": f"{bucket.per_minute:g}", "remaining": str(left), "reset": f"{full_in:.3f}s"}
                made |= {f"x-ratelimit-{name}-{kind}": value for name, value in figures.items()}
        return made

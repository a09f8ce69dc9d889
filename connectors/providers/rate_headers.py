"""What providers' replies say about their limits: `x-ratelimit-*` (OpenAI and others) and `anthropic-ratelimit-*`."""

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from ...pipeline.rates import Kind, RateSeen

_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|us|µs|ns|h|m|s)")
_UNIT_S = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}
_OPENAI: tuple[tuple[Kind, str], ...] = (("requests", "requests"), ("tokens", "tokens"))
_ANTHROPIC: tuple[tuple[Kind, str], ...] = (("requests", "requests"), ("input_tokens", "input-tokens"), ("output_tokens", "output-tokens"))


def rates_seen(headers: Mapping[str, str], now: float) -> tuple[RateSeen, ...]:
    """Header names in any case; `now`: seconds since the epoch, since Anthropic names a moment. What can't be read is left out.

    Anthropic's `tokens` repeats whichever of its two token limits is nearer, and is left out.
    """
    found: list[RateSeen] = []
    if "x-ratelimit-limit-requests" in headers or "x-ratelimit-limit-tokens" in headers:
        for kind, name in _OPENAI:
            reset = seconds_of(headers.get(f"x-ratelimit-reset-{name}"))
            _add(found, kind, headers.get(f"x-ratelimit-limit-{name}"), headers.get(f"x-ratelimit-remaining-{name}"), reset)
    elif "anthropic-ratelimit-requests-limit" in headers or "anthropic-ratelimit-input-tokens-limit" in headers:
        for kind, name in _ANTHROPIC:
            reset = seconds_until(headers.get(f"anthropic-ratelimit-{name}-reset"), now)
            limit, left = headers.get(f"anthropic-ratelimit-{name}-limit"), headers.get(f"anthropic-ratelimit-{name}-remaining")
            # The moment is cut to whole seconds: too coarse to tell the level by.
            _add(found, kind, limit, left, reset if reset is not None and reset > 60 else None)
    return tuple(found)


def _add(found: list[RateSeen], kind: Kind, limit: str | None, remaining: str | None, reset_s: float | None) -> None:
    try:
        if limit is not None and remaining is not None:
            found.append(RateSeen(kind, float(limit), max(0.0, float(remaining)), reset_s))
    except ValueError:
        return  # a header of another meaning: nothing is known then


def seconds_until(value: str | None, now: float) -> float | None:
    """Of a moment, as RFC 3339 or as HTTP writes it; None where it can't be read."""
    if value is None:
        return None
    try:
        moment = datetime.fromisoformat(value) if value[:4].isdigit() else parsedate_to_datetime(value)
    except ValueError:
        return None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() - now


def seconds_of(value: str | None) -> float | None:
    """Of a duration such as `6m0s` or `20ms`, or of a plain number of seconds."""
    if value is None:
        return None
    parts: list[tuple[str, str]] = _DURATION.findall(value)
    if parts:
        return sum(float(number) * _UNIT_S[unit] for number, unit in parts)
    try:
        number = float(value)
    except ValueError:
        return None
    return None if number != number else number

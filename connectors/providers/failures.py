"""What a provider's refusal means for the request and for the bill.

The rule, by HTTP status of a reply to a request that was sent:

- 408, 409, 425, 429, 503, 529: turned away before any token was made, so certainly not billed: `Unavailable`, not before
  the time that the reply names.
- every other 4xx, and 3xx: the request itself is refused, not billed, and would be refused again: `Rejected`.
- every other 5xx (500, 502, 504, 520 to 527): something broke while it was worked on, or a gateway gave up waiting for an
  answer that may have been finished: `Ambiguous`, booked at its cap.

Without a reply: not connected is `Unavailable`, anything after that (timeout, reset, half an answer) is `Ambiguous`.
"""

import math
import re
from collections.abc import Mapping
from typing import Any

import orjson

from ...pipeline.errors import Ambiguous, EngineError, Rejected, Unavailable
from .rate_headers import rates_seen, seconds_of, seconds_until

TURNED_AWAY = frozenset({408, 409, 425, 429, 503, 529})
LONGEST_WAIT_S = 86_400.0

_CODES = {401: "provider_auth", 403: "provider_auth", 404: "model_not_found", 413: "request_too_large"}
_OF_THE_MODEL = frozenset({"context_length_exceeded", "model_not_found", "unsupported_model", "unsupported_parameter", "unsupported_value"})
"""Refusals that another model may not share: the call stage tries the next one of its route."""
_NO_MONEY = frozenset({"insufficient_quota", "billing_hard_limit_reached"})
_KEY = re.compile(r"\b(?:sk|pk|key)-[A-Za-z0-9_\-*]{6,}")


def failure(provider: str, key_setting: str, status: int, headers: Mapping[str, str], raw: bytes, now: float) -> EngineError:
    """The error that a reply of this status is; `now` in seconds since the epoch, for headers that name a moment."""
    code, said = _said(raw)
    if status in TURNED_AWAY:
        wait = retry_after(headers, now)
        return Unavailable(
            f"{provider} turned the call away ({status}{said}); nothing was billed",
            retry_after=wait,
            code=code or "unavailable",
            # A key without money left is told so with the same status, and waiting does not help it.
            rate_limited=status == 429 and code not in _NO_MONEY,
            rates=rates_seen(headers, now),
        )
    if status in (401, 403):
        # What the provider says about a key may quote it.
        message = f"{provider} refused the credentials ({status}); nothing was billed: check {key_setting}"
        return Rejected(message, code="provider_auth")
    if status >= 500:
        return Ambiguous(f"{provider} failed while working on the call ({status}{said}); it may have been billed", code="provider_failed")
    if status < 400:
        return Rejected(
            f"{provider} answered {status} in place of an answer; nothing was billed: check its base URL", code="provider_redirect"
        )
    message = f"{provider} refused the request ({status}{said}); nothing was billed: correct the request, then ask again"
    return Rejected(message, code=_CODES.get(status) or (code if code in _OF_THE_MODEL else None) or "provider_rejected")


def _said(raw: bytes) -> tuple[str | None, str]:
    """The provider's own code and words, short, and without anything that looks like a key."""
    try:
        reply = orjson.loads(raw)
        error = reply.get("error", reply)  # Cohere says it without a wrapper
        words, code = str(error["message"]), error.get("code") or error.get("type")
    except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError):
        words, code = raw[:200].decode("utf-8", "replace").strip(), None
    words = _KEY.sub("[key]", words)[:400]
    return (code if isinstance(code, str) else None), f": {words}" if words else ""


def retry_after(headers: Mapping[str, str], now: float) -> float | None:
    """Seconds until the provider wants to be asked again, or None where it doesn't say. Header names in any case."""
    named = _number(headers.get("retry-after-ms"), 1000.0)
    if named is None:
        named = _number(headers.get("retry-after"), 1.0)
    if named is None:
        named = seconds_until(headers.get("retry-after"), now)
    if named is None:
        named = _exhausted(headers, now)
    return None if named is None else min(max(named, 0.0), LONGEST_WAIT_S)


def _number(value: str | None, divisor: float) -> float | None:
    try:
        number = float(value) / divisor if value is not None else math.nan
    except ValueError:
        return None
    return None if math.isnan(number) else number


def _exhausted(headers: Mapping[str, str], now: float) -> float | None:
    """When the limits that have nothing left are filled again: OpenAI names a duration, Anthropic a moment."""
    waits = [
        seconds_of(headers.get(f"x-ratelimit-reset-{kind}")) or 0.0
        for kind in ("requests", "tokens")
        if _number(headers.get(f"x-ratelimit-remaining-{kind}"), 1.0) == 0
    ]
    waits += [
        seconds_until(headers.get(f"anthropic-ratelimit-{kind}-reset"), now) or 0.0
        for kind in ("requests", "tokens", "input-tokens", "output-tokens")
        if _number(headers.get(f"anthropic-ratelimit-{kind}-remaining"), 1.0) == 0
    ]
    waits = [w for w in waits if w > 0]
    return max(waits) if waits else None


def unreadable(provider: str, why: str, code: str = "unreadable_reply") -> Ambiguous:
    """A reply that came and can't be billed by what it says."""
    return Ambiguous(f"{provider} answered, but {why}; the call may have been billed and is booked at its cap", code=code)


def cut(provider: str) -> Ambiguous:
    """A stream that ended before its last event."""
    return unreadable(provider, "with a stream that breaks off")


def failed_midway(provider: str, raw: bytes) -> Ambiguous:
    """A stream that says, after it began well, that it failed. `raw`: the event."""
    return Ambiguous(f"{provider} failed while it answered{_said(raw)[1]}; the call may have been billed", code="provider_failed")


def refuse_unknown(provider: str, details: Any, known: frozenset[str]) -> None:
    """Raises `Ambiguous` where a breakdown of tokens counts some of a kind that nobody here knows: it may have its own price."""
    for name, value in details.items() if isinstance(details, dict) else ():
        if name not in known and value and not isinstance(value, str | bool):
            raise unreadable(provider, f"with {name[:80]!r} in its usage, which has no price here", "usage_unpriced")


def loads(provider: str, raw: bytes) -> dict[str, Any]:
    """The JSON object of a reply with status 200. Raises `Ambiguous` where it isn't one."""
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError:
        raise unreadable(provider, "not with whole JSON") from None
    if not isinstance(body, dict):
        raise unreadable(provider, "not with a JSON object")
    return body


def same_model(asked: str, got: object) -> bool:
    """Whether a reply is of the model that was asked for: a dated name of it is."""
    if not isinstance(got, str):
        return False
    wanted, name = asked.rsplit("/", 1)[-1].lower().removesuffix("-latest"), got.rsplit("/", 1)[-1].lower()
    return name == wanted or (name.startswith(wanted) and bool(re.fullmatch(r"[-@:](?:\d[\d-]*|latest)", name[len(wanted) :])))

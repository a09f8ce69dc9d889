"""What follows from the outcome of an attempt, and when there are to be no more."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import orjson

from ..schemas.answers import ErrorInfo
from ..schemas.ledger import Purpose
from ..schemas.record import JsonObject
from ..schemas.requests import Call
from .errors import EngineError, Rejected, Unavailable
from .models import Model

Next = Literal["done", "retry", "next_model", "give_up"]

MODEL_SPECIFIC = frozenset(
    {
        "model_not_found", "unknown_model", "model_disabled", "unsupported_model", "unsupported_parameter", "unsupported_value",
        "context_length_exceeded", "no_provider", "unpriced", "over_budget", "provider_auth", "unsupported_by_provider",
    }
)  # fmt: skip
"""Codes of refusals that another model may not share."""

MOST_TRIES = 2
"""Of one model that fails, where the route names another one that is well."""
MOST_REFUSALS = 10
"""So often a call is told to come later before that counts as a failure."""

OF_THE_KEY = frozenset({"provider_auth", "insufficient_quota", "billing_hard_limit_reached"})
"""Codes of refusals that another key of the provider may not share."""

DEFAULT_OUTPUT_TOKENS = 256
"""What a call that names no bound is reckoned to produce, until its usage is known."""


@dataclass(frozen=True, slots=True)
class Tried:
    """What an attempt came to, as far as the next step depends on it."""

    next: Next
    error: EngineError | None = None
    retry_after_s: float | None = None
    """The provider's wish. It holds for all calls of the model, so its pace waits, not this call."""
    rate_limited: bool = False
    flex: bool = False
    """It was made at the flex tier."""


def after(error: EngineError) -> Tried:
    """What to do after a failed attempt: the same again, another model, or nothing."""
    if isinstance(error, Rejected):
        return Tried("next_model" if error.code in MODEL_SPECIFIC else "give_up", error)
    if isinstance(error, Unavailable):
        return Tried("retry", error, error.retry_after, error.rate_limited)
    return Tried("retry", error)


def purpose_of(call: Call, model: str) -> Purpose:
    """Of a payment: a model that was taken to learn is explored, one that it falls back to is not."""
    if call.judge:
        return call.asks
    if call.audit:
        return "audit"
    chosen = call.route.chosen
    return "exploration" if chosen is not None and chosen.explored and chosen.model == model else "answer"


def why_stop(
    *,
    cancelled: bool,
    now_ms: int,
    deadline_ms: int | None,
    model_left: bool,
    error: EngineError | None,
    since_ms: int,
    give_up_s: float,
) -> ErrorInfo | None:
    """Why nothing more is paid for a request; None where it may go on.

    `error`: why it has no answer yet. `since_ms`: when its tries began.
    """
    if cancelled:
        return ErrorInfo(
            code="cancelled", message="the job was cancelled before this request was paid; submit it again to have it answered"
        )
    if deadline_ms is not None and now_ms >= deadline_ms:
        return ErrorInfo(code="deadline_passed", message="the deadline passed before an answer was paid for; ask again with a later one")
    if not model_left:
        last = error or Rejected("its route names no model", code="no_model")
        return ErrorInfo(code=last.code, message=str(last))
    if error is not None and now_ms - since_ms > give_up_s * 1000:
        message = f"no answer in {give_up_s:.0f} s: {error}; what it cost is in the ledger; ask again later"
        return ErrorInfo(code="provider_unavailable", message=message)
    return None


def exhausted(attempts: int, error: EngineError | None) -> ErrorInfo:
    """All attempts that a request may have are used. `error`: what the last one ended with."""
    last = f"; the last one: {error}" if error is not None else ""
    return ErrorInfo(
        code="attempts_exhausted",
        message=f"{attempts} attempts were paid for, or may have been, and gave no answer{last}; "
        "they are in the costs; to pay for more, ask under another job or custom_id",
    )


def over_cap(max_cost_pico: int | None, spent_pico: int) -> EngineError:
    """A model that could cost more than the request may."""
    return EngineError(
        f"another attempt could cost more than is left of max_cost_usd ({(max_cost_pico or 0) / 1e12:g}, "
        f"spent or possibly spent {spent_pico / 1e12:g}); nothing more is paid; raise it to go on",
        code="over_budget",
    )


def backoff_s(tries: int, random: Callable[[], float], *, first_s: float = 0.5, most_s: float = 30.0) -> float:
    """Full jitter: uniform between 0 and a bound that doubles with each try. `random`: uniform in [0, 1)."""
    bound = min(most_s, first_s * 2.0 ** min(tries, 16))
    return float(random() * bound)


def estimate_tokens(model: Model, body: JsonObject) -> int:
    """What the call counts against tokens per minute until its usage is known: a quarter of its bytes, and its output's bound."""
    return len(orjson.dumps(body.get("messages"))) // 4 + estimate_output(model, body)


def estimate_output(model: Model, body: JsonObject) -> int:
    """The output's bound, as far as the request or the model names one."""
    asked = body.get("max_completion_tokens") or body.get("max_tokens") or DEFAULT_OUTPUT_TOKENS
    return min(asked if isinstance(asked, int) else DEFAULT_OUTPUT_TOKENS, model.max_output_tokens)

"""What users read from `responses`: the OpenAI batch output form, plus `engine`."""

from typing import Literal

from .record import JsonObject, Record


class CacheInfo(Record):
    """How the answer was found."""

    tier: Literal["none", "exact", "semantic", "coalesced"]
    similarity: float | None = None
    source_id: str | None = None
    """Fingerprint of the request whose call made the answer."""


class Savings(Record):
    """Dollars not spent, by cause, as decimal strings. Each saved dollar has one cause."""

    exact: str = "0"
    semantic: str = "0"
    coalescing: str = "0"
    routing: str = "0"
    prefix: str = "0"
    batch: str = "0"


class EngineInfo(Record):
    """What this engine did for the response."""

    tenant: str
    job: str
    model_used: str | None = None
    cost_usd: str = "0"
    """What was certainly paid for it, failed attempts included."""
    ambiguous_cap_usd: str = "0"
    """At most this much may have been paid on top: the caps of attempts whose bill nobody knows."""
    max_cost_usd: str | None = None
    """The limit that the request was refused for, where the error is `over_budget`."""
    counterfactual_usd: str = "0"
    savings: Savings = Savings()
    cache: CacheInfo = CacheInfo(tier="none")
    lane: str
    latency_ms: int
    attempts: int = 0


class ResponsePart(Record):
    status_code: int
    request_id: str
    body: JsonObject


class ErrorPart(Record):
    code: str
    message: str


class ResponseLine(Record):
    """One record of `responses`, one line of an answers file."""

    id: str
    """Distinct per delivery of a distinct answer; a redelivered response repeats it."""
    custom_id: str
    response: ResponsePart | None = None
    error: ErrorPart | None = None
    engine: EngineInfo

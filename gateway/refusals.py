"""Errors as OpenAI's clients know them: a status, and an object that says what happened."""

from dataclasses import dataclass, field

from ..pipeline.errors import EngineError, Rejected, Unavailable
from ..schemas.record import JsonObject
from ..schemas.responses import ErrorPart

_STATUS = {
    "invalid_json": 400,
    "invalid_request": 400,
    "missing_messages": 400,
    "invalid_feedback": 400,
    "empty_record": 400,
    "unsupported_by_provider": 400,
    "provider_rejected": 400,
    "invalid_api_key": 401,
    "unknown_model": 404,
    "not_served": 404,
    "model_disabled": 404,
    "model_not_allowed": 403,
    "cancelled": 409,
    "request_too_large": 413,
    "answer_too_large": 413,
    "not_json": 415,
    "idempotency_key_reused": 422,
    "invalid_engine_options": 422,
    "no_capable_model": 422,
    "over_budget": 429,
    "too_many_waiting": 429,
    "provider_unavailable": 503,
    "no_provider": 503,
    "unavailable": 503,
    "sink_down": 503,
    "cost_store_down": 503,
    "deadline_passed": 504,
    "no_answer_yet": 504,
}
_KIND = {401: "authentication_error", 404: "invalid_request_error", 429: "rate_limit_error"}


@dataclass(eq=False)
class Refusal(Exception):
    """An answer that is an error."""

    status: int
    code: str
    message: str
    param: str | None = None
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def body(self) -> JsonObject:
        kind = _KIND.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


def refused(code: str, message: str, *, param: str | None = None, retry_after: float | None = None) -> Refusal:
    """Codes that have no status of their own are failures of what lies behind us: 502."""
    headers = {"retry-after": str(max(1, round(retry_after)))} if retry_after is not None else {}
    return Refusal(_STATUS.get(code, 502), code, message, param, headers)


def of_error(error: EngineError) -> Refusal:
    """Of what the engine raises in this process."""
    if isinstance(error, Rejected):
        code = error.code if error.code in _STATUS else "invalid_request"
        return refused(code, str(error), param="model" if code in ("unknown_model", "model_disabled") else None)
    if isinstance(error, Unavailable):
        code = error.code if error.code in _STATUS else "unavailable"
        return refused(code, str(error), retry_after=error.retry_after or 1.0)
    return refused("engine_error", str(error))


def of_response(error: ErrorPart) -> Refusal:
    """Of a response that came back as an error."""
    return refused(error.code, error.message)

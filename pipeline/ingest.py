"""The door: a raw record becomes a `Request`, or an error that says what is wrong with it."""

from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from math import isfinite
from typing import Any

import orjson
from pydantic import ValidationError

from ..schemas.record import PICO_PER_USD, JsonObject, Lane
from ..schemas.requests import Dimensions, EngineOptions, Identity, Request, RequestLine
from .errors import Rejected
from .experiments import NO_EXPERIMENTS, Experiments
from .fingerprint import fingerprint_and_scope, flight_id, unshared
from .models import Catalogue
from .text import last_user_text

MAX_BODY_BYTES = 1 << 20
ROLES = frozenset({"system", "developer", "user", "assistant", "tool", "function"})
_ROLES_LISTED = tuple(ROLES)
"""For what a set can't be asked about: a role may be any JSON."""
MAX_DEPTH = 100
"""Of nested lists and objects: JSON readers stop at some 200, and a body travels inside of records."""
MAX_COST_USD = 1_000_000_000


class BadRequest(Rejected):
    """A record that can't become a request. `identity` is set as far as it could be read."""

    def __init__(self, message: str, *, code: str, job: str | None = None, custom_id: str | None = None) -> None:
        super().__init__(message, code=code)
        self.job = job
        self.custom_id = custom_id


DEFAULT_JOB = "default"
"""Of requests that name none."""


@dataclass(frozen=True, slots=True)
class Door:
    """What the door needs to know."""

    catalogue: Catalogue
    default_ttl_s: int
    default_lane: Lane = Lane.STANDARD
    priority_lanes: bool = True
    """False: every request takes the default lane."""
    max_body_bytes: int = MAX_BODY_BYTES
    default_job: str = DEFAULT_JOB
    experiments: Experiments = NO_EXPERIMENTS


def admit(raw: bytes | None, tenant: str, now_ms: int, door: Door) -> Request:
    """Validates, normalises and fingerprints one record.

    Raises `BadRequest` with a message for the request's author.
    """
    if not raw:
        raise BadRequest("the record is empty: a request is a JSON object with custom_id and body", code="empty_record")
    if len(raw) > door.max_body_bytes:
        job, custom_id = salvage(raw)
        raise BadRequest(
            f"the request has {len(raw):,} bytes, more than the limit of {door.max_body_bytes:,}: it was not sent; shorten or split it",
            code="request_too_large", job=job, custom_id=custom_id,
        )  # fmt: skip
    line = _parse(raw)
    try:
        return _admit(line, tenant, now_ms, door)
    except BadRequest:
        raise
    except Rejected as error:
        raise BadRequest(str(error), code=error.code, job=line.engine.job, custom_id=line.custom_id) from error
    except (ValueError, TypeError, ArithmeticError, RecursionError) as error:
        # Nothing here depends on anything but the record: tried again it would fail again, and hold up its partition for ever.
        why = str(error).splitlines()[0] if str(error) else type(error).__name__
        message = f"the request can't be read as a chat completion: {why}; it was not sent"
        raise BadRequest(message, code="invalid_request", job=line.engine.job, custom_id=line.custom_id) from error


def _parse(raw: bytes) -> RequestLine:
    try:
        return RequestLine.model_validate_json(raw)
    except ValidationError as error:
        job, custom_id = salvage(raw)
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        where = ".".join(str(p) for p in first["loc"]) or "record"
        code = "invalid_json" if first["type"] == "json_invalid" else "invalid_request"
        raise BadRequest(f"{where}: {first['msg']}; the request was not sent", code=code, job=job, custom_id=custom_id) from None


def salvage(raw: bytes) -> tuple[str | None, str | None]:
    """(job, custom_id) of a record that is not valid, as far as they can be read."""
    try:
        data = orjson.loads(raw)
    except ValueError:
        return None, None
    if not isinstance(data, dict):
        return None, None
    engine = data.get("engine")
    job = engine.get("job") if isinstance(engine, dict) else None
    return _name(job), _name(data.get("custom_id"))


def _name(value: Any) -> str | None:
    return value if isinstance(value, str) and 0 < len(value) <= 256 and "\0" not in value else None


def _admit(line: RequestLine, tenant: str, now_ms: int, door: Door) -> Request:
    body, engine = line.body, line.engine
    _check_names(line, tenant)
    _check_body(body)
    requested = body.get("model") or "auto"
    if not isinstance(requested, str):
        raise Rejected("body.model must be a string", code="invalid_request")
    model = door.catalogue.resolve(requested)
    preferred = door.catalogue.resolve(engine.preferred_model) if engine.preferred_model else None
    preferred = None if preferred == "auto" else preferred
    identity = Identity(tenant=tenant, job=engine.job or door.default_job, custom_id=line.custom_id)
    fingerprint, scope = fingerprint_and_scope(tenant, model, body, engine.sample_index)
    if not engine.use_cache:
        fingerprint = unshared(fingerprint, identity.key)
    return Request(
        identity=identity,
        body=body,
        model=model,
        fingerprint=fingerprint,
        scope=scope,
        flight=flight_id(fingerprint, identity.key),
        lane=(engine.priority if door.priority_lanes else None) or door.default_lane,
        # Not part of the fingerprint: variants share the caches, so that an experiment costs no hits.
        dimensions=door.experiments.assigned(identity, _dimensions(engine), free=model == "auto" and preferred is None),
        accepted_ms=now_ms,
        deadline_ms=_deadline(engine.deadline, now_ms),
        use_cache=engine.use_cache,
        shareable=engine.use_cache and _shareable(body),
        cache_ttl_s=door.default_ttl_s if engine.cache_ttl_seconds is None else engine.cache_ttl_seconds,
        preferred_model=preferred,
        cascade=engine.cascade,
        language=None if engine.language is None else engine.language.replace("_", "-").partition("-")[0],
        max_cost_pico=_max_cost(engine.max_cost_usd),
    )


def _dimensions(engine: EngineOptions) -> Dimensions:
    return Dimensions(
        user_id=engine.user_id,
        feature_name=engine.feature_name,
        experiment_id=engine.experiment_id,
        experiment_variant=engine.experiment_variant,
    )


def _check_names(line: RequestLine, tenant: str) -> None:
    if not tenant:
        raise Rejected(
            "the record has no tenant: write to the tenant's own requests topic or use its gateway key",
            code="no_tenant",
        )
    for name, value in (("custom_id", line.custom_id), ("engine.job", line.engine.job or "")):
        if "\0" in value:
            raise Rejected(f"{name} contains a NUL character", code="invalid_request")


def _check_body(body: JsonObject) -> None:
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise Rejected("body.messages is missing or empty: give at least one message", code="missing_messages")
    for i, message in enumerate(messages):
        if not isinstance(message, dict) or message.get("role") not in _ROLES_LISTED:
            raise Rejected(f"body.messages[{i}] needs a role out of {', '.join(sorted(ROLES))}", code="invalid_request")
        content = message.get("content")
        if not isinstance(content, str | list | None):
            raise Rejected(f"body.messages[{i}].content must be a text or a list of parts", code="invalid_request")
        if isinstance(content, str) and "\0" in content:
            raise Rejected(f"body.messages[{i}].content contains a NUL character, which providers refuse", code="invalid_request")
    if all(not m.get("content") and not m.get("tool_calls") for m in messages):
        raise Rejected("all messages are empty", code="missing_messages")
    for name, value in body.items():
        if isinstance(value, float) and not isfinite(value):
            raise Rejected(f"body.{name} is not a finite number", code="invalid_request")
    if _deeper(body, MAX_DEPTH):
        raise Rejected(f"the body is nested deeper than {MAX_DEPTH} levels", code="invalid_request")
    for name in ("max_tokens", "max_completion_tokens", "n"):
        value = body.get(name)
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
            raise Rejected(f"body.{name} must be a positive integer", code="invalid_request")


def _deeper(value: Any, levels: int) -> bool:
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, list):
        return False
    return levels == 0 or any(_deeper(v, levels - 1) for v in value if isinstance(v, dict | list))


def _shareable(body: JsonObject) -> bool:
    """Only single, plain text answers to a last user text may be shared by similarity."""
    return not body.get("tools") and not body.get("functions") and body.get("n") in (None, 1) and last_user_text(body) is not None


def _deadline(deadline: str | float | None, now_ms: int) -> int | None:
    """Seconds from now, `24h`-like spans, or RFC 3339."""
    if deadline is None:
        return None
    if isinstance(deadline, int | float):
        if not abs(deadline) < 1e10:
            raise Rejected(f"engine.deadline {deadline!r} is no time in seconds", code="invalid_request")
        return now_ms + int(deadline * 1000)
    span = parse_span_s(deadline)
    if span is not None:
        return now_ms + int(span * 1000)
    try:
        at = datetime.fromisoformat(deadline)
    except ValueError:
        raise Rejected(
            f"engine.deadline {deadline!r} is neither seconds, nor a span like 24h, nor RFC 3339",
            code="invalid_request",
        ) from None
    if at.tzinfo is None:
        at = at.replace(tzinfo=UTC)
    return int(at.timestamp() * 1000)


def parse_span_s(text: str) -> float | None:
    """`90`, `90s`, `15m`, `24h` or `7d` in seconds; None where it is no span."""
    units = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
    number, unit = (text[:-1], text[-1]) if text[-1:] in units else (text, "s")
    try:
        value = float(number)
    except ValueError:
        return None
    return value * units[unit] if 0 <= value < 1e9 else None


def _max_cost(value: str | float | int | None) -> int | None:
    if value is None:
        return None
    try:
        usd = Decimal(str(value))
    except InvalidOperation:
        raise Rejected(f"engine.max_cost_usd {value!r} is not a number", code="invalid_request") from None
    if not usd.is_finite() or not 0 <= usd <= MAX_COST_USD:
        raise Rejected(f"engine.max_cost_usd must be a number of dollars from 0 to {MAX_COST_USD:,}", code="invalid_request")
    return int(usd * PICO_PER_USD)

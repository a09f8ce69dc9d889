"""OpenAI's form of a chat completion, in and out. Pure."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import orjson
from pydantic import ValidationError

from ..schemas.record import JsonObject, Lane
from ..schemas.requests import EngineOptions, RequestLine
from ..schemas.responses import EngineInfo, ResponseLine
from .refusals import Refusal, of_response, refused

JOB = "gateway"
"""The job of requests that name none."""


@dataclass(frozen=True, slots=True)
class Question:
    """A caller's request as it goes to the engine, and how the answer is wanted."""

    line: RequestLine
    raw: bytes
    """`line` as written to `requests`."""
    stream: bool
    with_usage: bool
    """Whether the stream's last chunk tells the usage."""


def question_of(payload: bytes, custom_id: str, headers: Mapping[str, str]) -> Question:
    """Raises `Refusal`. The engine's own options come as `"engine": {...}` in the body, which OpenAI's client calls `extra_body`."""
    try:
        body = orjson.loads(payload)
    except ValueError as error:
        raise refused("invalid_json", f"the body is not JSON: {error}") from None
    if not isinstance(body, dict):
        raise refused("invalid_request", "the body must be a JSON object with model and messages")
    stream, options = body.pop("stream", None), body.pop("stream_options", None)
    if not isinstance(stream, bool | None):
        raise refused("invalid_request", "stream must be true or false", param="stream")
    line = RequestLine(custom_id=custom_id, body=body, engine=_engine(body, headers))
    return Question(
        line=line,
        raw=orjson.dumps(line.model_dump(mode="json", exclude_none=True)),
        stream=bool(stream),
        with_usage=isinstance(options, dict) and bool(options.get("include_usage")),
    )


def _engine(body: JsonObject, headers: Mapping[str, str]) -> EngineOptions:
    given = body.pop("engine", None) or {}
    if not isinstance(given, dict):
        raise refused("invalid_engine_options", "engine must be an object", param="engine")
    priority = headers.get("x-engine-priority")
    user = body.get("user")
    defaults: dict[str, Any] = {
        "job": JOB,
        "priority": priority or Lane.EXPRESS.value,
        "user_id": user[:256] if isinstance(user, str) else "",
    }
    try:
        return EngineOptions.model_validate({**defaults, **given})
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        where = ".".join(("engine", *(str(p) for p in first["loc"])))
        raise refused("invalid_engine_options", f"{where}: {first['msg']}; nothing was asked", param=where) from None


def completion(response: ResponseLine) -> JsonObject:
    """The chat completion, with `engine`: which model, what it cost, what was saved. Raises `Refusal` where the response is an error."""
    if response.error is not None:
        raise of_response(response.error)
    if response.response is None:
        raise refused("engine_error", "the engine's response holds neither an answer nor an error")
    part = response.response
    if part.status_code >= 400:
        error = part.body.get("error")
        message = error.get("message") if isinstance(error, dict) else None
        raise Refusal(part.status_code, "provider_rejected", str(message or "the provider refused the request"))
    return {**part.body, "engine": response.engine.model_dump(mode="json")}


def engine_headers(request_id: str, shown_id: str, engine: EngineInfo | None = None) -> dict[str, str]:
    """What streams can't say in their body. `request_id` is the engine's custom_id, `shown_id` what the caller knows the request by."""
    headers = {"x-request-id": shown_id, "x-engine-request-id": request_id}
    if engine is not None:
        headers |= {"x-engine-model": engine.model_used or "", "x-engine-cost-usd": engine.cost_usd, "x-engine-cache": engine.cache.tier}
    return headers


def chunks(body: JsonObject, *, with_usage: bool) -> Iterator[bytes]:
    """A complete answer in the form of a stream: server-sent events, the last one `[DONE]`."""
    head: JsonObject = {k: body[k] for k in ("id", "created", "model", "system_fingerprint", "service_tier") if k in body}
    head["object"] = "chat.completion.chunk"
    extra = {"usage": None} if with_usage else {}
    for choice in body.get("choices", ()):
        index, message = choice.get("index", 0), choice.get("message") or {}
        yield _event({**head, "choices": [{"index": index, "delta": _delta(message), "finish_reason": None}], **extra})
        end = {"index": index, "delta": {}, "finish_reason": choice.get("finish_reason"), "logprobs": choice.get("logprobs")}
        yield _event({**head, "choices": [end], **extra})
    if with_usage:
        yield _event({**head, "choices": [], "usage": body.get("usage")})
    yield b"data: [DONE]\n\n"


def _delta(message: JsonObject) -> JsonObject:
    delta = {k: v for k, v in message.items() if v is not None}
    delta.setdefault("role", "assistant")
    if calls := delta.get("tool_calls"):
        delta["tool_calls"] = [{"index": i, **call} for i, call in enumerate(calls)]
    return delta


def _event(data: JsonObject) -> bytes:
    return b"data: " + orjson.dumps(data) + b"\n\n"

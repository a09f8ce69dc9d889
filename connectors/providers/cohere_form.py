"""OpenAI chat completion requests as Cohere's chat (v2), and the answers back.

A field that would change the answer and has no counterpart is `Rejected`, never dropped in silence. Dropped are only
fields without effect on the text: `user`, `store`, `metadata` and OpenAI's own controls of its prompt cache.
"""

from typing import Any

from ...pipeline.errors import Rejected
from ...pipeline.models import Model
from ...schemas.answers import Usage
from ...schemas.record import JsonObject
from .failures import unreadable
from .fields import Limited, Put, as_is, convert, stop

_TO = Limited("Cohere")
_FINISH = {
    "COMPLETE": "stop",
    "STOP_SEQUENCE": "stop",
    "MAX_TOKENS": "length",
    "TOOL_CALL": "tool_calls",
    "ERROR": "content_filter",
    "TIMEOUT": "length",
}
_READ_ELSEWHERE = {"model", "messages", "stream", "stream_options", "tools", "max_tokens", "max_completion_tokens"}
_WITHOUT_EFFECT = {"user", "store", "metadata", "safety_identifier", "prompt_cache_key", "prompt_cache_options", "prompt_cache_retention"}


def to_chat(model: Model, body: JsonObject) -> JsonObject:
    """The chat request. Raises `Rejected` for what Cohere can't be asked."""
    request: JsonObject = {"model": model.provider_model, "stream": False, "messages": [_message(m) for m in body.get("messages") or []]}
    limit = body.get("max_completion_tokens") or body.get("max_tokens")
    if limit:
        request["max_tokens"] = limit
    if body.get("tools"):
        request["tools"] = [_tool(tool) for tool in body["tools"]]
    convert(request, body, _FIELDS, _WITHOUT_EFFECT | _READ_ELSEWHERE, _TO)
    return request


# --- fields ----------------------------------------------------------------------------------------------------------


def _response_format(request: JsonObject, value: Any) -> None:
    kind = value.get("type") if isinstance(value, dict) else None
    if kind == "json_object":
        request["response_format"] = {"type": "json_object"}
    elif kind == "json_schema" and isinstance(value.get("json_schema"), dict):
        request["response_format"] = {"type": "json_object", "schema": value["json_schema"].get("schema") or {}}
    elif kind != "text":
        raise _TO.cannot("a response_format other than text, json_object or json_schema")


def _tool_choice(request: JsonObject, value: Any) -> None:
    if value == "auto":
        return
    names = [tool["function"].get("name") for tool in request.get("tools") or ()]
    if value in ("none", "required"):
        request["tool_choice"] = str(value).upper()
    elif isinstance(value, dict) and [(value.get("function") or {}).get("name")] == names:
        request["tool_choice"] = "REQUIRED"
    else:
        raise _TO.cannot(f"tool_choice {value!r}: one of several functions can't be asked for")


_FIELDS: dict[str, Put] = {
    **_TO.without_counterpart(),
    "temperature": _TO.temperature,
    "top_p": as_is("p"),
    "top_k": as_is("k"),
    "seed": as_is("seed"),
    "frequency_penalty": as_is("frequency_penalty"),
    "presence_penalty": as_is("presence_penalty"),
    "stop": stop,
    "response_format": _response_format,
    "tool_choice": _tool_choice,
    "parallel_tool_calls": _TO.only("parallel_tool_calls", True),
    "service_tier": _TO.only("service_tier", "auto", "default"),
}


# --- messages --------------------------------------------------------------------------------------------------------


def _message(message: Any) -> JsonObject:
    role = message.get("role") if isinstance(message, dict) else None
    if role in ("system", "developer"):
        return {"role": "system", "content": _content(message.get("content"))}
    if role == "user":
        return {"role": "user", "content": _content(message.get("content"))}
    if role == "tool":
        return {"role": "tool", "tool_call_id": message.get("tool_call_id"), "content": _content(message.get("content"))}
    if role == "assistant":
        made: JsonObject = {"role": "assistant"}
        if message.get("content"):
            made["content"] = _content(message["content"])
        if message.get("tool_calls"):
            made["tool_calls"] = message["tool_calls"]
        return made
    raise _TO.cannot(f"a message of role {role!r}")


def _content(content: Any) -> Any:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise Rejected("the content of a message is a text or a list of parts; correct it and ask again")
    return [_part(part) for part in content]


def _part(part: Any) -> JsonObject:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind == "text":
        return {"type": "text", "text": part.get("text", "")}
    if kind == "image_url":
        image = part.get("image_url")
        return {"type": "image_url", "image_url": {"url": image} if isinstance(image, str) else image}
    raise _TO.cannot(f"content of type {kind!r}")


def _tool(tool: Any) -> JsonObject:
    if not isinstance(tool, dict) or tool.get("type") != "function" or not isinstance(tool.get("function"), dict):
        raise _TO.cannot("tools other than functions")
    if tool["function"].get("strict"):
        raise _TO.cannot("strict functions")  # here a switch for all of them at once
    return {"type": "function", "function": tool["function"]}


# --- answers ---------------------------------------------------------------------------------------------------------


def to_completion(model: Model, reply: JsonObject, created_s: int) -> tuple[JsonObject, str] | None:
    """The chat completion and its finish reason; None where the reply has no readable content."""
    said, reason = reply.get("message"), reply.get("finish_reason")
    if not isinstance(said, dict) or not isinstance(reason, str):
        return None
    blocks, calls = said.get("content") or [], said.get("tool_calls") or []
    if not isinstance(blocks, list) or not isinstance(calls, list) or not (blocks or calls):
        return None
    texts: list[str] = []
    for block in blocks:
        kind = block.get("type") if isinstance(block, dict) else None
        if kind == "text" and isinstance(block.get("text"), str):
            texts.append(block["text"])
        elif kind != "thinking":
            return None
    if not all(isinstance(c, dict) and isinstance(c.get("function"), dict) for c in calls):
        return None
    finish = _FINISH.get(reason, reason.lower())
    message: JsonObject = {"role": "assistant", "content": "".join(texts) if texts or not calls else None, "refusal": None}
    if calls:
        message["tool_calls"] = [{"id": c.get("id"), "type": "function", "function": c["function"]} for c in calls]
    # The reply does not name its model; what was asked for is served, or refused.
    body: JsonObject = {"id": reply.get("id"), "object": "chat.completion", "created": created_s, "model": model.provider_model}
    body["choices"] = [{"index": 0, "message": message, "logprobs": None, "finish_reason": finish}]
    return body, finish


def read_usage(usage: Any) -> Usage:
    """What is billed, which is not what was processed: Cohere charges nothing for its own template. Raises `Ambiguous`."""
    billed = usage.get("billed_units") if isinstance(usage, dict) else None
    if not isinstance(billed, dict):
        raise unreadable("cohere", "without usage", "usage_missing")
    if any(billed.get(name) for name in ("search_units", "classifications", "images")):
        raise unreadable("cohere", "with units that have no price here", "usage_unpriced")
    counts = [_whole(billed.get(name)) for name in ("input_tokens", "output_tokens")]
    if counts[0] is None or counts[1] is None:
        raise unreadable("cohere", "with usage that can't be", "usage_unreadable")
    return Usage(input_tokens=counts[0], output_tokens=counts[1])


def _whole(count: Any) -> int | None:
    """A whole number that is not negative; it may come as 12.0."""
    if isinstance(count, bool) or not isinstance(count, int | float) or count < 0 or count != int(count):
        return None
    return int(count)

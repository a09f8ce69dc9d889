"""OpenAI chat completion requests as Anthropic messages, and the answers back.

A field that would change the answer and has no counterpart is `Rejected`, never dropped in silence. Dropped are only
fields without effect on the text: `seed` (a wish), `user` (sent as metadata), `store`, `metadata`, and OpenAI's own
controls of its prompt cache.
"""

from typing import Any

import orjson

from ...pipeline.errors import Rejected
from ...pipeline.models import Model
from ...schemas.answers import Usage
from ...schemas.record import JsonObject
from .failures import unreadable
from .fields import Limited, Put, as_is, convert, stop

Block = dict[str, Any]

_TO = Limited("Anthropic")
_EFFORTS = {"minimal": "low", "low": "low", "medium": "medium", "high": "high", "xhigh": "xhigh", "max": "max"}
_FINISH = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "pause_turn": "length",
    "tool_use": "tool_calls",
    "refusal": "content_filter",
}
_READ_ELSEWHERE = {"model", "messages", "stream", "stream_options", "user"}
_WITHOUT_EFFECT = {"seed", "store", "metadata", "safety_identifier", "prompt_cache_key", "prompt_cache_options", "prompt_cache_retention"}
_TIERS_ASKED = (None, "auto", "default")


def to_messages(model: Model, body: JsonObject) -> JsonObject:
    """The messages request. Raises `Rejected` for what Anthropic can't be asked."""
    limit = body.get("max_completion_tokens") or body.get("max_tokens") or model.max_output_tokens
    # A priority tier would be billed by a contract that nobody here knows.
    request: JsonObject = {"model": model.provider_model, "max_tokens": limit, "service_tier": "standard_only"}
    system, request["messages"] = _conversation(body.get("messages") or [])
    if system:
        request["system"] = system
    if body.get("user"):
        request["metadata"] = {"user_id": body["user"]}
    convert(request, body, _FIELDS, _WITHOUT_EFFECT | _READ_ELSEWHERE, _TO)
    if body.get("parallel_tool_calls") is False and request.get("tools"):
        request.setdefault("tool_choice", {"type": "auto"})["disable_parallel_tool_use"] = True
    return request


# --- fields ----------------------------------------------------------------------------------------------------------


def _response_format(request: JsonObject, value: Any) -> None:
    kind = value.get("type") if isinstance(value, dict) else None
    if kind == "json_schema" and isinstance(value.get("json_schema"), dict):
        request.setdefault("output_config", {})["format"] = {"type": "json_schema", "schema": value["json_schema"].get("schema") or {}}
    elif kind != "text":
        raise _TO.cannot("a response_format other than text or json_schema")


def _effort(request: JsonObject, value: Any) -> None:
    if value == "none":
        request["thinking"] = {"type": "disabled"}
    elif value in _EFFORTS:
        request.setdefault("output_config", {})["effort"] = _EFFORTS[value]
    else:
        raise _TO.cannot(f"reasoning_effort {value!r}")


def _tools(request: JsonObject, value: Any) -> None:
    tools = []
    for tool in value:
        function = tool.get("function") if isinstance(tool, dict) and tool.get("type") == "function" else None
        if not isinstance(function, dict) or "name" not in function:
            raise _TO.cannot("tools other than functions")
        made: Block = {"name": function["name"], "input_schema": function.get("parameters") or {"type": "object", "properties": {}}}
        for name in ("description", "strict"):
            if function.get(name) is not None:
                made[name] = function[name]
        if "cache_control" in tool:
            made["cache_control"] = tool["cache_control"]
        tools.append(made)
    if tools:
        request["tools"] = tools


def _tool_choice(request: JsonObject, value: Any) -> None:
    simple = {"auto": "auto", "none": "none", "required": "any"}
    if isinstance(value, str) and value in simple:
        request["tool_choice"] = {"type": simple[value]}
    elif isinstance(value, dict) and isinstance(value.get("function"), dict):
        request["tool_choice"] = {"type": "tool", "name": value["function"].get("name")}
    else:
        raise _TO.cannot(f"tool_choice {value!r}")


def _nothing(request: JsonObject, value: Any) -> None:
    """Read elsewhere."""


_FIELDS: dict[str, Put] = {
    **_TO.without_counterpart(),
    "max_tokens": _nothing,
    "max_completion_tokens": _nothing,
    "parallel_tool_calls": _nothing,
    "temperature": _TO.temperature,
    "top_p": as_is("top_p"),
    "top_k": as_is("top_k"),
    "cache_control": as_is("cache_control"),
    "thinking": as_is("thinking"),
    "stop": stop,
    "response_format": _response_format,
    "reasoning_effort": _effort,
    "tools": _tools,
    "tool_choice": _tool_choice,
    "service_tier": _TO.only("service_tier", *_TIERS_ASKED),
}


# --- messages --------------------------------------------------------------------------------------------------------


def _conversation(messages: list[Any]) -> tuple[list[Block], list[Block]]:
    """System blocks, and the turns: neighbours of one role are one turn, as tool results must be."""
    system: list[Block] = []
    turns: list[Block] = []
    for message in messages:
        role = message.get("role") if isinstance(message, dict) else None
        if role in ("system", "developer"):
            if turns:
                raise _TO.cannot("a system message after the first turn")
            system += _content(message.get("content"))
            continue
        speaker, blocks = _turn(role, message)
        if turns and turns[-1]["role"] == speaker:
            turns[-1]["content"] += blocks
        elif blocks:
            turns.append({"role": speaker, "content": blocks})
    return system, turns


def _turn(role: Any, message: JsonObject) -> tuple[str, list[Block]]:
    if role == "user":
        return "user", _content(message.get("content"))
    if role == "tool":
        result = {"type": "tool_result", "tool_use_id": message.get("tool_call_id"), "content": _content(message.get("content"))}
        return "user", [result]
    if role == "assistant":
        return "assistant", _content(message.get("content")) + [_tool_use(call) for call in message.get("tool_calls") or ()]
    raise _TO.cannot(f"a message of role {role!r}")


def _tool_use(call: Any) -> Block:
    try:
        function = call["function"]
        return {"type": "tool_use", "id": call["id"], "name": function["name"], "input": orjson.loads(function["arguments"] or "{}")}
    except (KeyError, TypeError, orjson.JSONDecodeError):
        raise Rejected("a tool call in the conversation is not a function with JSON arguments; correct it and ask again") from None


def _content(content: Any) -> list[Block]:
    if content is None or content == "":
        return []
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    if not isinstance(content, list):
        raise Rejected("the content of a message is a text or a list of parts; correct it and ask again")
    return [_part(part) for part in content]


def _part(part: Any) -> Block:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind == "text":
        made: Block = {"type": "text", "text": part.get("text", "")}
    elif kind == "image_url":
        made = {"type": "image", "source": _image(part["image_url"])}
    else:
        raise _TO.cannot(f"content of type {kind!r}")
    if "cache_control" in part:
        made["cache_control"] = part["cache_control"]
    elif isinstance(part.get("prompt_cache_breakpoint"), dict):
        made["cache_control"] = _cache_control(part["prompt_cache_breakpoint"].get("ttl"))
    return made


def _cache_control(ttl: Any) -> Block:
    """OpenAI's mark as Anthropic's: with the shortest lifetime that is as long as asked."""
    if ttl in (None, "5m"):
        return {"type": "ephemeral"}
    if ttl in ("30m", "1h"):
        return {"type": "ephemeral", "ttl": "1h"}
    raise _TO.cannot(f"a prompt_cache_breakpoint kept for {ttl!r}")


def _image(image: Any) -> Block:
    url = image.get("url") if isinstance(image, dict) else image
    if not isinstance(url, str):
        raise Rejected("an image has no url; correct it and ask again")
    if not url.startswith("data:"):
        return {"type": "url", "url": url}
    kind, _, data = url[5:].partition(";base64,")
    if not data:
        raise Rejected("an image's data URL is not base64; write data:image/png;base64,... and ask again")
    return {"type": "base64", "media_type": kind, "data": data}


# --- answers ---------------------------------------------------------------------------------------------------------


def to_completion(reply: JsonObject, created_s: int) -> tuple[JsonObject, str] | None:
    """The chat completion and its finish reason; None where the reply has no readable content."""
    content, stop = reply.get("content"), reply.get("stop_reason")
    if not isinstance(content, list) or not isinstance(stop, str):
        return None
    texts: list[str] = []
    calls: list[Block] = []
    for block in content:
        kind = block.get("type") if isinstance(block, dict) else None
        if kind == "text" and isinstance(block.get("text"), str):
            texts.append(block["text"])
        elif kind in ("thinking", "redacted_thinking"):
            continue
        elif kind == "tool_use" and isinstance(block.get("name"), str) and isinstance(block.get("input"), dict):
            function = {"name": block["name"], "arguments": orjson.dumps(block["input"]).decode()}
            calls.append({"id": block.get("id"), "type": "function", "function": function})
        else:
            return None
    finish = _FINISH.get(stop, stop)
    message: Block = {"role": "assistant", "content": "".join(texts) if texts or not calls else None, "refusal": None}
    if calls:
        message["tool_calls"] = calls
    body: JsonObject = {"id": reply.get("id"), "object": "chat.completion", "created": created_s, "model": reply.get("model")}
    body["choices"] = [{"index": 0, "message": message, "logprobs": None, "finish_reason": finish}]
    return body, finish


def read_usage(provider: str, usage: Any, asked_for_hour: bool) -> Usage:
    """Usage in the engine's terms; Anthropic counts cached tokens beside `input_tokens`. Raises `Ambiguous`."""
    if not isinstance(usage, dict):
        raise unreadable(provider, "without usage", "usage_missing")
    if any((usage.get("server_tool_use") or {}).values()):
        raise unreadable(provider, "with tools of its own, which have no price here", "usage_unpriced")
    plain, output = usage.get("input_tokens"), usage.get("output_tokens")
    read, written = usage.get("cache_read_input_tokens") or 0, usage.get("cache_creation_input_tokens") or 0
    kept = usage.get("cache_creation") or {}
    hour = kept.get("ephemeral_1h_input_tokens") or 0
    short = kept.get("ephemeral_5m_input_tokens") or 0
    if written and not kept and not asked_for_hour:
        short = written
    counts = (plain, output, read, written, hour, short)
    if not all(type(n) is int and n >= 0 for n in counts) or short + hour != written:
        raise unreadable(provider, "with usage that can't be", "usage_unreadable")
    total = plain + read + written  # type: ignore[operator]
    return Usage(input_tokens=total, output_tokens=output, cache_read_tokens=read, cache_write_tokens=short, cache_write_1h_tokens=hour)  # type: ignore[arg-type]


def tier_of(usage: JsonObject) -> str:
    """What the call is billed by. A fast mode or a region has a price of its own: named, so that it isn't billed as plain."""
    speed, region = usage.get("speed") or "standard", usage.get("inference_geo")
    if speed != "standard":
        return f"speed={speed}"
    if region not in (None, "", "global", "not_available"):
        return f"inference_geo={region}"
    return str(usage.get("service_tier") or "standard")

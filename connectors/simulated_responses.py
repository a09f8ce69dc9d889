"""OpenAI's responses API at the simulated provider: its requests read, its replies and streams written.

Written from the documentation, apart from the connector's own form, so that one checks the other.
"""

from collections.abc import Iterator
from typing import Any

import orjson

from ..schemas.answers import Usage
from ..schemas.record import JsonObject
from .simulated_forms import CREATED_S, call_id
from .simulation import Answered, Asked

_ROLES = frozenset({"user", "assistant", "system", "developer"})
_TYPES = {"input_text": "text", "output_text": "text", "input_image": "image_url"}


def chat_of_responses(body: JsonObject) -> JsonObject:
    """The same question as a chat completion request. Raises ValueError with what is wrong with it."""
    unknown = sorted({"messages", "max_tokens", "max_completion_tokens", "response_format", "n", "stop", "stream_options"} & set(body))
    if unknown:
        raise ValueError(f"Unknown parameter: '{unknown[0]}'.")
    given = body.get("input")
    items = [{"role": "user", "content": given}] if isinstance(given, str) else given
    if not isinstance(items, list) or not items:
        raise ValueError("input must be a text or a list that is not empty")
    messages = [{"role": "system", "content": body["instructions"]}] if body.get("instructions") else []
    messages += [_message(item) for item in items]
    chat: JsonObject = {"messages": messages, "max_tokens": body.get("max_output_tokens")}
    chat["response_format"] = (body.get("text") or {}).get("format")
    chat["tools"] = [{"type": "function", "function": tool} for tool in body.get("tools") or ()]
    choice = body.get("tool_choice")
    chat["tool_choice"] = {"function": {"name": choice["name"]}} if isinstance(choice, dict) else choice
    return chat | {name: body[name] for name in ("service_tier", "prompt_cache_key", "prompt_cache_options") if name in body}


def _message(item: Any) -> JsonObject:
    kind = item.get("type", "message")
    if kind == "function_call":
        function = {"name": item["name"], "arguments": item["arguments"]}
        return {"role": "assistant", "content": None, "tool_calls": [{"id": item["call_id"], "function": function}]}
    if kind == "function_call_output":
        return {"role": "tool", "tool_call_id": item["call_id"], "content": _parts(item["output"], "tool")}
    if kind != "message" or item.get("role") not in _ROLES:
        raise ValueError(f"Invalid value: '{str(kind)[:40]}'. An input item is a message, a function_call or a function_call_output.")
    return {"role": item["role"], "content": _parts(item["content"], item["role"])}


def _parts(content: Any, role: str) -> Any:
    if isinstance(content, str):
        return content
    parts = []
    for part in content:
        if part.get("type") not in _TYPES or (part["type"] == "output_text") != (role == "assistant"):
            raise ValueError(f"Invalid value: '{str(part.get('type'))[:40]}' in what the {role} said")
        if "prompt_cache_breakpoint" in part and part["type"] == "output_text":
            raise ValueError("Unknown parameter: 'prompt_cache_breakpoint'.")
        parts.append({**part, "type": _TYPES[part["type"]]})
    return parts


_INCOMPLETE = {"length": "max_output_tokens", "content_filter": "content_filter"}


def response(asked: Asked, made: Answered, request_id: str, usage: Usage | None = None) -> JsonObject:
    """The response; equal questions get equal answers but for the id. `usage`: None where nothing was cached."""
    usage = usage or Usage(input_tokens=asked.input_tokens, output_tokens=made.output_tokens)
    if made.tool is not None:
        call = {"type": "function_call", "id": f"fc_{request_id}", "call_id": call_id(made), "name": made.tool, "arguments": made.arguments}
        output: list[JsonObject] = [{**call, "status": "completed"}]
    else:
        said = {"type": "output_text", "text": made.texts[0], "annotations": [], "logprobs": []}
        output = [{"type": "message", "id": f"msg_{request_id}", "role": "assistant", "status": "completed", "content": [said]}]
    short = usage.cache_write_tokens + usage.cache_write_1h_tokens
    details: JsonObject = {"cached_tokens": usage.cache_read_tokens, "cache_write_tokens": short + usage.cache_write_12h_tokens}
    details["cache_write_tokens_details"] = {"ttl_30m_tokens": short, "ttl_12h_tokens": usage.cache_write_12h_tokens}
    counts = {"input_tokens": asked.input_tokens, "input_tokens_details": details, "output_tokens": made.output_tokens}
    return {
        "id": request_id,
        "object": "response",
        "created_at": CREATED_S,
        "model": asked.model,
        "status": "incomplete" if made.finish in _INCOMPLETE else "completed",
        "incomplete_details": {"reason": _INCOMPLETE[made.finish]} if made.finish in _INCOMPLETE else None,
        "error": None,
        "output": [{"type": "reasoning", "id": f"rs_{request_id}", "summary": []}, *output],
        "usage": {
            **counts,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": asked.input_tokens + made.output_tokens,
        },
        "service_tier": "default" if asked.tier == "standard" else asked.tier,
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
    }


def response_events(reply: JsonObject, with_usage: bool) -> Iterator[bytes]:
    """The last one holds the whole response, whatever else was asked for."""
    begun = {**reply, "status": "in_progress", "output": [], "usage": None}
    number = 0

    def event(kind: str, data: JsonObject) -> bytes:
        nonlocal number
        number += 1
        said = orjson.dumps({"type": kind, "sequence_number": number, **data})
        return b"event: " + kind.encode() + b"\ndata: " + said + b"\n\n"

    yield event("response.created", {"response": begun})
    yield event("response.in_progress", {"response": begun})
    for index, item in enumerate(reply["output"] or ()):
        yield event("response.output_item.added", {"output_index": index, "item": {**item, "status": "in_progress"}})
        where = {"output_index": index, "item_id": item["id"]}
        if item["type"] == "message":
            text = item["content"][0]["text"]
            for start in range(0, len(text), 24):
                delta = {**where, "content_index": 0, "delta": text[start : start + 24], "logprobs": []}
                yield event("response.output_text.delta", delta)
        elif item["type"] == "function_call":
            yield event("response.function_call_arguments.delta", {**where, "delta": item["arguments"]})
        yield event("response.output_item.done", {"output_index": index, "item": item})
    yield event(f"response.{reply['status']}", {"response": reply})

"""A simulated answer in the form of each protocol."""

import hashlib

import orjson

from ..schemas.answers import Usage
from ..schemas.record import JsonObject
from .simulation import Answered, Asked

CREATED_S = 1_700_000_000


def completion(asked: Asked, made: Answered, request_id: str, usage: Usage | None = None) -> JsonObject:
    """The chat completion; equal questions get equal answers but for the id. `usage`: None where nothing was cached."""
    usage = usage or _plain(asked, made)
    if made.tool is not None:
        function = {"name": made.tool, "arguments": made.arguments}
        messages: list[JsonObject] = [
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [{"id": call_id(made), "type": "function", "function": function}],
                "refusal": None,
            }
        ]
    else:
        messages = [{"role": "assistant", "content": text, "refusal": None} for text in made.texts]
    return {
        "id": request_id,
        "object": "chat.completion",
        "created": CREATED_S,
        "model": asked.model,
        "choices": [{"index": i, "message": m, "logprobs": None, "finish_reason": made.finish} for i, m in enumerate(messages)],
        "usage": {
            "prompt_tokens": asked.input_tokens,
            "completion_tokens": made.output_tokens,
            "total_tokens": asked.input_tokens + made.output_tokens,
            "prompt_tokens_details": {
                "cached_tokens": usage.cache_read_tokens,
                "cache_write_tokens": usage.cache_write_tokens + usage.cache_write_1h_tokens + usage.cache_write_12h_tokens,
            },
        },
        "service_tier": "default" if asked.tier == "standard" else asked.tier,
        "system_fingerprint": None,
    }


def message(asked: Asked, made: Answered, request_id: str, usage: Usage | None = None) -> JsonObject:
    """The Anthropic message; equal questions get equal answers but for the id. `usage`: None where nothing was cached."""
    usage = usage or _plain(asked, made)
    if made.tool is not None:
        content: list[JsonObject] = [{"type": "tool_use", "id": call_id(made), "name": made.tool, "input": orjson.loads(made.arguments)}]
    else:
        content = [{"type": "text", "text": made.texts[0], "citations": None}]
    return {
        "id": request_id,
        "type": "message",
        "role": "assistant",
        "model": asked.model,
        "content": content,
        "stop_reason": {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use", "content_filter": "refusal"}[made.finish],
        "stop_sequence": None,
        "usage": {
            "input_tokens": asked.input_tokens - usage.cache_read_tokens - usage.cache_write_tokens - usage.cache_write_1h_tokens,
            "cache_creation_input_tokens": usage.cache_write_tokens + usage.cache_write_1h_tokens,
            "cache_read_input_tokens": usage.cache_read_tokens,
            "cache_creation": {
                "ephemeral_5m_input_tokens": usage.cache_write_tokens,
                "ephemeral_1h_input_tokens": usage.cache_write_1h_tokens,
            },
            "output_tokens": made.output_tokens,
            "service_tier": "standard",
        },
    }


def cohere_reply(asked: Asked, made: Answered, request_id: str, usage: Usage | None = None) -> JsonObject:
    """The reply of Cohere's chat; it names no model, and counts what it bills apart from what it processes."""
    usage = usage or _plain(asked, made)
    said: JsonObject = {"role": "assistant"}
    if made.tool is not None:
        function = {"name": made.tool, "arguments": made.arguments}
        said["tool_calls"] = [{"id": call_id(made), "type": "function", "function": function}]
    else:
        said["content"] = [{"type": "text", "text": made.texts[0]}]
    billed = {"input_tokens": float(usage.input_tokens), "output_tokens": float(usage.output_tokens)}
    return {
        "id": request_id,
        "finish_reason": {"stop": "COMPLETE", "length": "MAX_TOKENS", "tool_calls": "TOOL_CALL", "content_filter": "ERROR"}[made.finish],
        "message": said,
        "usage": {"billed_units": billed, "tokens": {**billed, "input_tokens": asked.input_tokens + 66.0}},
    }


def _plain(asked: Asked, made: Answered) -> Usage:
    return Usage(input_tokens=asked.input_tokens, output_tokens=made.output_tokens)


def call_id(made: Answered) -> str:
    return "call_" + hashlib.blake2b(f"{made.tool}{made.arguments}".encode(), digest_size=8).hexdigest()

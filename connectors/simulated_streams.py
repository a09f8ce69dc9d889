"""A simulated reply as the events of its protocol's stream. Written from the providers' documentation, apart from what reads them."""

from collections.abc import Callable, Iterator
from typing import Any

import orjson

from ..schemas.record import JsonObject
from .simulated_responses import response_events

PIECE = 24
"""Characters of a delta."""

Events = Callable[[JsonObject, bool], Iterator[bytes]]
"""(whole reply, whether usage was asked for) -> events, as they are sent. What a fault took from the reply is missing here too."""


def chat_events(reply: JsonObject, with_usage: bool) -> Iterator[bytes]:
    """Of chat completions. Usage is told after the last choice, where it was asked for."""
    head = {name: value for name, value in reply.items() if name not in ("choices", "usage")}
    head["object"] = "chat.completion.chunk"
    rest = {"usage": None} if with_usage else {}

    def chunk(index: int, delta: JsonObject, finish: str | None = None) -> bytes:
        return _event({**head, "choices": [{"index": index, "delta": delta, "logprobs": None, "finish_reason": finish}], **rest})

    for choice in reply["choices"] or ():
        index, message = choice["index"], choice["message"]
        start: JsonObject = {"role": "assistant", "content": None if message.get("tool_calls") else "", "refusal": None}
        for number, call in enumerate(message.get("tool_calls") or ()):
            function = {**call["function"], "arguments": ""}
            start.setdefault("tool_calls", []).append({"index": number, **call, "function": function})
        yield chunk(index, start)
        for text in _pieces(message.get("content") or ""):
            yield chunk(index, {"content": text})
        for number, call in enumerate(message.get("tool_calls") or ()):
            for text in _pieces(call["function"]["arguments"]):
                yield chunk(index, {"tool_calls": [{"index": number, "function": {"arguments": text}}]})
        yield chunk(index, {}, choice["finish_reason"])
    if with_usage and "usage" in reply:
        yield _event({**head, "choices": [], "usage": reply["usage"]})
    yield b"data: [DONE]\n\n"


def message_events(reply: JsonObject, with_usage: bool) -> Iterator[bytes]:
    """Of Anthropic's messages: the input is counted at the start, the output at the end. Without content there is no stop reason."""
    start = {**reply, "content": [], "stop_reason": None, "stop_sequence": None}
    if "usage" in reply:
        start["usage"] = {**reply["usage"], "output_tokens": 1}
    yield _named("message_start", {"message": start})
    yield _named("ping", {})
    for index, block in enumerate(reply["content"] or ()):
        if block["type"] == "tool_use":
            yield _named("content_block_start", {"index": index, "content_block": {**block, "input": {}}})
            kind, field, text = "input_json_delta", "partial_json", orjson.dumps(block["input"]).decode()
        else:
            yield _named("content_block_start", {"index": index, "content_block": {**block, "text": ""}})
            kind, field, text = "text_delta", "text", block["text"]
        for piece in _pieces(text):
            yield _named("content_block_delta", {"index": index, "delta": {"type": kind, field: piece}})
        yield _named("content_block_stop", {"index": index})
    stop = reply["stop_reason"] if reply["content"] is not None else None
    end: JsonObject = {"delta": {"stop_reason": stop, "stop_sequence": reply["stop_sequence"]}}
    if "usage" in reply:
        end["usage"] = {"output_tokens": reply["usage"]["output_tokens"]}
    yield _named("message_delta", end)
    yield _named("message_stop", {})


def cohere_events(reply: JsonObject, with_usage: bool) -> Iterator[bytes]:
    """Of Cohere's chat: finish reason and usage are in its last event."""
    said = reply["message"] or {}
    yield _named("message-start", {"id": reply["id"], "delta": {"message": {"role": "assistant", "content": [], "tool_calls": []}}})
    for index, block in enumerate(said.get("content") or ()):
        yield _named("content-start", {"index": index, "delta": {"message": {"content": {"type": "text", "text": ""}}}})
        for text in _pieces(block["text"]):
            yield _named("content-delta", {"index": index, "delta": {"message": {"content": {"text": text}}}})
        yield _named("content-end", {"index": index})
    for index, call in enumerate(said.get("tool_calls") or ()):
        first = {**call, "function": {**call["function"], "arguments": ""}}
        yield _named("tool-call-start", {"index": index, "delta": {"message": {"tool_calls": first}}})
        for text in _pieces(call["function"]["arguments"]):
            yield _named("tool-call-delta", {"index": index, "delta": {"message": {"tool_calls": {"function": {"arguments": text}}}}})
        yield _named("tool-call-end", {"index": index})
    end = {"finish_reason": reply["finish_reason"]} | ({"usage": reply["usage"]} if "usage" in reply else {})
    yield _named("message-end", {"delta": end})


STREAMS: dict[str, Events] = {
    "openai": chat_events, "responses": response_events, "anthropic": message_events, "cohere": cohere_events,
}  # fmt: skip


def error_event(protocol: str) -> bytes:
    """What a stream says when it fails on its way."""
    error = {"type": "overloaded_error", "message": "asked to fail"}
    if protocol == "openai":
        return _event({"error": {**error, "param": None, "code": None}})
    if protocol == "anthropic":
        return _named("error", {"error": error})
    if protocol == "responses":
        return _named("error", {"code": "server_error", "message": "asked to fail", "param": None, "sequence_number": 9})
    return _named("message-end", {"delta": {"finish_reason": "ERROR", "error": "asked to fail"}})


def _pieces(text: str) -> Iterator[str]:
    for start in range(0, len(text), PIECE):
        yield text[start : start + PIECE]


def _event(data: JsonObject) -> bytes:
    return b"data: " + orjson.dumps(data) + b"\n\n"


def _named(kind: str, data: Any) -> bytes:
    return b"event: " + kind.encode() + b"\n" + _event({"type": kind, **data})

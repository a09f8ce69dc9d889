"""The events of each protocol's stream put together: the reply as it would have come in one piece, to be read and billed like one.

Every stream has a last event of its own. One that breaks off before it, or says on its way that it failed, is `Ambiguous`: what was
made until then is billed, and nobody says how much that was.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import wraps
from typing import Any, NamedTuple

import orjson

from ...schemas.record import JsonObject
from .failures import cut, failed_midway, unreadable
from .sse import Ends, Event

DONE = b"[DONE]"
_WHOLE = frozenset({"id", "type", "role", "index"})
"""Of a delta: never continued in the next one."""

Assemble = Callable[[str, Sequence[Event]], JsonObject]
"""(provider, events) -> the whole reply. Raises `Ambiguous`."""


class StreamForm(NamedTuple):
    """How a protocol streams."""

    ends: Ends
    assemble: Assemble


def _readable(assemble: Assemble) -> Assemble:
    @wraps(assemble)
    def guarded(provider: str, events: Sequence[Event]) -> JsonObject:
        try:
            return assemble(provider, events)
        except (ValueError, KeyError, IndexError, TypeError, AttributeError):
            raise unreadable(provider, "with a stream that can't be read") from None

    return guarded


def _named(events: Sequence[Event]) -> Iterator[tuple[str, JsonObject, bytes]]:
    """Events whose JSON says their type: (type, event, as it came)."""
    for event in events:
        if event.data != DONE:
            data = orjson.loads(event.data)
            yield str(data.get("type") or event.name), data, event.data


# --- OpenAI's chat completions -------------------------------------------------------------------------------------------


@_readable
def chat(provider: str, events: Sequence[Event]) -> JsonObject:
    """Of chunks up to `[DONE]`. The usage comes in one of the last, where the request asked for it."""
    body: JsonObject = {}
    choices: dict[int, JsonObject] = {}
    for event in events:
        if event.data == DONE:
            break
        chunk = orjson.loads(event.data)
        if chunk.get("error") is not None or event.name == "error":
            raise failed_midway(provider, event.data)
        body |= {name: value for name, value in chunk.items() if value is not None and name != "choices"}
        for piece in chunk.get("choices") or ():
            _add_choice(choices.setdefault(piece["index"], {"index": piece["index"], "message": {}, "logprobs": None}), piece)
    else:
        raise cut(provider)
    for choice in choices.values():
        choice["message"] = {"role": "assistant", "content": None, "refusal": None} | choice["message"]
        for call in choice["message"].get("tool_calls") or ():
            call.pop("index", None)
    return {**body, "object": "chat.completion", "choices": [choices[i] for i in sorted(choices)]}


def _add_choice(choice: JsonObject, piece: JsonObject) -> None:
    for name, value in piece.items():
        if name == "delta":
            _merge(choice["message"], value or {})
        elif name == "logprobs" and value is not None:
            choice["logprobs"] = choice["logprobs"] or {}
            _merge(choice["logprobs"], value)
        elif value is not None:
            choice[name] = value


def _merge(into: JsonObject, delta: JsonObject) -> None:
    """Texts are continued, lists get more members, or their members (known by `index`) go on."""
    for name, value in delta.items():
        old = into.get(name)
        if value is None:
            into.setdefault(name, None)
        elif isinstance(value, list):
            into[name] = _merged_list(old or [], value)
        elif isinstance(value, dict):
            into[name] = old or {}
            _merge(into[name], value)
        elif isinstance(value, str) and isinstance(old, str) and name not in _WHOLE:
            into[name] = old + value
        else:
            into[name] = value


def _merged_list(old: list[Any], more: list[Any]) -> list[Any]:
    for item in more:
        number = item.get("index") if isinstance(item, dict) else None
        known = next((o for o in old if number is not None and o.get("index") == number), None)
        if known is None:
            known = {} if isinstance(item, dict) else item
            old.append(known)
        if isinstance(item, dict):
            _merge(known, item)
    return old


# --- Anthropic's messages ------------------------------------------------------------------------------------------------


@_readable
def messages(provider: str, events: Sequence[Event]) -> JsonObject:
    """Up to `message_stop`. Counts at the end replace those of the start; without counts at the end there is no usage."""
    message: JsonObject = {}
    blocks: dict[int, JsonObject] = {}
    inputs: dict[int, str] = {}
    counted = False
    for kind, event, raw in _named(events):
        if kind == "error":
            raise failed_midway(provider, raw)
        if kind == "message_start":
            message = dict(event["message"])
        elif kind == "content_block_start":
            blocks[event["index"]] = dict(event["content_block"])
        elif kind == "content_block_delta":
            _add_delta(blocks[event["index"]], event["index"], event["delta"], inputs)
        elif kind == "message_delta":
            message |= {name: value for name, value in event["delta"].items() if value is not None}
            said = {name: value for name, value in (event.get("usage") or {}).items() if value is not None}
            counted = counted or "output_tokens" in said
            message["usage"] = {**(message.get("usage") or {}), **said}
        elif kind == "message_stop":
            break
    else:
        raise cut(provider)
    for index, text in inputs.items():
        blocks[index]["input"] = orjson.loads(text) if text else {}
    return {**message, "content": [blocks[i] for i in sorted(blocks)], "usage": message.get("usage") if counted else None}


def _add_delta(block: JsonObject, index: int, delta: JsonObject, inputs: dict[int, str]) -> None:
    if delta["type"] == "input_json_delta":
        inputs[index] = inputs.get(index, "") + delta["partial_json"]
        return
    for name in ("text", "thinking", "signature"):
        if isinstance(delta.get(name), str):
            block[name] = block.get(name, "") + delta[name]


# --- Cohere's chat -------------------------------------------------------------------------------------------------------


@_readable
def cohere(provider: str, events: Sequence[Event]) -> JsonObject:
    """Up to `message-end`, which holds the finish reason and the usage."""
    body: JsonObject = {}
    blocks: dict[int, JsonObject] = {}
    calls: dict[int, JsonObject] = {}
    for kind, event, raw in _named(events):
        delta = event.get("delta") or {}
        said = delta.get("message") or {}
        if kind == "error":
            raise failed_midway(provider, raw)
        if kind == "message-start":
            body["id"] = event.get("id")
        elif kind in ("content-start", "content-delta"):
            _merge(blocks.setdefault(event["index"], {}), said["content"])
        elif kind in ("tool-call-start", "tool-call-delta"):
            _merge(calls.setdefault(event["index"], {}), said["tool_calls"])
        elif kind == "message-end":
            if delta.get("error"):
                raise failed_midway(provider, raw)
            body |= {"finish_reason": delta.get("finish_reason"), "usage": delta.get("usage")}
            break
    else:
        raise cut(provider)
    message = {"role": "assistant", "content": [blocks[i] for i in sorted(blocks)], "tool_calls": [calls[i] for i in sorted(calls)]}
    return {**body, "message": message}


# --- OpenAI's responses --------------------------------------------------------------------------------------------------


@_readable
def responses(provider: str, events: Sequence[Event]) -> JsonObject:
    """The last event holds the whole response."""
    for kind, event, raw in _named(events):
        if kind == "error":
            raise failed_midway(provider, raw)
        if kind in RESPONSE_ENDS:
            return dict(event["response"])
    raise cut(provider)


RESPONSE_ENDS = frozenset({"response.completed", "response.incomplete", "response.failed"})

CHAT = StreamForm(lambda event: event.data == DONE, chat)
MESSAGES = StreamForm(lambda event: event.name == "message_stop", messages)
COHERE = StreamForm(lambda event: event.name == "message-end" or b'"message-end"' in event.data[:200], cohere)
RESPONSES = StreamForm(lambda event: event.name in RESPONSE_ENDS, responses)

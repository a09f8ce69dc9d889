"""Streams put together: what belongs together is joined, what is missing is never made up."""

from collections.abc import Iterator
from typing import Any

import orjson
import pytest

from inference_engine.connectors.models_toml import load_catalogue
from inference_engine.connectors.providers.anthropic import read_reply
from inference_engine.connectors.providers.sse import Event
from inference_engine.connectors.providers.stream_form import CHAT, COHERE, MESSAGES, RESPONSES, StreamForm
from inference_engine.pipeline.errors import Ambiguous, Charged
from inference_engine.schemas.record import JsonObject

CLAUDE = load_catalogue().get("claude-sonnet-5-5")


def events(*said: JsonObject | bytes) -> list[Event]:
    return [Event("", data) if isinstance(data, bytes) else Event(str(data.get("type", "")), orjson.dumps(data)) for data in said]


def chunk(delta: JsonObject, finish: str | None = None, index: int = 0, **more: Any) -> JsonObject:
    return {"id": "c", "model": "m", "usage": None, "choices": [{"index": index, "delta": delta, "finish_reason": finish, **more}]}


def test_choices_and_tool_calls_that_come_in_turns_are_kept_apart() -> None:
    def call(number: int, arguments: str, **more: Any) -> JsonObject:
        return {"tool_calls": [{"index": number, "function": {"arguments": arguments}, **more}]}

    body = CHAT.assemble("openai", events(
        chunk({"role": "assistant", "content": "a", "refusal": None}),
        chunk({"role": "assistant", "content": None, **call(0, "", id="x", type="function")}, index=1),
        chunk({"content": "b"}, logprobs={"content": [{"token": "b"}]}),
        chunk({**call(1, "{", id="y", type="function")}, index=1),
        chunk({**call(0, "[1]", id="x", type="function")}, index=1),
        chunk({**call(1, "}")}, "tool_calls", index=1),
        chunk({}, "stop", logprobs={"content": [{"token": "c"}]}),
        {"id": "c", "model": "m", "choices": [], "usage": {"prompt_tokens": 1}, "service_tier": "flex"},
        b"[DONE]",
    ))  # fmt: skip
    first, second = body["choices"]
    assert (first["message"], first["finish_reason"]) == ({"role": "assistant", "content": "ab", "refusal": None}, "stop")
    assert first["logprobs"] == {"content": [{"token": "b"}, {"token": "c"}]}
    assert second["message"]["tool_calls"] == [
        {"id": "x", "type": "function", "function": {"arguments": "[1]"}},
        {"id": "y", "type": "function", "function": {"arguments": "{}"}},
    ]
    assert (body["usage"], body["service_tier"], body["object"]) == ({"prompt_tokens": 1}, "flex", "chat.completion")


def message(*between: JsonObject, usage: JsonObject | None = None) -> Iterator[JsonObject | bytes]:
    start = {"input_tokens": 9, "output_tokens": 1, "cache_read_input_tokens": 4, "cache_creation_input_tokens": 0}
    yield {"type": "message_start", "message": {"id": "m", "model": "claude-sonnet-5-5", "content": [], "usage": start}}
    yield from between
    yield {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, **({"usage": usage} if usage else {})}
    yield {"type": "message_stop"}


def block(index: int, start: JsonObject, *deltas: JsonObject) -> list[JsonObject]:
    said = [{"type": "content_block_delta", "index": index, "delta": delta} for delta in deltas]
    return [{"type": "content_block_start", "index": index, "content_block": start}, *said, {"type": "content_block_stop", "index": index}]


def test_blocks_of_a_message_are_joined_and_its_counts_are_those_of_the_end() -> None:
    blocks = [
        *block(0, {"type": "thinking", "thinking": ""}, {"type": "thinking_delta", "thinking": "hm"}),
        *block(1, {"type": "text", "text": ""}, {"type": "text_delta", "text": "a"}, {"type": "text_delta", "text": "b"}),
        *block(2, {"type": "tool_use", "id": "t", "name": "f", "input": {}}, {"type": "input_json_delta", "partial_json": ""}),
        *block(3, {"type": "tool_use", "id": "u", "name": "g", "input": {}}, {"type": "input_json_delta", "partial_json": '{"a"'},
               {"type": "input_json_delta", "partial_json": ": 1}"}),
    ]  # fmt: skip
    body = MESSAGES.assemble("anthropic", events(*message(*blocks, usage={"input_tokens": 10, "output_tokens": 7})))
    made = read_reply(CLAUDE, {}, body, "r", 0)
    said = made.body["choices"][0]["message"]
    assert (said["content"], [c["function"]["arguments"] for c in said["tool_calls"]]) == ("ab", ["{}", '{"a":1}'])
    assert (made.usage.input_tokens, made.usage.output_tokens, made.usage.cache_read_tokens) == (14, 7, 4)


def test_counts_of_a_messages_start_alone_are_no_usage() -> None:
    """One output token is what every message begins with."""
    with pytest.raises(Ambiguous) as caught:
        read_reply(CLAUDE, {}, MESSAGES.assemble("anthropic", events(*message())), "r", 0)
    assert caught.value.code == "usage_missing"


def test_an_empty_end_is_charged_where_the_counts_are_there() -> None:
    body = MESSAGES.assemble("anthropic", events(*message(usage={"output_tokens": 7})))
    with pytest.raises(Charged):
        read_reply(CLAUDE, {}, {**body, "stop_reason": None}, "r", 0)


CUT: dict[str, tuple[StreamForm, list[JsonObject | bytes]]] = {
    "chat": (CHAT, [chunk({"content": "a"}, "stop"), {"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 1}}]),
    "messages": (MESSAGES, [*message(usage={"output_tokens": 7})][:-1]),
    "cohere": (COHERE, [{"type": "message-start", "id": "c"}]),
    "responses": (RESPONSES, [{"type": "response.created", "response": {"status": "in_progress"}}]),
    "nothing": (CHAT, []),
}


@pytest.mark.parametrize("name", CUT)
def test_a_stream_without_its_last_event_is_ambiguous(name: str) -> None:
    form, said = CUT[name]
    assert not any(form.ends(event) for event in events(*said))
    with pytest.raises(Ambiguous, match="breaks off"):
        form.assemble("somebody", events(*said))


@pytest.mark.parametrize(
    ("form", "said"),
    [
        (CHAT, {"error": {"message": "too busy sk-abcdef123456"}}),
        (MESSAGES, {"type": "error", "error": {"message": "too busy sk-abcdef123456"}}),
        (COHERE, {"type": "message-end", "delta": {"finish_reason": "ERROR", "error": "too busy sk-abcdef123456"}}),
        (RESPONSES, {"type": "error", "message": "too busy sk-abcdef123456"}),
    ],
)
def test_a_stream_that_says_that_it_failed_is_ambiguous_and_repeats_no_key(form: StreamForm, said: JsonObject) -> None:
    with pytest.raises(Ambiguous, match="while it answered") as caught:
        form.assemble("somebody", events(said))
    assert "abcdef" not in str(caught.value)


@pytest.mark.parametrize("data", [b"{", b"[]", b'{"choices": [1]}', b'{"choices": 7}', b'{"choices": [{"delta": {}}]}'])
def test_events_that_are_not_of_the_protocol_are_ambiguous(data: bytes) -> None:
    with pytest.raises(Ambiguous):
        CHAT.assemble("somebody", events(data, b"[DONE]"))

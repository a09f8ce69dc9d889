"""Chat completions in Cohere's words: what has a counterpart goes over as it is, what has none is refused."""

from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from inference_engine.connectors.providers.cohere import CohereProvider
from inference_engine.connectors.providers.cohere_form import read_usage, to_chat, to_completion
from inference_engine.pipeline.errors import Ambiguous, Rejected
from inference_engine.pipeline.models import Model
from inference_engine.pipeline.ports import Provider
from inference_engine.schemas.record import JsonObject

from .cohere_sdk import CohereSdkProvider

MODEL = Model("command-a", "cohere", "command-a-03-2025", "standard", 256_000, 8_000)
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}


def body(**more: Any) -> JsonObject:
    return {"model": "auto", "messages": [{"role": "user", "content": "hello"}], **more}


def test_fields_go_by_coheres_names() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "string"}}}
    said = body()["messages"]
    request = to_chat(MODEL, body(
        max_completion_tokens=9, top_p=0.5, top_k=3, stop="END", seed=7, temperature=0.3, user="u", stream=True, tools=[TOOL],
        tool_choice={"type": "function", "function": {"name": "weather"}},
        response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": schema}},
    ))  # fmt: skip
    assert request == {
        "model": "command-a-03-2025", "stream": False, "messages": said, "max_tokens": 9, "p": 0.5, "k": 3,
        "stop_sequences": ["END"], "seed": 7, "temperature": 0.3, "tools": [TOOL], "tool_choice": "REQUIRED",
        "response_format": {"type": "json_object", "schema": schema},
    }  # fmt: skip


async def requests_of(stream: bool, asked: JsonObject) -> list[Any]:
    """What the thin transport and the official SDK send for the same body: method, path, headers that matter, and body."""
    seen: list[Any] = []

    async def refuse(request: web.Request) -> web.Response:
        headers = {name: request.headers.get(name) for name in ("Authorization", "Content-Type", "X-Client-Request-Id")}
        seen.append((request.method, request.path, headers, await request.json()))
        return web.json_response({"message": "no"}, status=400)

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", refuse)
    async with TestServer(app) as server:
        url = f"http://{server.host}:{server.port}"
        providers: list[Provider] = [CohereProvider("key-1", url), CohereSdkProvider("key-1", url)]
        for provider in providers:
            with pytest.raises(Rejected):
                await provider.complete(MODEL, {**asked, "stream": stream}, timeout=5, metadata={"attempt": "attempt-1"})
            await provider.close()
    return seen


@pytest.mark.parametrize("stream", [False, True])
async def test_the_official_sdk_sends_the_same_request_and_knows_each_of_its_fields(stream: bool) -> None:
    """The SDK takes every field as a parameter of that name: one that Cohere does not have is a TypeError there."""
    call = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo=", "detail": "low"}}
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "Köln?"}, picture]},
        {"role": "assistant", "content": "Let me see.", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "rain"},
    ]
    asked: JsonObject = {
        "messages": messages, "max_tokens": 9, "top_p": 0.5, "top_k": 3, "stop": ["END"], "seed": 7, "temperature": 0.3,
        "frequency_penalty": 0.1, "presence_penalty": 0.2, "tools": [TOOL], "tool_choice": "required",
        "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}},
    }  # fmt: skip
    ours, the_sdks = await requests_of(stream, asked)
    assert ours == the_sdks
    assert ours[:2] == ("POST", "/v2/chat")
    assert set(ours[3]) == {
        "model", "stream", "messages", "max_tokens", "p", "k", "stop_sequences", "seed", "temperature", "frequency_penalty",
        "presence_penalty", "tools", "tool_choice", "response_format",
    }  # fmt: skip


@pytest.mark.parametrize(
    "asked",
    [
        {"n": 2}, {"logit_bias": {"1": 5}}, {"logprobs": True}, {"service_tier": "flex"}, {"temperature": 1.5}, {"reasoning_effort": "low"},
        {"parallel_tool_calls": False}, {"response_format": {"type": "grammar"}}, {"tools": [{"type": "web_search"}]},
        {"tools": [TOOL, {"type": "function", "function": {"name": "b"}}], "tool_choice": {"type": "function", "function": {"name": "b"}}},
        {"tools": [{"type": "function", "function": {"name": "b", "strict": True}}]}, {"whatever": 1},
        {"messages": [{"role": "function", "content": "x"}]}, {"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]},
    ],
    ids=str,
)  # fmt: skip
def test_what_has_no_counterpart_is_refused_and_never_dropped(asked: JsonObject) -> None:
    with pytest.raises(Rejected) as refused:
        to_chat(MODEL, body(**asked))
    assert refused.value.code == "unsupported_by_provider"


def test_what_is_billed_is_counted_and_not_what_was_processed() -> None:
    usage = read_usage({"billed_units": {"input_tokens": 11.0, "output_tokens": 4}, "tokens": {"input_tokens": 77, "output_tokens": 4}})
    assert (usage.input_tokens, usage.output_tokens) == (11, 4)


@pytest.mark.parametrize(
    "usage",
    [None, {}, {"tokens": {"input_tokens": 1, "output_tokens": 1}}, {"billed_units": {"input_tokens": 1}},
     {"billed_units": {"input_tokens": -1, "output_tokens": 1}}, {"billed_units": {"input_tokens": 1.5, "output_tokens": 1}},
     {"billed_units": {"input_tokens": 1, "output_tokens": 1, "search_units": 1}}],
    ids=str,
)  # fmt: skip
def test_usage_that_can_not_be_priced_is_never_guessed(usage: Any) -> None:
    with pytest.raises(Ambiguous):
        read_usage(usage)


def test_only_a_complete_answer_finishes_with_stop() -> None:
    def finish(reason: str) -> str:
        made = to_completion(MODEL, {"id": "1", "finish_reason": reason, "message": {"content": [{"type": "text", "text": "x"}]}}, 0)
        assert made is not None
        return made[1]

    assert [finish(r) for r in ("COMPLETE", "STOP_SEQUENCE", "MAX_TOKENS", "ERROR", "TIMEOUT", "NEW_ONE")] == [
        "stop", "stop", "length", "content_filter", "length", "new_one"
    ]  # fmt: skip

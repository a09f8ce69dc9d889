"""Chat completions in the words of OpenAI's responses API: what has a counterpart goes over, what has none is refused."""

from typing import Any

import pytest

from inference_engine.connectors.models_toml import load_catalogue
from inference_engine.connectors.providers.responses_form import read_response, to_responses
from inference_engine.pipeline.billing import bill, day_of
from inference_engine.pipeline.errors import Ambiguous, Charged, Rejected
from inference_engine.schemas.record import JsonObject

LUNA = load_catalogue().get("gpt-6-luna")
SCHEMA = {"type": "object", "properties": {"a": {"type": "string"}}}
TOOL = {"type": "function", "function": {"name": "f", "description": "d", "parameters": SCHEMA}}


def body(**more: Any) -> JsonObject:
    return {"model": "auto", "messages": [{"role": "user", "content": "hello"}], **more}


def test_fields_go_by_the_names_of_responses() -> None:
    request = to_responses(LUNA, body(
        max_tokens=9, temperature=0.3, top_p=0.5, seed=7, n=1, reasoning_effort="low", verbosity="low", tools=[TOOL],
        tool_choice={"type": "function", "function": {"name": "f"}}, parallel_tool_calls=False, service_tier="flex", user="u",
        response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA, "strict": True}},
        prompt_cache_key="k", prompt_cache_options={"mode": "explicit"}, stream=True, stream_options={"include_usage": True},
    ))  # fmt: skip
    assert request == {
        "model": "gpt-6-luna", "store": False, "input": [{"role": "user", "content": "hello"}], "max_output_tokens": 9,
        "temperature": 0.3, "top_p": 0.5, "reasoning": {"effort": "low"}, "parallel_tool_calls": False, "service_tier": "flex", "user": "u",
        "text": {"verbosity": "low", "format": {"type": "json_schema", "name": "x", "schema": SCHEMA, "strict": True}},
        "tools": [{"type": "function", "name": "f", "description": "d", "parameters": SCHEMA, "strict": False}],
        "tool_choice": {"type": "function", "name": "f"},
        "prompt_cache_key": "k", "prompt_cache_options": {"mode": "explicit"}, "stream": True,
    }  # fmt: skip


def test_nothing_is_stored_unless_that_is_asked_for() -> None:
    """A chat completion is not stored without a word, a response is."""
    assert to_responses(LUNA, body())["store"] is False
    assert to_responses(LUNA, body(store=True))["store"] is True


def test_a_conversation_with_tools_and_pictures_becomes_items() -> None:
    mark = {"mode": "explicit", "ttl": "12h"}
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    said = to_responses(LUNA, {"messages": [
        {"role": "system", "content": [{"type": "text", "text": "long", "prompt_cache_breakpoint": mark}]},
        {"role": "user", "content": [{"type": "text", "text": "q"}, {"type": "image_url", "image_url": {"url": "u", "detail": "low"}}]},
        {"role": "assistant", "content": "let me see", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "42"},
        {"role": "assistant", "content": [{"type": "text", "text": "a", "prompt_cache_breakpoint": mark},
                                          {"type": "refusal", "refusal": "r"}]},
    ]})["input"]  # fmt: skip
    assert said == [
        {"role": "system", "content": [{"type": "input_text", "text": "long", "prompt_cache_breakpoint": mark}]},
        {"role": "user", "content": [{"type": "input_text", "text": "q"}, {"type": "input_image", "image_url": "u", "detail": "low"}]},
        {"role": "assistant", "content": "let me see"},
        {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c1", "output": "42"},
        {"role": "assistant", "content": [{"type": "output_text", "text": "a"}, {"type": "refusal", "refusal": "r"}]},
    ]


@pytest.mark.parametrize(
    "more",
    [
        {"n": 2}, {"logprobs": True}, {"top_logprobs": 3}, {"frequency_penalty": 0.5}, {"stop": "END"}, {"logit_bias": {"1": 5}},
        {"response_format": {"type": "grammar"}}, {"tools": [{"type": "web_search"}]}, {"modalities": ["audio"]}, {"brand_new_field": 1},
        {"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]}, {"messages": [{"role": "function", "content": "x"}]},
        {"messages": [{"role": "assistant", "content": [{"type": "image_url", "image_url": "u"}]}]},
    ],
)  # fmt: skip
def test_what_cannot_be_asked_is_rejected_and_not_dropped(more: JsonObject) -> None:
    with pytest.raises(Rejected):
        to_responses(LUNA, body(**more))


USAGE = {
    "input_tokens": 100, "output_tokens": 5, "output_tokens_details": {"reasoning_tokens": 2},
    "input_tokens_details": {
        "cached_tokens": 20, "cache_write_tokens": 70, "cache_write_tokens_details": {"ttl_30m_tokens": 30, "ttl_12h_tokens": 40},
    },
}  # fmt: skip


def said(text: str) -> JsonObject:
    return {"type": "message", "content": [{"type": "output_text", "text": text}]}


def reply(**more: Any) -> JsonObject:
    whole = {
        "id": "resp_1",
        "created_at": 1.5,
        "model": "gpt-6-luna-2026-10-01",
        "status": "completed",
        "output": [said("yes")],
        "usage": USAGE,
    }
    return {**whole, "service_tier": "default", **more}


def read(**more: Any) -> Any:
    return read_response("openai", "gpt-6-luna", reply(**more), "req", reply(**more)["service_tier"])


def test_counts_of_a_response_are_billed_kind_by_kind() -> None:
    made = read()
    counts = made.usage.model_dump()
    assert counts == {
        "input_tokens": 100, "output_tokens": 5, "cache_read_tokens": 20, "cache_write_tokens": 30, "cache_write_1h_tokens": 0,
        "cache_write_12h_tokens": 40,
    }  # fmt: skip
    # 10 x $0.10 + 20 x $0.01 + 30 x $0.125 + 40 x $0.25 + 5 x $0.50 = 1 + 0.2 + 3.75 + 10 + 2.5 = 17.45
    assert bill(LUNA, made.usage, made.service_tier, day_of(1_795_000_000_000)) == 17_450_000
    shown = made.body["usage"]
    assert shown["prompt_tokens_details"] == {"cached_tokens": 20, "cache_write_tokens": 70}
    assert (shown["total_tokens"], shown["completion_tokens_details"]) == (105, {"reasoning_tokens": 2})


def test_several_messages_are_one_answer_and_reasoning_is_left_out() -> None:
    made = read(output=[{"type": "reasoning", "summary": []}, said("a"), said("b")])
    assert (made.body["choices"][0]["message"]["content"], made.finish_reason) == ("ab", "stop")


def test_a_refusal_is_one_and_no_content() -> None:
    message = read(output=[{"type": "message", "content": [{"type": "refusal", "refusal": "no"}]}]).body["choices"][0]["message"]
    assert (message["content"], message["refusal"]) == (None, "no")


@pytest.mark.parametrize(
    ("more", "finish"),
    [
        ({"status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}}, "length"),
        ({"status": "incomplete", "incomplete_details": {"reason": "content_filter"}}, "content_filter"),
        ({"status": "incomplete", "incomplete_details": {"reason": "steered"}}, "steered"),
        ({"output": [{"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}]}, "tool_calls"),
    ],
)
def test_only_a_natural_end_is_stop(more: JsonObject, finish: str) -> None:
    assert read(**more).finish_reason == finish


@pytest.mark.parametrize(
    "more",
    [
        {"status": "failed", "error": {"code": "server_error"}}, {"status": "in_progress"}, {"output": None},
        {"output": [{"type": "hologram"}]},
        {"output": [{"type": "message", "content": [{"type": "hologram"}]}]}, {"output": [{"type": "web_search_call"}]},
    ],
)  # fmt: skip
def test_what_can_not_be_read_is_charged_by_its_usage(more: JsonObject) -> None:
    with pytest.raises(Charged) as caught:
        read(**more)
    assert caught.value.usage.input_tokens == 100


@pytest.mark.parametrize("more", [{"usage": None}, {"model": "gpt-6-astra"}, {"tool_usage": {"web_search": {"num_requests": 1}}}])
def test_what_can_not_be_billed_by_what_it_says_is_ambiguous(more: JsonObject) -> None:
    with pytest.raises(Ambiguous):
        read(**more)


def test_tools_that_were_not_used_cost_nothing() -> None:
    assert read(tool_usage={"web_search": {"num_requests": 0}, "image_gen": {"input_tokens": 0}}).finish_reason == "stop"

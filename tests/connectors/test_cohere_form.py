"""Chat completions in Cohere's words: what has a counterpart goes over as it is, what has none is refused."""

from typing import Any

import pytest

from inference_engine.connectors.providers.cohere_form import read_usage, to_chat, to_completion
from inference_engine.pipeline.errors import Ambiguous, Rejected
from inference_engine.pipeline.models import Model
from inference_engine.schemas.record import JsonObject

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

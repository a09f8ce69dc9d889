"""What travels: Anthropic's form, waits in headers, keys that must not be seen, and who is set up."""

from datetime import UTC, datetime
from email.utils import formatdate
from typing import Any

import orjson
import pytest

from inference_engine.connectors.models_toml import load_catalogue
from inference_engine.connectors.providers import build_providers
from inference_engine.connectors.providers.anthropic import read_reply
from inference_engine.connectors.providers.anthropic_form import to_messages
from inference_engine.connectors.providers.chat_form import read_completion
from inference_engine.connectors.providers.cohere_form import to_chat
from inference_engine.connectors.providers.failures import failure, retry_after, same_model
from inference_engine.connectors.providers.openai import OpenAIProvider
from inference_engine.connectors.providers.openai_batches import OpenAIBatches
from inference_engine.connectors.providers.responses_form import to_responses
from inference_engine.connectors.providers.responses_usage import read_responses_usage
from inference_engine.connectors.providers.simulated import SimulatedOptions
from inference_engine.pipeline.billing import bill, day_of
from inference_engine.pipeline.errors import Ambiguous, Charged, ConfigError, Rejected, Unpriced

CLAUDE = load_catalogue().get("claude-sonnet-5-5")
LUNA = load_catalogue().get("gpt-6-luna")
NOW = 1_795_000_000.0
DAY = day_of(1_795_000_000_000)


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "2"}, 2.0),
        ({"retry-after": "0.25"}, 0.25),
        ({"retry-after-ms": "120", "retry-after": "1"}, 0.12),
        ({"retry-after": formatdate(NOW + 40, usegmt=True)}, 40.0),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "-5"}, 0.0),
        ({"retry-after": "inf"}, 86_400.0),
        ({"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "1m30s"}, 90.0),
        ({"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "120ms"}, 0.12),
        ({"x-ratelimit-remaining-tokens": "7", "x-ratelimit-reset-tokens": "120ms"}, None),
    ],
)
def test_the_wait_is_read_from_every_header_that_names_it(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after(headers, NOW) == (None if seconds is None else pytest.approx(seconds))


def test_anthropic_names_the_moment_of_an_exhausted_limit() -> None:
    moment = datetime.fromtimestamp(NOW + 12, UTC).isoformat().replace("+00:00", "Z")
    headers = {"anthropic-ratelimit-input-tokens-remaining": "0", "anthropic-ratelimit-input-tokens-reset": moment}
    assert retry_after(headers, NOW) == pytest.approx(12)


def test_what_a_provider_says_about_keys_is_not_repeated() -> None:
    said = b'{"error": {"message": "Incorrect API key provided: sk-abcdef123456", "code": "invalid_api_key"}}'
    for status in (400, 401, 403, 429, 500):
        assert "abcdef" not in str(failure("openai", "OPENAI_API_KEY", status, {}, said, NOW))


@pytest.mark.parametrize(
    ("asked", "got", "same"),
    [
        ("gpt-4o", "gpt-4o-2024-08-06", True),
        ("gpt-4o", "gpt-4o-mini", False),
        ("claude-haiku-5-5", "claude-haiku-5-5-20261007", True),
        ("claude-haiku-4-5", "claude-haiku-5-5", False),
        ("org/llama", "llama", True),
        ("gpt-4", None, False),
    ],
)
def test_a_dated_name_is_the_same_model(asked: str, got: Any, same: bool) -> None:
    assert same_model(asked, got) is same


# --- Anthropic -----------------------------------------------------------------------------------------------------------


def ask(**more: Any) -> dict[str, Any]:
    return {"model": "x", "messages": [{"role": "user", "content": "hi"}], **more}


def test_a_messages_request_says_the_same_in_anthropics_words() -> None:
    marked = {"type": "text", "text": "long", "cache_control": {"type": "ephemeral"}}
    function = {"name": "f", "description": "d", "parameters": {"type": "object"}}
    body = ask(tools=[{"type": "function", "function": function}], tool_choice="required", parallel_tool_calls=False)
    body |= {"max_completion_tokens": 7, "stop": "END", "user": "u1", "seed": 3, "n": 1, "reasoning_effort": "low", "temperature": 0}
    body["messages"] = [{"role": "system", "content": [marked]}, {"role": "developer", "content": "be kind"}, *body["messages"]]
    assert to_messages(CLAUDE, body) == {
        "model": "claude-sonnet-5-5",
        "max_tokens": 7,
        "service_tier": "standard_only",
        "messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}],
        "system": [marked, {"type": "text", "text": "be kind"}],
        "metadata": {"user_id": "u1"},
        "tools": [{"name": "f", "input_schema": {"type": "object"}, "description": "d"}],
        "tool_choice": {"type": "any", "disable_parallel_tool_use": True},
        "stop_sequences": ["END"],
        "output_config": {"effort": "low"},
        "temperature": 0,
    }


def test_neighbouring_tool_results_are_one_turn() -> None:
    results = [{"role": "tool", "tool_call_id": i, "content": "r"} for i in ("a", "b")]
    turns = to_messages(CLAUDE, {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "x"}, *results]})[
        "messages"
    ]
    assert [t["role"] for t in turns] == ["user", "assistant", "user"]
    assert [b["tool_use_id"] for b in turns[2]["content"]] == ["a", "b"]


@pytest.mark.parametrize(
    "more",
    [
        {"n": 2},
        {"logprobs": True},
        {"frequency_penalty": 0.5},
        {"temperature": 1.5},
        {"response_format": {"type": "json_object"}},
        {"service_tier": "flex"},
        {"tools": [{"type": "web_search"}]},
        {"brand_new_field": 1},
        {"messages": [{"role": "user", "content": "a"}, {"role": "system", "content": "b"}]},
        {"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]},
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png,raw"}}]}]},
        {"messages": [{"role": "assistant", "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": "{"}}]}]},
    ],
)
def test_what_anthropic_cannot_be_asked_is_rejected_and_not_dropped(more: dict[str, Any]) -> None:
    with pytest.raises(Rejected):
        to_messages(CLAUDE, ask(**more))


def reply(**more: Any) -> dict[str, Any]:
    usage = {"input_tokens": 10, "output_tokens": 5, "service_tier": "standard"}
    whole = {
        "id": "msg_1",
        "model": "claude-sonnet-5-5",
        "content": [{"type": "text", "text": "yes"}],
        "stop_reason": "end_turn",
        "usage": usage,
    }
    return {**whole, **more}


def test_anthropics_cached_tokens_become_part_of_the_input() -> None:
    kept = {"ephemeral_5m_input_tokens": 30, "ephemeral_1h_input_tokens": 40}
    counts = {
        "input_tokens": 10,
        "output_tokens": 5,
        "cache_read_input_tokens": 20,
        "cache_creation_input_tokens": 70,
        "cache_creation": kept,
    }
    made = read_reply(CLAUDE, {}, reply(usage=counts), "req_1", 0)
    assert made.usage.model_dump() == {
        "input_tokens": 100,
        "output_tokens": 5,
        "cache_read_tokens": 20,
        "cache_write_tokens": 30,
        "cache_write_1h_tokens": 40,
        "cache_write_12h_tokens": 0,
    }
    # 10 x $2 + 20 x $0.10 + 30 x $2.50 + 40 x $4 + 5 x $10 = 20 + 2 + 75 + 160 + 50 = 307
    assert bill(CLAUDE, made.usage, made.service_tier, DAY) == 307_000_000


@pytest.mark.parametrize(
    ("stop", "finish"),
    [("end_turn", "stop"), ("stop_sequence", "stop"), ("max_tokens", "length"), ("refusal", "content_filter"), ("new_one", "new_one")],
)
def test_only_a_natural_end_is_stop(stop: str, finish: str) -> None:
    assert read_reply(CLAUDE, {}, reply(stop_reason=stop), None, 0).finish_reason == finish


def test_thinking_is_left_out_and_text_is_joined() -> None:
    content = [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert read_reply(CLAUDE, {}, reply(content=content), None, 0).body["choices"][0]["message"]["content"] == "ab"


def test_content_of_an_unknown_kind_is_charged() -> None:
    usage = {"input_tokens": 1, "output_tokens": 1, "service_tier": "priority"}
    with pytest.raises(Charged) as caught:
        read_reply(CLAUDE, {}, reply(content=[{"type": "hologram"}], usage=usage), None, 0)
    assert caught.value.service_tier == "priority"


@pytest.mark.parametrize(
    "usage",
    [
        None,
        {"input_tokens": "10", "output_tokens": 5},
        {"input_tokens": -1, "output_tokens": 5},
        {"input_tokens": 1, "output_tokens": 5, "server_tool_use": {"web_search_requests": 1}},
        {
            "input_tokens": 1,
            "output_tokens": 5,
            "cache_creation_input_tokens": 9,
            "cache_creation": {"ephemeral_5m_input_tokens": 1, "ephemeral_1h_input_tokens": 1},
        },
    ],
)
def test_usage_that_cannot_be_priced_is_ambiguous(usage: Any) -> None:
    with pytest.raises(Ambiguous):
        read_reply(CLAUDE, {}, reply(usage=usage), None, 0)


@pytest.mark.parametrize("more", [{"speed": "fast"}, {"inference_geo": "us"}, {"service_tier": "priority"}])
def test_a_dearer_mode_is_not_billed_as_plain(more: dict[str, str]) -> None:
    made = read_reply(CLAUDE, {}, reply(usage={"input_tokens": 1, "output_tokens": 1, **more}), None, 0)
    with pytest.raises(Unpriced):
        bill(CLAUDE, made.usage, made.service_tier, DAY)


# --- OpenAI, and who is set up ------------------------------------------------------------------------------------------


def test_at_openai_itself_the_tier_is_certain_and_the_limit_goes_by_its_new_name() -> None:
    sent = OpenAIProvider("sk-x").request(LUNA, ask(max_tokens=9, stream=False, stream_options={}))
    assert sent == ask(model="gpt-6-luna", max_completion_tokens=9, service_tier="default")


def test_a_stream_is_always_asked_to_tell_its_usage() -> None:
    sent = OpenAIProvider("sk-x").request(LUNA, ask(stream=True, stream_options={"include_usage": False, "include_obfuscation": False}))
    assert sent["stream_options"] == {"include_usage": True, "include_obfuscation": False}


def test_a_row_of_a_batch_is_never_a_stream() -> None:
    line = orjson.loads(OpenAIBatches("sk-x").line(LUNA, "a-1", ask(stream=True, stream_options={"include_usage": True})))
    assert not {"stream", "stream_options", "service_tier"} & set(line["body"])


def test_other_servers_get_the_body_as_it_is() -> None:
    sent = OpenAIProvider("sk-x", "http://127.0.0.1:1/v1").request(LUNA, ask(max_tokens=9, extra={"a": [1]}))
    assert sent == ask(model="gpt-6-luna", max_tokens=9, extra={"a": [1]})


@pytest.mark.parametrize("url", ["data:image/png;base64,iVBORw0KGgo=", "https://pictures.example/a.png?w=1&h=2"])
def test_a_picture_reaches_every_provider_untouched(url: str) -> None:
    part = {"type": "image_url", "image_url": {"url": url, "detail": "low"}}
    body = ask(messages=[{"role": "user", "content": [{"type": "text", "text": "What is this?"}, part]}])
    assert OpenAIProvider("sk-x").request(LUNA, body)["messages"] == body["messages"]
    assert to_chat(LUNA, body)["messages"] == body["messages"]
    assert to_responses(LUNA, body)["input"][0]["content"][1] == {"type": "input_image", "image_url": url, "detail": "low"}
    source = to_messages(CLAUDE, body)["messages"][0]["content"][1]["source"]
    assert url in (f"data:{source.get('media_type')};base64,{source.get('data')}", source.get("url"))


def test_providers_are_those_with_a_key_or_else_the_simulated_one() -> None:
    assert set(build_providers()) == {"simulated"}
    assert set(build_providers(openai_api_key="k", vllm_base_url="http://127.0.0.1:8000/v1")) == {"openai", "vllm"}
    assert set(build_providers(anthropic_api_key="k", simulated=SimulatedOptions())) == {"anthropic", "simulated"}


def test_a_base_url_that_is_none_is_a_setting_to_correct() -> None:
    with pytest.raises(ConfigError, match="VLLM_BASE_URL"):
        build_providers(vllm_base_url="localhost:8000")


@pytest.mark.parametrize(
    "usage",
    [
        {"prompt_tokens": 10, "completion_tokens": 5, "prompt_tokens_details": {"quantum_tokens": 3}},
        {"prompt_tokens": 10, "completion_tokens": 5, "completion_tokens_details": {"quantum_tokens": 3}},
        {
            "prompt_tokens": 10,
            "completion_tokens": 5,
            "prompt_tokens_details": {"cache_write_tokens": 5, "cache_write_tokens_details": {"ttl_7d_tokens": 5}},
        },
        {
            "prompt_tokens": 10,
            "completion_tokens": 5,
            "prompt_tokens_details": {"cache_write_tokens": 5, "cache_write_tokens_details": {"ttl_30m_tokens": 4}},
        },
    ],
)
def test_a_kind_of_token_that_nobody_knows_is_not_billed_by_a_guess(usage: dict[str, Any]) -> None:
    body = {"model": "m", "choices": [{"message": {"content": "x"}, "finish_reason": "stop"}], "usage": usage}
    with pytest.raises(Ambiguous):
        read_completion("openai", "m", body, "id", None)
    answer = {"input_tokens": 10, "output_tokens": 5, "input_tokens_details": usage.get("prompt_tokens_details")}
    with pytest.raises(Ambiguous):
        read_responses_usage("openai", {**answer, "output_tokens_details": usage.get("completion_tokens_details")})


def test_kinds_that_are_part_of_the_totals_and_unknown_ones_without_tokens_are_read() -> None:
    details = {"cached_tokens": 4, "cache_write_tokens": 5, "quantum_tokens": 0, "text_tokens": 10}
    kept = {"cache_write_tokens_details": {"ttl_30m_tokens": 2, "ttl_12h_tokens": 3}}
    usage = {"prompt_tokens": 10, "completion_tokens": 5, "prompt_tokens_details": {**details, **kept}}
    body = {"model": "m", "choices": [{"message": {"content": "x"}, "finish_reason": "stop"}], "usage": usage}
    made = read_completion("openai", "m", body, "id", None).usage
    assert (made.cache_read_tokens, made.cache_write_tokens, made.cache_write_12h_tokens) == (4, 2, 3)

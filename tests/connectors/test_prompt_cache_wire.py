"""Marks on the wire: what the planner says reaches each provider in its own words, and the usage that comes back is billed."""

from collections.abc import AsyncIterator, Callable
from dataclasses import replace

import pytest

from inference_engine.connectors.models_toml import load_catalogue
from inference_engine.connectors.providers.anthropic import AnthropicProvider
from inference_engine.connectors.providers.anthropic_form import to_messages
from inference_engine.connectors.providers.openai import OpenAIProvider
from inference_engine.connectors.providers.sdk import AnthropicSdkProvider, OpenAISdkProvider
from inference_engine.connectors.providers.simulated import SimulatedProvider
from inference_engine.connectors.simulated_server import SimulatedServer
from inference_engine.pipeline.billing import bill, day_of, split_savings
from inference_engine.pipeline.errors import Rejected
from inference_engine.pipeline.models import Api, Model
from inference_engine.pipeline.ports import Provider
from inference_engine.pipeline.prefix import Mark, Marks, marked
from inference_engine.schemas.record import JsonObject

CATALOGUE = load_catalogue()
KEY = "sk-test-0123456789abcdef"
SYSTEM = "You are a careful bank clerk. " * 400
TOKENS = 4 + len(SYSTEM) // 4

MAKERS: dict[str, tuple[str, Callable[[str], Provider]]] = {
    "openai": ("gpt-6-luna", lambda url: OpenAIProvider(KEY, f"{url}/v1")),
    "openai-sdk": ("gpt-6-luna", lambda url: OpenAISdkProvider(KEY, f"{url}/v1")),
    "openai-responses": ("gpt-6-luna", lambda url: OpenAIProvider(KEY, f"{url}/v1")),
    "openai-responses-sdk": ("gpt-6-luna", lambda url: OpenAISdkProvider(KEY, f"{url}/v1")),
    "anthropic": ("claude-sonnet-5-5", lambda url: AnthropicProvider(KEY, url)),
    "anthropic-sdk": ("claude-sonnet-5-5", lambda url: AnthropicSdkProvider(KEY, url)),
    "simulated": ("sim-standard", lambda url: SimulatedProvider()),
}


def asked(question: str) -> JsonObject:
    return {"messages": [{"role": "system", "content": SYSTEM}, {"role": "user", "content": question}], "max_tokens": 50}


def with_marks(model: Model, body: JsonObject, lifetime: str = "5m") -> JsonObject:
    return marked(body, Marks(model.prompt_cache, (Mark((0, 0), lifetime, b"", TOKENS),), "key-0"))


@pytest.fixture
async def server() -> AsyncIterator[SimulatedServer]:
    async with SimulatedServer() as running:
        yield running


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("name", list(MAKERS))
async def test_the_first_call_writes_and_the_second_reads(name: str, stream: bool, server: SimulatedServer) -> None:
    model_name, make = MAKERS[name]
    model, provider = replace(CATALOGUE.get(model_name), api="responses" if "responses" in name else "chat"), make(server.url)
    bodies = [{**with_marks(model, asked(question)), "stream": stream} for question in ("How?", "Why is that?")]
    replies = [await provider.complete(model, body, timeout=5, metadata={}) for body in bodies]
    first, second = (reply.usage for reply in replies)
    assert (first.cache_read_tokens, first.cache_write_tokens) == (0, TOKENS)
    assert (second.cache_read_tokens, second.cache_write_tokens) == (TOKENS, 0)
    own = provider.bill if isinstance(provider, SimulatedProvider) else server.bill
    day = day_of(1_795_000_000_000)
    assert own.pico == sum(bill(model, reply.usage, reply.service_tier, day) for reply in replies)
    assert own.summary()["cache_read_tokens"] == own.summary()["cache_write_tokens"] == TOKENS
    splits = [split_savings(model, model, usage, "standard", day) for usage in (first, second)]
    assert splits[0].prefix < 0 < splits[1].prefix
    assert [split.saved for split in splits] == [split.prefix for split in splits]
    await provider.close()


async def test_a_lifetime_of_an_hour_is_written_at_its_own_price(server: SimulatedServer) -> None:
    model, provider = CATALOGUE.get("claude-sonnet-5-5"), AnthropicProvider(KEY, server.url)
    reply = await provider.complete(model, with_marks(model, asked("How?"), "1h"), timeout=5, metadata={})
    assert (reply.usage.cache_write_tokens, reply.usage.cache_write_1h_tokens) == (0, TOKENS)
    assert server.bill.pico == bill(model, reply.usage, "standard", day_of(1_795_000_000_000))
    await provider.close()


@pytest.mark.parametrize("api", ["chat", "responses"])
async def test_twelve_hours_are_told_by_responses_and_billed_at_their_own_price(api: Api, server: SimulatedServer) -> None:
    """A chat completion's usage does not say how long a write is kept; a response's does."""
    model, provider = replace(CATALOGUE.get("gpt-6-luna"), api=api), OpenAIProvider(KEY, f"{server.url}/v1")
    part = {"type": "text", "text": SYSTEM, "prompt_cache_breakpoint": {"mode": "explicit", "ttl": "12h"}}
    body = {"messages": [{"role": "system", "content": [part]}, {"role": "user", "content": "How?"}], "max_tokens": 50}
    reply = await provider.complete(model, {**body, "prompt_cache_options": {"mode": "explicit"}}, timeout=5, metadata={})
    told = (reply.usage.cache_write_tokens, reply.usage.cache_write_12h_tokens)
    assert told == ((TOKENS, 0) if api == "chat" else (0, TOKENS))
    ours = bill(model, reply.usage, "standard", day_of(1_795_000_000_000))
    assert (ours == server.bill.pico) is (api == "responses")
    await provider.close()


async def test_models_that_refuse_marks_are_given_none(server: SimulatedServer) -> None:
    model, provider = CATALOGUE.get("gpt-5"), OpenAIProvider(KEY, f"{server.url}/v1")
    replies = [await provider.complete(model, with_marks(model, asked(q)), timeout=5, metadata={}) for q in ("How?", "Why is that?")]
    assert [reply.usage.cache_read_tokens for reply in replies] == [0, TOKENS // 128 * 128]
    body = marked(asked("How?"), Marks("breakpoints", (Mark((0, 0), "30m", b"", TOKENS),)))
    with pytest.raises(Rejected):
        await provider.complete(model, body, timeout=5, metadata={})
    await provider.close()


@pytest.mark.parametrize(
    ("ttl", "control"),
    [
        ("5m", {"type": "ephemeral"}),
        (None, {"type": "ephemeral"}),
        ("30m", {"type": "ephemeral", "ttl": "1h"}),
        ("1h", {"type": "ephemeral", "ttl": "1h"}),
    ],
)
def test_a_breakpoint_in_openais_form_is_a_cache_control_at_anthropic(ttl: str | None, control: JsonObject) -> None:
    mark = {"mode": "explicit"} | ({"ttl": ttl} if ttl else {})
    parts = [{"type": "text", "text": "a", "prompt_cache_breakpoint": mark}]
    body = {"messages": [{"role": "system", "content": parts}, {"role": "user", "content": "q"}], "prompt_cache_key": "k"}
    made = to_messages(CATALOGUE.get("claude-sonnet-5-5"), body)
    assert made["system"] == [{"type": "text", "text": "a", "cache_control": control}]
    assert "prompt_cache_key" not in made


def test_a_lifetime_that_anthropic_does_not_sell_is_refused() -> None:
    parts = [{"type": "text", "text": "a", "prompt_cache_breakpoint": {"mode": "explicit", "ttl": "12h"}}]
    with pytest.raises(Rejected, match="12h"):
        to_messages(CATALOGUE.get("claude-sonnet-5-5"), {"messages": [{"role": "user", "content": parts}]})

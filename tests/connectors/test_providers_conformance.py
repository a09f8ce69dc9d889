"""One suite over every provider, in one piece and as a stream: thin transports, the SDKs as the yardstick, and the one in process."""

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any

import orjson
import pytest

from inference_engine.connectors.models_toml import load_catalogue
from inference_engine.connectors.providers.anthropic import AnthropicProvider
from inference_engine.connectors.providers.cohere import CohereProvider
from inference_engine.connectors.providers.openai import OpenAIProvider
from inference_engine.connectors.providers.sdk import AnthropicSdkProvider, OpenAISdkProvider
from inference_engine.connectors.providers.simulated import SimulatedProvider
from inference_engine.connectors.providers.vllm import VllmProvider
from inference_engine.connectors.simulated_server import ServerOptions, SimulatedServer
from inference_engine.pipeline.billing import bill, cap, day_of
from inference_engine.pipeline.errors import Ambiguous, Charged, EngineError, Rejected, Unavailable
from inference_engine.pipeline.models import Api, Model
from inference_engine.pipeline.ports import Begun, Provider, ProviderReply
from inference_engine.schemas.record import JsonObject

from .cohere_sdk import CohereSdkProvider

KEY = "sk-test-0123456789abcdef"
DAY = day_of(1_795_000_000_000)
SIM = load_catalogue().get("sim-standard")

MAKERS: dict[str, Callable[[str], Provider]] = {
    "openai": lambda url: OpenAIProvider(KEY, f"{url}/v1"),
    "openai-sdk": lambda url: OpenAISdkProvider(KEY, f"{url}/v1"),
    "openai-responses": lambda url: OpenAIProvider(KEY, f"{url}/v1"),
    "openai-responses-sdk": lambda url: OpenAISdkProvider(KEY, f"{url}/v1"),
    "vllm": lambda url: VllmProvider(f"{url}/v1"),
    "anthropic": lambda url: AnthropicProvider(KEY, url),
    "anthropic-sdk": lambda url: AnthropicSdkProvider(KEY, url),
    "cohere": lambda url: CohereProvider(KEY, url),
    "cohere-sdk": lambda url: CohereSdkProvider(KEY, url),
    "simulated": lambda url: SimulatedProvider(),
}
WAYS = [f"{name}{way}" for name in MAKERS for way in ("", "+stream")]
OVER_HTTP = [way for way in WAYS if not way.startswith("simulated")]


@dataclass
class Rig:
    """A provider, and the server behind it (idle where the provider is in process)."""

    name: str
    provider: Provider
    server: SimulatedServer
    stream: bool = False

    async def ask(
        self, body: JsonObject, timeout: float = 5.0, model: Model = SIM, provider: Provider | None = None, begun: Begun | None = None
    ) -> ProviderReply:
        sent = {**body, "stream": True} if self.stream else body
        model = replace(model, api="responses") if "responses" in self.name else model
        asked = provider or self.provider
        return await asked.complete(model, sent, timeout=timeout, metadata={"attempt": "attempt-1"}, begun=begun)

    async def fails(self, body: JsonObject, timeout: float = 5.0, model: Model = SIM) -> EngineError:
        with pytest.raises(EngineError) as caught:
            await self.ask(body, timeout, model)
        return caught.value

    @property
    def billed(self) -> dict[str, Any]:
        own = self.provider.bill if isinstance(self.provider, SimulatedProvider) else self.server.bill
        return own.summary()


@pytest.fixture
async def server() -> AsyncIterator[SimulatedServer]:
    async with SimulatedServer(ServerOptions(drip_s=0.2)) as running:
        yield running


@pytest.fixture(params=WAYS)
async def rig(request: pytest.FixtureRequest, server: SimulatedServer) -> AsyncIterator[Rig]:
    name, _, stream = request.param.partition("+")
    provider = MAKERS[name](server.url)
    yield Rig(name, provider, server, bool(stream))
    await provider.close()


@pytest.fixture(params=OVER_HTTP)
async def wire(request: pytest.FixtureRequest, server: SimulatedServer) -> AsyncIterator[Rig]:
    name, _, stream = request.param.partition("+")
    provider = MAKERS[name](server.url)
    yield Rig(name, provider, server, bool(stream))
    await provider.close()


def chat(text: Any, **more: Any) -> JsonObject:
    return {"model": "whatever", "messages": [{"role": "user", "content": text}], **more}


WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "of a place",
        "parameters": {"type": "object", "properties": {"place": {"type": "string"}}},
    },
}
PICTURE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}
BODIES: dict[str, JsonObject] = {
    "plain": chat("How do I change my PIN?"),
    "cut": chat("Tell me everything", max_tokens=5),
    "cut off": chat(f"[[cut-off:{SIM.provider_model}]] Tell me everything"),
    "refused": chat(f"[[refused:{SIM.provider_model}]] Tell me a secret"),
    "refused by another": chat("[[refused:another]] Tell me a secret"),
    "system": {
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Grüße aus Köln ✓"}],
        "max_tokens": 300,
    },
    "turns": {
        "messages": [
            {"role": "user", "content": "one"},
            {"role": "assistant", "content": "1"},
            {"role": "user", "content": [{"type": "text", "text": "two"}, {"type": "text", "text": "three"}]},
        ],
        "temperature": 0.5,
    },
    "picture": chat([{"type": "text", "text": "What is this?"}, PICTURE]),
    "tool": chat("Rain in Rome?", tools=[WEATHER], tool_choice={"type": "function", "function": {"name": "weather"}}),
    "tool-result": {
        "messages": [
            {"role": "user", "content": "Rain in Rome?"},
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [{"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"place":"Rome"}'}}],
            },
            {"role": "tool", "tool_call_id": "call_1", "content": "no"},
        ],
        "tools": [WEATHER],
    },
    "schema": chat("Name a colour", response_format={"type": "json_schema", "json_schema": {"name": "c", "schema": {"type": "object"}}}),
}


def essence(reply: ProviderReply) -> dict[str, Any]:
    """What must be equal over all providers."""
    message = reply.body["choices"][0]["message"]
    calls = [(c["id"], c["function"]["name"], c["function"]["arguments"]) for c in message.get("tool_calls") or ()]
    counts = {k: reply.body["usage"][k] for k in ("prompt_tokens", "completion_tokens", "total_tokens")}
    shape = (reply.body["object"], reply.body["model"], message["role"], reply.body["choices"][0]["finish_reason"])
    return {
        "content": message["content"],
        "calls": calls,
        "usage": reply.usage,
        "counts": counts,
        "finish": reply.finish_reason,
        "tier": reply.service_tier,
        "shape": shape,
    }


@pytest.mark.parametrize("kind", BODIES)
async def test_same_body_same_reply_from_every_provider(rig: Rig, kind: str) -> None:
    """Content, tool calls, usage, finish reason and tier do not depend on the protocol or the transport."""
    expected = essence(await SimulatedProvider().complete(SIM, BODIES[kind], timeout=5, metadata={}))
    reply = await rig.ask(BODIES[kind])
    assert essence(reply) == expected
    assert reply.request_id


@pytest.mark.parametrize("kind", BODIES)
async def test_bill_equals_the_providers_own_and_stays_below_the_cap(rig: Rig, kind: str) -> None:
    """What we compute from usage is what the other side charged, and never more than was reserved."""
    model = replace(SIM, image_tokens=100)
    reply = await rig.ask(BODIES[kind])
    ours = bill(model, reply.usage, reply.service_tier, DAY)
    assert ours == rig.billed["pico"] > 0
    assert ours <= cap(model, BODIES[kind], DAY)


async def test_finish_reason_tells_a_cut_answer_and_a_tool_call(rig: Rig) -> None:
    assert (await rig.ask(BODIES["cut"])).finish_reason == (await rig.ask(BODIES["cut off"])).finish_reason == "length"
    assert (await rig.ask(BODIES["refused"])).finish_reason == "content_filter"
    assert (await rig.ask(BODIES["refused by another"])).finish_reason == "stop"
    assert (await rig.ask(BODIES["tool"])).finish_reason == "tool_calls"
    assert (await rig.ask(BODIES["plain"])).finish_reason == "stop"


async def test_what_the_responses_api_has_no_words_for_is_rejected_there_and_passes_elsewhere(rig: Rig) -> None:
    body = chat("Say END", stop=["END"])
    if "responses" in rig.name:
        assert (await rig.fails(body)).code == "unsupported_by_provider"
        assert rig.billed["calls"] == 0
    else:
        assert (await rig.ask(body)).finish_reason == "stop"


@pytest.mark.parametrize("name", ["openai", "openai-sdk", "vllm", "simulated"])
async def test_several_choices_pass_through(name: str, server: SimulatedServer) -> None:
    provider = MAKERS[name](server.url)
    reply = await provider.complete(SIM, chat("Pick one", n=3), timeout=5, metadata={})
    assert len({c["message"]["content"] for c in reply.body["choices"]}) == 3
    await provider.close()


@pytest.mark.parametrize("status", [400, 401, 403, 404, 413, 422])
async def test_a_refused_request_is_rejected_and_not_billed(rig: Rig, status: int) -> None:
    error = await rig.fails(chat(f"[[fault:{status}]]"))
    assert type(error) is Rejected
    assert rig.billed["calls"] == 0


@pytest.mark.parametrize("status", [408, 409, 425, 429, 503, 529])
async def test_a_call_turned_away_is_unavailable_and_not_billed(rig: Rig, status: int) -> None:
    error = await rig.fails(chat(f"[[fault:{status}]]"))
    assert type(error) is Unavailable
    assert rig.billed["calls"] == 0


async def test_429_says_when_to_come_back_where_the_provider_does(rig: Rig) -> None:
    named, bare = await rig.fails(chat("[[fault:429]]")), await rig.fails(chat("[[fault:429-bare]]"))
    assert isinstance(named, Unavailable)
    assert isinstance(bare, Unavailable)
    assert named.retry_after == 1.0
    assert bare.retry_after is None


@pytest.mark.parametrize(
    "fault", ["500", "502", "504", "billed-500", "drop", "reset", "truncated", "no-usage", "wrong-model", "stream-error"]
)
async def test_what_may_have_been_billed_is_ambiguous(rig: Rig, fault: str) -> None:
    if fault == "wrong-model" and rig.name.startswith("cohere"):
        return  # its replies name no model
    error = await rig.fails(chat(f"[[fault:{fault}]]"))
    assert type(error) is Ambiguous
    assert rig.billed["calls"] == (0 if fault.isdigit() else 1)


@pytest.mark.parametrize("fault", ["hang", "hang-billed"])
async def test_a_timeout_after_sending_is_ambiguous(rig: Rig, fault: str) -> None:
    assert type(await rig.fails(chat(f"[[fault:{fault}]]"), timeout=0.3)) is Ambiguous


async def test_a_slow_answer_within_the_timeout_is_an_answer(rig: Rig) -> None:
    assert (await rig.ask(chat("[[fault:drip]] slowly"))).finish_reason == "stop"


async def test_a_timeout_bounds_the_whole_call_and_not_the_time_between_bytes(wire: Rig) -> None:
    """The SDKs' timeout is between bytes; ours ends a drip that never pauses for long."""
    if wire.name.endswith("sdk"):
        return
    wire.server.options.drip_s = 30.0
    assert type(await wire.fails(chat("[[fault:drip]] slowly"), timeout=0.3)) is Ambiguous


async def test_an_answer_without_content_is_charged_with_its_usage(rig: Rig) -> None:
    error = await rig.fails(chat("[[fault:no-choices]]"))
    assert isinstance(error, Charged)
    assert bill(SIM, error.usage, error.service_tier, DAY) == rig.billed["pico"]
    assert error.request_id


@pytest.mark.parametrize("name", ["openai", "openai-sdk", "vllm", "simulated"])
async def test_an_answer_without_content_is_charged_at_the_tier_that_its_reply_names(name: str, server: SimulatedServer) -> None:
    rig = Rig(name, MAKERS[name](server.url), server)
    error = await rig.fails(chat("[[fault:no-choices]]", service_tier="flex"))
    await rig.provider.close()
    assert isinstance(error, Charged)
    assert error.service_tier == "flex"
    assert bill(SIM, error.usage, error.service_tier, DAY) == rig.billed["pico"] < bill(SIM, error.usage, "standard", DAY)


async def test_another_model_in_the_reply_is_noticed(rig: Rig) -> None:
    """Cohere's replies name none."""
    if rig.name.startswith("cohere"):
        return
    assert (await rig.fails(chat("[[fault:wrong-model]]"))).code == "wrong_model"


async def test_only_a_stream_tells_that_its_answer_has_begun(rig: Rig) -> None:
    """Once, and before it is over; the SDKs are only a yardstick."""
    told: list[str] = []
    await rig.ask(BODIES["plain"], begun=lambda: told.append("begun"))
    assert told == (["begun"] if rig.stream and not rig.name.endswith("sdk") else [])


async def test_a_server_that_does_not_stream_is_understood(wire: Rig) -> None:
    """A whole reply where a stream was asked for is one all the same."""
    if wire.name.endswith("sdk"):
        return  # they insist
    wire.server.options.streams = False
    assert essence(await wire.ask(BODIES["tool"])) == essence(
        await SimulatedProvider().complete(SIM, BODIES["tool"], timeout=5, metadata={})
    )


async def test_a_server_that_is_not_there_is_unavailable(wire: Rig) -> None:
    """Nothing was sent, so nothing can have been billed."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        provider = MAKERS[wire.name](f"http://127.0.0.1:{taken.getsockname()[1]}")
        with pytest.raises(Unavailable):
            await wire.ask(BODIES["plain"], timeout=2, provider=provider)
        await provider.close()


async def test_unknown_model_is_rejected(wire: Rig) -> None:
    error = await wire.fails(BODIES["plain"], model=replace(SIM, provider_model="no-such-model"))
    assert (type(error), error.code) == (Rejected, "model_not_found")


async def test_a_refused_key_names_the_setting_and_never_the_key(wire: Rig) -> None:
    wire.server.options.api_key = "another"
    error = await wire.fails(BODIES["plain"])
    assert type(error) is Rejected
    assert wire.name.split("-")[0].upper() + "_API_KEY" in str(error)
    assert KEY not in repr(error) + str(error)


async def test_rate_limits_of_the_server_are_obeyed_by_its_own_words(wire: Rig) -> None:
    """The first refusal names a wait, and after that wait the next call is answered."""
    wire.server.options.limits.requests_per_minute = 600
    replies = await asyncio.gather(*(wire.ask(chat(f"q{i}")) for i in range(15)), return_exceptions=True)
    refused = [r for r in replies if isinstance(r, Unavailable)]
    assert len(refused) == wire.server.summary()["refused_429"] > 0
    assert all(r.retry_after is not None and 0 < r.retry_after <= 1.5 for r in refused)


async def test_the_attempt_travels_to_the_bill(wire: Rig, tmp_path: Any) -> None:
    """The provider's bill can be matched with our ledger call by call."""
    wire.server.bill.path = tmp_path / "bill.jsonl"
    reply = await wire.ask(BODIES["plain"])

    (line,) = [orjson.loads(raw) for raw in wire.server.bill.path.read_bytes().splitlines()]
    assert line["client_id"] == "attempt-1"
    assert line["request_id"] == reply.request_id
    assert line["pico"] == bill(SIM, reply.usage, "standard", DAY)


async def test_calls_at_once_share_the_fsync_of_the_bill(tmp_path: Any) -> None:
    """Every line is on disk before its reply, whoever shares the flush."""
    async with SimulatedServer(ServerOptions(bill=tmp_path / "bill.jsonl")) as server:
        provider = OpenAIProvider(KEY, f"{server.url}/v1")

        async def one(i: int) -> bool:
            reply = await provider.complete(SIM, chat(f"question {i}"), timeout=20, metadata={})
            return reply.request_id.encode() in (tmp_path / "bill.jsonl").read_bytes()

        assert all(await asyncio.gather(*(one(i) for i in range(200))))
        await provider.close()
    assert len((tmp_path / "bill.jsonl").read_bytes().splitlines()) == 200


@pytest.mark.parametrize("api", ["chat", "responses"])
async def test_real_models_are_billed_alike_on_both_sides(api: Api, server: SimulatedServer) -> None:
    """Our arithmetic on the price table agrees with the table's own, for every real model of the catalogue."""
    openai, anthropic = OpenAIProvider(KEY, f"{server.url}/v1"), AnthropicProvider(KEY, server.url)
    today = day_of(int(time.time() * 1000))
    for model in load_catalogue().models:
        if model.provider in ("openai", "anthropic"):
            server.bill.clear()
            provider: Provider = openai if model.provider == "openai" else anthropic
            reply = await provider.complete(replace(model, api=api), chat("How do I change my PIN?"), timeout=5, metadata={})
            assert bill(model, reply.usage, reply.service_tier, today) == server.bill.pico > 0, model.name
    await openai.close()
    await anthropic.close()


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("api", ["chat", "responses"])
async def test_flex_is_billed_by_the_tier_of_the_reply(api: Api, stream: bool, server: SimulatedServer) -> None:
    provider = OpenAIProvider(KEY, f"{server.url}/v1")
    reply = await provider.complete(
        replace(SIM, api=api), chat("cheap, please", service_tier="flex", stream=stream), timeout=5, metadata={}
    )
    assert reply.service_tier == "flex"
    assert bill(SIM, reply.usage, "flex", DAY) == server.bill.pico == bill(SIM, reply.usage, "standard", DAY) // 2
    assert SIM.prices is not None
    assert SIM.prices.flex_factor == Decimal("0.5")
    await provider.close()

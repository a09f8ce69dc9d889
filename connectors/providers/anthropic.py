"""Anthropic messages on the thin transport, spoken to in the form of chat completions."""

import time
from collections.abc import Mapping
from dataclasses import replace

from ...pipeline.errors import Charged
from ...pipeline.models import Model
from ...pipeline.ports import Begun, ProviderReply
from ...schemas.record import JsonObject
from .anthropic_form import read_usage, tier_of, to_completion, to_messages
from .chat_form import chat_usage
from .failures import same_model, unreadable
from .rate_headers import rates_seen
from .stream_form import MESSAGES
from .transport import Transport, call_headers, parse_base_url

ANTHROPIC_URL = "https://api.anthropic.com"
API_VERSION = "2023-06-01"


class AnthropicProvider:
    """Translates each chat completion into a messages request, and its reply back."""

    def __init__(self, api_key: str | None, base_url: str = ANTHROPIC_URL) -> None:
        base = parse_base_url("anthropic", base_url, "ANTHROPIC_BASE_URL")
        # The SDK's base URL has no version in it; people write it with one all the same.
        self._url = base / "messages" if base.name == "v1" else base / "v1/messages"
        headers = {"anthropic-version": API_VERSION} | ({"x-api-key": api_key} if api_key else {})
        self._transport = Transport("anthropic", headers, "ANTHROPIC_API_KEY", api_key)

    async def complete(
        self, model: Model, body: JsonObject, *, timeout: float, metadata: Mapping[str, str], begun: Begun | None = None
    ) -> ProviderReply:
        """See `Provider.complete`."""
        request = to_messages(model, body)
        if body.get("stream"):
            request["stream"] = True
        headers, reply = await self._transport.ask(self._url, request, timeout, call_headers(metadata), MESSAGES, begun)
        read = read_reply(model, request, reply, headers.get("request-id"), int(time.time()))
        return replace(read, rates=rates_seen(headers, time.time()))

    async def close(self) -> None:
        await self._transport.close()


def read_reply(model: Model, request: JsonObject, reply: JsonObject, request_id: str | None, created_s: int) -> ProviderReply:
    """The reply of a messages request. Raises `Ambiguous` and `Charged` as `chat_form.read_completion` does."""
    raw_usage = reply.get("usage")
    usage = read_usage("anthropic", raw_usage, _asks_for_hour(raw_usage, request))
    if not same_model(model.provider_model, reply.get("model")):
        raise unreadable("anthropic", f"as model {str(reply.get('model'))[:80]!r} in place of {model.provider_model!r}", "wrong_model")
    made = to_completion(reply, created_s)
    call_id, tier = request_id or str(reply.get("id") or ""), tier_of(raw_usage or {})
    if made is None:
        said = "anthropic billed an answer without readable content; ask again"
        raise Charged(said, usage=usage, service_tier=tier, request_id=call_id)
    body, finish = made
    body["usage"] = chat_usage(usage)
    return ProviderReply(body, usage, finish, call_id, tier)


def _asks_for_hour(usage: object, request: JsonObject) -> bool:
    """Only looked for where a reply says that something was written and not for how long."""
    if not isinstance(usage, dict) or usage.get("cache_creation") or not usage.get("cache_creation_input_tokens"):
        return False
    return "1h" in repr(request)

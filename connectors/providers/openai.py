"""OpenAI's chat completions and responses, and every server that speaks their protocol, on the thin transport."""

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from ...pipeline.models import Api, Model
from ...pipeline.ports import Begun, ProviderReply
from ...schemas.record import JsonObject
from .chat_form import read_completion
from .rate_headers import rates_seen
from .responses_form import read_response, to_responses
from .stream_form import CHAT, RESPONSES, StreamForm
from .transport import Transport, call_headers, parse_base_url

OPENAI_URL = "https://api.openai.com/v1"

_Read = Callable[[str, str, JsonObject, str, Any], ProviderReply]
_PROTOCOLS: Mapping[Api, tuple[str, StreamForm, _Read]] = {
    "chat": ("chat/completions", CHAT, read_completion),
    "responses": ("responses", RESPONSES, read_response),
}
"""Path, streams, and how replies are read."""


class OpenAIProvider:
    """Sends bodies as they are, with the model's name put in; where a model is asked by the responses API, in its form.

    At OpenAI itself two fields are made certain: without `service_tier` a project's own setting could choose a dearer
    tier than the price cap, so `default` is asked for; and `max_tokens`, which newer models refuse, goes by its new name.
    """

    def __init__(
        self,
        api_key: str | None,
        base_url: str = OPENAI_URL,
        *,
        name: str = "openai",
        key_setting: str = "OPENAI_API_KEY",
        url_setting: str = "OPENAI_BASE_URL",
    ) -> None:
        base = parse_base_url(name, base_url, url_setting)
        self._name = name
        self._base = base
        self._official = base.host == "api.openai.com" or str(base.host).endswith(".api.openai.com")
        self._transport = Transport(name, {"Authorization": f"Bearer {api_key}"} if api_key else {}, key_setting, api_key)

    async def complete(
        self, model: Model, body: JsonObject, *, timeout: float, metadata: Mapping[str, str], begun: Begun | None = None
    ) -> ProviderReply:
        """See `Provider.complete`."""
        path, form, read = _PROTOCOLS[model.api]
        url, request = self._base / path, self.request(model, body)
        headers, reply = await self._transport.ask(url, request, timeout, call_headers(metadata), form, begun)
        request_id = headers.get("x-request-id") or str(reply.get("id") or "")
        made = read(self._name, model.provider_model, reply, request_id, reply.get("service_tier"))
        return replace(made, rates=rates_seen(headers, time.time()))

    def request(self, model: Model, body: JsonObject) -> JsonObject:
        """The body as it is sent. Raises `Rejected` for what the model's API can't be asked."""
        sent = to_responses(model, body) if model.api == "responses" else _chat_request(model, body)
        if self._official:
            sent.setdefault("service_tier", "default")
            if model.api == "chat" and sent.get("max_tokens") is not None:
                sent.setdefault("max_completion_tokens", sent.pop("max_tokens"))
        return sent

    async def close(self) -> None:
        await self._transport.close()


def _chat_request(model: Model, body: JsonObject) -> JsonObject:
    """A stream is asked to tell its usage: without, it could not be billed."""
    sent = {**body, "model": model.provider_model}
    if sent.get("stream"):
        sent["stream_options"] = {**(sent.get("stream_options") or {}), "include_usage": True}
    else:
        sent.pop("stream", None)
        sent.pop("stream_options", None)
    return sent

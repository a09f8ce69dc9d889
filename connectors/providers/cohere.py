"""Cohere's chat (v2) on the thin transport, spoken to in the form of chat completions."""

import time
from collections.abc import Mapping
from dataclasses import replace

from ...pipeline.errors import Charged
from ...pipeline.models import Model
from ...pipeline.ports import Begun, ProviderReply
from ...schemas.record import JsonObject
from .cohere_form import read_usage, to_chat, to_completion
from .rate_headers import rates_seen
from .stream_form import COHERE
from .transport import Transport, call_headers, parse_base_url

COHERE_URL = "https://api.cohere.com"


class CohereProvider:
    """Translates each chat completion into a chat request, and its reply back."""

    def __init__(self, api_key: str | None, base_url: str = COHERE_URL) -> None:
        base = parse_base_url("cohere", base_url, "COHERE_BASE_URL")
        self._url = base / "chat" if base.name == "v2" else base / "v2/chat"
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._transport = Transport("cohere", headers, "COHERE_API_KEY", api_key)

    async def complete(
        self, model: Model, body: JsonObject, *, timeout: float, metadata: Mapping[str, str], begun: Begun | None = None
    ) -> ProviderReply:
        """See `Provider.complete`."""
        request = {**to_chat(model, body), "stream": bool(body.get("stream"))}
        headers, reply = await self._transport.ask(self._url, request, timeout, call_headers(metadata), COHERE, begun)
        read = read_reply(model, reply, headers.get("x-request-id"), int(time.time()))
        return replace(read, rates=rates_seen(headers, time.time()))

    async def close(self) -> None:
        await self._transport.close()


def read_reply(model: Model, reply: JsonObject, request_id: str | None, created_s: int) -> ProviderReply:
    """The reply of a chat request. Raises `Ambiguous` where it can't be billed by its usage, `Charged` where it has no readable content."""
    usage = read_usage(reply.get("usage"))
    call_id = str(reply.get("id") or request_id or "")
    made = to_completion(model, reply, created_s)
    if made is None:
        said = "cohere billed an answer without readable content; ask again"
        raise Charged(said, usage=usage, service_tier="standard", request_id=call_id)
    body, finish = made
    counts = {"prompt_tokens": usage.input_tokens, "completion_tokens": usage.output_tokens}
    body["usage"] = {**counts, "total_tokens": usage.input_tokens + usage.output_tokens}
    return ProviderReply(body, usage, finish, call_id, "standard")

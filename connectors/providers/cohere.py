"""Cohere's chat (v2) on the thin transport, spoken to in the form of chat completions."""

import time
from collections.abc import Mapping

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
        usage = read_usage(reply.get("usage"))
        request_id = str(reply.get("id") or headers.get("x-request-id") or "")
        made = to_completion(model, reply, int(time.time()))
        if made is None:
            said = "cohere billed an answer without readable content; ask again"
            raise Charged(said, usage=usage, service_tier="standard", request_id=request_id)
        completion, finish = made
        counts = {"prompt_tokens": usage.input_tokens, "completion_tokens": usage.output_tokens}
        completion["usage"] = {**counts, "total_tokens": usage.input_tokens + usage.output_tokens}
        return ProviderReply(completion, usage, finish, request_id, "standard", rates=rates_seen(headers, time.time()))

    async def close(self) -> None:
        await self._transport.close()

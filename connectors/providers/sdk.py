"""The official SDKs behind the same port: the yardstick that the thin transport is held to, and what is not hot.

Their retries are off, since a retry that nobody has booked could be paid twice.
"""

import time
from collections.abc import Mapping
from typing import Any

from ...pipeline.errors import Ambiguous, EngineError, Unavailable
from ...pipeline.models import Model
from ...pipeline.ports import ProviderReply
from ...schemas.record import JsonObject
from .anthropic import ANTHROPIC_URL, read_reply
from .anthropic_form import to_messages
from .chat_form import read_completion
from .failures import failure, loads
from .openai import OPENAI_URL
from .transport import call_headers


class OpenAISdkProvider:
    """`OpenAIProvider` on the package `openai`; bodies of servers that are not OpenAI's are sent as they are."""

    def __init__(self, api_key: str | None, base_url: str = OPENAI_URL) -> None:
        from openai import AsyncOpenAI

        self._client: AsyncOpenAI = AsyncOpenAI(api_key=api_key or "none", base_url=base_url, max_retries=0)

    async def complete(self, model: Model, body: JsonObject, *, timeout: float, metadata: Mapping[str, str]) -> ProviderReply:
        """See `Provider.complete`."""
        import openai

        sent: dict[str, Any] = {**body, "model": model.provider_model}
        sent.pop("stream", None)
        sent.pop("stream_options", None)
        try:
            # The body goes in whole, so that fields which this version of the package does not know travel too.
            raw = await self._client.chat.completions.with_raw_response.create(
                model=model.provider_model,
                messages=sent.pop("messages", []),
                extra_body=sent,
                extra_headers=call_headers(metadata),
                timeout=timeout,
            )
        except openai.APIStatusError as error:
            raise failure(
                "openai", "OPENAI_API_KEY", error.status_code, error.response.headers, error.response.content, time.time()
            ) from None
        except openai.APIConnectionError as error:
            raise not_answered("openai", error) from None
        reply = loads("openai", raw.http_response.content)
        request_id = raw.headers.get("x-request-id") or str(reply.get("id") or "")
        return read_completion("openai", model.provider_model, reply, request_id, reply.get("service_tier"))

    async def close(self) -> None:
        await self._client.close()


class AnthropicSdkProvider:
    """`AnthropicProvider` on the package `anthropic`."""

    def __init__(self, api_key: str | None, base_url: str = ANTHROPIC_URL) -> None:
        from anthropic import AsyncAnthropic

        self._client: AsyncAnthropic = AsyncAnthropic(api_key=api_key or "none", base_url=base_url, max_retries=0)

    async def complete(self, model: Model, body: JsonObject, *, timeout: float, metadata: Mapping[str, str]) -> ProviderReply:
        """See `Provider.complete`."""
        import anthropic

        request = to_messages(model, body)
        fields: dict[str, Any] = dict(request)
        limit, messages = fields.pop("max_tokens"), fields.pop("messages")
        try:
            raw = await self._client.messages.with_raw_response.create(
                model=fields.pop("model"),
                max_tokens=limit,
                messages=messages,
                extra_body=fields,
                extra_headers=call_headers(metadata),
                timeout=timeout,
            )
        except anthropic.APIStatusError as error:
            raise failure(
                "anthropic", "ANTHROPIC_API_KEY", error.status_code, error.response.headers, error.response.content, time.time()
            ) from None
        except anthropic.APIConnectionError as error:
            raise not_answered("anthropic", error) from None
        reply = loads("anthropic", raw.http_response.content)
        return read_reply(model, request, reply, raw.headers.get("request-id"), int(time.time()))

    async def close(self) -> None:
        await self._client.close()


def not_answered(provider: str, error: BaseException) -> EngineError:
    """By the transport's own error: not connected is certain, all else is not."""
    import httpx2

    cause = error.__cause__
    if isinstance(cause, (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout)):
        return Unavailable(f"{provider} can't be reached ({type(cause).__name__}); nothing was sent", code="unreachable")
    return Ambiguous(f"{provider}: no whole answer ({type(cause).__name__}) after the call was sent; it may have been billed")

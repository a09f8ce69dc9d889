"""The official SDKs behind the same port: the yardstick that the thin transport is held to, and what is not hot.

Their retries are off, since a retry that nobody has booked could be paid twice.
"""

import time
from collections.abc import AsyncIterator, Mapping
from typing import Any

import orjson

from ...pipeline.errors import Ambiguous, EngineError, Unavailable
from ...pipeline.models import Model
from ...pipeline.ports import Begun, ProviderReply
from ...schemas.record import JsonObject
from .anthropic import ANTHROPIC_URL, read_reply
from .anthropic_form import to_messages
from .chat_form import read_completion
from .failures import cut, failed_midway, failure, loads, unreadable
from .openai import OPENAI_URL
from .responses_form import read_response, to_responses
from .stream_form import RESPONSE_ENDS
from .transport import call_headers


class OpenAISdkProvider:
    """`OpenAIProvider` on the package `openai`; bodies of servers that are not OpenAI's are sent as they are."""

    def __init__(self, api_key: str | None, base_url: str = OPENAI_URL) -> None:
        from openai import AsyncOpenAI

        self._client: AsyncOpenAI = AsyncOpenAI(api_key=api_key or "none", base_url=base_url, max_retries=0)

    async def complete(
        self, model: Model, body: JsonObject, *, timeout: float, metadata: Mapping[str, str], begun: Begun | None = None
    ) -> ProviderReply:
        """See `Provider.complete`."""
        import openai

        responses = model.api == "responses"
        ask = self._response if responses else self._completion
        try:
            reply, headers = await ask(model, body, {"extra_headers": call_headers(metadata), "timeout": timeout})
        except (openai.APIStatusError, openai.APIConnectionError) as error:
            raise _meaning("openai", "OPENAI_API_KEY", error) from None
        except openai.APIError as error:
            raise failed_midway("openai", orjson.dumps({"error": error.body})) from None
        request_id = headers.get("x-request-id") or str(reply.get("id") or "")
        read = read_response if responses else read_completion
        return read("openai", model.provider_model, reply, request_id, reply.get("service_tier"))

    # Bodies go in whole, so that fields which this version of the package does not know travel too.

    async def _completion(self, model: Model, body: JsonObject, options: dict[str, Any]) -> tuple[JsonObject, Mapping[str, str]]:
        sent: dict[str, Any] = {**body, "model": model.provider_model}
        stream = bool(sent.pop("stream", None))
        sent.pop("stream_options", None)
        given = {"model": model.provider_model, "messages": sent.pop("messages", []), "extra_body": sent, **options}
        calls = self._client.chat.completions.with_raw_response
        if not stream:
            raw = await calls.create(**given)
            return loads("openai", raw.http_response.content), raw.headers
        raw = await calls.create(**given, stream=True, stream_options={"include_usage": True})
        return await _accumulated(raw.parse()), raw.headers

    async def _response(self, model: Model, body: JsonObject, options: dict[str, Any]) -> tuple[JsonObject, Mapping[str, str]]:
        sent = to_responses(model, body)
        given = {"model": sent.pop("model"), "input": sent.pop("input"), **options}
        calls = self._client.responses.with_raw_response
        if not sent.pop("stream", False):
            raw = await calls.create(**given, extra_body=sent)
            return loads("openai", raw.http_response.content), raw.headers
        streamed = await calls.create(**given, extra_body=sent, stream=True)
        events: AsyncIterator[Any] = streamed.parse()
        async for event in events:
            if event.type in RESPONSE_ENDS:
                return dict(event.response.to_dict(mode="json")), streamed.headers
        raise cut("openai")

    async def close(self) -> None:
        await self._client.close()


class AnthropicSdkProvider:
    """`AnthropicProvider` on the package `anthropic`."""

    def __init__(self, api_key: str | None, base_url: str = ANTHROPIC_URL) -> None:
        from anthropic import AsyncAnthropic

        self._client: AsyncAnthropic = AsyncAnthropic(api_key=api_key or "none", base_url=base_url, max_retries=0)

    async def complete(
        self, model: Model, body: JsonObject, *, timeout: float, metadata: Mapping[str, str], begun: Begun | None = None
    ) -> ProviderReply:
        """See `Provider.complete`."""
        import anthropic

        request = to_messages(model, body)
        fields: dict[str, Any] = dict(request)
        given: dict[str, Any] = {name: fields.pop(name) for name in ("model", "max_tokens", "messages")}
        given |= {"extra_body": fields, "extra_headers": call_headers(metadata), "timeout": timeout}
        try:
            if body.get("stream"):
                async with self._client.messages.stream(**given) as stream:
                    reply, request_id = await _final(stream), stream.request_id
            else:
                raw = await self._client.messages.with_raw_response.create(**given)
                reply, request_id = loads("anthropic", raw.http_response.content), raw.headers.get("request-id")
        except (anthropic.APIStatusError, anthropic.APIConnectionError) as error:
            raise _meaning("anthropic", "ANTHROPIC_API_KEY", error) from None
        return read_reply(model, request, dict(reply), request_id, int(time.time()))

    async def close(self) -> None:
        await self._client.close()


async def _accumulated(chunks: Any) -> JsonObject:
    """By the package's own hand."""
    from openai.lib.streaming.chat import ChatCompletionStreamState

    state: ChatCompletionStreamState[None] = ChatCompletionStreamState()
    finished = 0
    async for chunk in chunks:
        state.handle_chunk(chunk)
        finished += sum(choice.finish_reason is not None for choice in chunk.choices)
    snapshot = state.current_completion_snapshot
    if not finished and snapshot.usage is None:
        raise cut("openai")  # what else ends the last chunk is not shown by the package
    return dict(snapshot.to_dict(mode="json"))


async def _final(stream: Any) -> JsonObject:
    """By the package's own hand; it does not see where a stream ends early, and fails on one without usage."""
    import httpx2

    ended = False
    try:
        async for event in stream:
            ended = ended or event.type == "message_stop"
    except httpx2.TransportError as error:
        raise Ambiguous(f"anthropic: the stream broke ({type(error).__name__}); it may have been billed") from None
    except AttributeError:
        raise unreadable("anthropic", "without usage", "usage_missing") from None
    if not ended:
        raise cut("anthropic")
    return dict(stream.current_message_snapshot.to_dict(mode="json"))


def _meaning(provider: str, key_setting: str, error: Any) -> EngineError:
    response = getattr(error, "response", None)
    if response is None:
        return not_answered(provider, error)
    if response.status_code < 300:
        return failed_midway(provider, orjson.dumps(error.body))
    return failure(provider, key_setting, response.status_code, response.headers, response.content, time.time())


def not_answered(provider: str, error: BaseException) -> EngineError:
    """By the transport's own error: not connected is certain, all else is not."""
    import httpx2

    cause = error.__cause__
    if isinstance(cause, (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout)):
        return Unavailable(f"{provider} can't be reached ({type(cause).__name__}); nothing was sent", code="unreachable")
    return Ambiguous(f"{provider}: no whole answer ({type(cause).__name__}) after the call was sent; it may have been billed")

"""Cohere's official SDK behind the port of the providers: only the yardstick of `CohereProvider`, so that nobody else needs the package.

What it checks that no code of our own can: the names of the fields that are sent are parameters of the SDK (another one is a TypeError),
and what the server says is read by the SDK's own types, event by event.
"""

import time
from collections.abc import AsyncIterator, Mapping
from typing import Any

import orjson

from inference_engine.connectors.providers.cohere import read_reply
from inference_engine.connectors.providers.cohere_form import to_chat
from inference_engine.connectors.providers.failures import cut, failed_midway, failure, unreadable
from inference_engine.connectors.providers.transport import call_headers
from inference_engine.pipeline.errors import Ambiguous, EngineError, Unavailable
from inference_engine.pipeline.models import Model
from inference_engine.pipeline.ports import Begun, ProviderReply
from inference_engine.schemas.record import JsonObject


class CohereSdkProvider:
    """`CohereProvider` on the package `cohere`."""

    def __init__(self, api_key: str, base_url: str) -> None:
        import httpx
        from cohere import AsyncClientV2

        # Its own HTTP client would send a request again wherever a redirect points.
        self._http = httpx.AsyncClient(follow_redirects=False)
        self._client = AsyncClientV2(api_key, base_url=base_url, max_retries=0, httpx_client=self._http)

    async def complete(
        self, model: Model, body: JsonObject, *, timeout: float, metadata: Mapping[str, str], begun: Begun | None = None
    ) -> ProviderReply:
        """See `Provider.complete`."""
        import httpx
        from cohere.core.api_error import ApiError
        from cohere.core.parse_error import ParsingError
        from cohere.core.request_options import RequestOptions

        given: dict[str, Any] = to_chat(model, body)
        del given["stream"]  # here two methods
        options: RequestOptions = {"timeout": timeout, "additional_headers": call_headers(metadata) or {}}
        calls = self._client.with_raw_response
        try:
            if body.get("stream"):
                async with calls.chat_stream(**given, request_options=options) as streamed:
                    reply, headers = await _accumulated(streamed.data), streamed.headers
            else:
                whole = await calls.chat(**given, request_options=options)
                reply, headers = whole.data.dict(), whole.headers
        except (ApiError, ParsingError) as error:
            raise _meaning(error) from None
        except httpx.TransportError as error:
            raise _not_answered(error) from None
        return read_reply(model, reply, headers.get("x-request-id"), int(time.time()))

    async def close(self) -> None:
        await self._http.aclose()


async def _accumulated(events: AsyncIterator[Any]) -> JsonObject:
    """The whole reply; the SDK has no hand of its own for it."""
    reply: JsonObject = {}
    texts: dict[int, str] = {}
    calls: dict[int, Any] = {}
    async for event in events:
        if event.type == "message-start":
            reply["id"] = event.id
        elif event.type in ("content-start", "content-delta"):
            texts[event.index] = texts.get(event.index, "") + (event.delta.message.content.text or "")
        elif event.type == "tool-call-start":
            calls[event.index] = event.delta.message.tool_calls.dict()
        elif event.type == "tool-call-delta":
            calls[event.index]["function"]["arguments"] += event.delta.message.tool_calls.function.arguments
        elif event.type == "message-end":
            if event.delta.error:
                raise failed_midway("cohere", orjson.dumps(event.dict()))
            reply |= {"finish_reason": event.delta.finish_reason, "usage": event.delta.usage and event.delta.usage.dict()}
            content = [{"type": "text", "text": texts[i]} for i in sorted(texts)]
            return {**reply, "message": {"role": "assistant", "content": content, "tool_calls": [calls[i] for i in sorted(calls)]}}
    raise cut("cohere")


def _meaning(error: Any) -> EngineError:
    if error.status_code < 300:
        return unreadable("cohere", "not in the form that its SDK reads")
    said = error.body if isinstance(error.body, str) else orjson.dumps(error.body).decode()
    return failure("cohere", "COHERE_API_KEY", error.status_code, error.headers or {}, said.encode(), time.time())


def _not_answered(error: Exception) -> EngineError:
    import httpx

    if isinstance(error, (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)):
        return Unavailable(f"cohere can't be reached ({type(error).__name__}); nothing was sent", code="unreachable")
    return Ambiguous(f"cohere: no whole answer ({type(error).__name__}) after the call was sent; it may have been billed")

"""A thin HTTP transport for hot calls: one session, bytes out, bytes or events in. It never retries and never logs."""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import TypeVar

import aiohttp
import orjson
from multidict import CIMultiDictProxy
from yarl import URL

from ...pipeline.errors import Ambiguous, ConfigError, Rejected, Unavailable
from ...pipeline.ports import Begun
from ...schemas.record import JsonObject
from .failures import failure, loads, unreadable
from .sse import Ends, Event, EventReader
from .stream_form import StreamForm

CONNECT_S = 10.0
LAST_BYTES_S = 0.25
"""So long the end of a stream is waited for whose last event is here: only a connection that was read to its end can be used again."""
EVENTS = "text/event-stream"

Read = TypeVar("Read")


def parse_base_url(provider: str, url: str, setting: str) -> URL:
    """Raises `ConfigError` where it isn't an http(s) URL."""
    try:
        parsed = URL(url.rstrip("/"))
    except ValueError:
        parsed = URL()
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise ConfigError(f"{setting} is not the URL of a {provider} server; write it like https://host/v1")
    return parsed


class Transport:
    """POSTs JSON to one server. Create it anywhere; its session begins with the first call and belongs to that event loop."""

    def __init__(self, provider: str, headers: Mapping[str, str], key_setting: str, secret: str | None) -> None:
        self._provider = provider
        self._secret = secret.encode() if secret else None
        self._headers = dict(headers)
        self._key_setting = key_setting
        self._session: aiohttp.ClientSession | None = None
        self._timeouts: dict[float, aiohttp.ClientTimeout] = {}

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            # How many calls are in flight is decided elsewhere; idle connections are dropped before servers drop them.
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=15.0),
                cookie_jar=aiohttp.DummyCookieJar(),
                headers={**self._headers, "Content-Type": "application/json"},
                skip_auto_headers=("User-Agent",),
            )
        return self._session

    def _timeout(self, seconds: float) -> aiohttp.ClientTimeout:
        found = self._timeouts.get(seconds)
        if found is None:
            # Shorter than the whole, so that a call that was never sent is known as such.
            found = aiohttp.ClientTimeout(total=seconds, connect=min(CONNECT_S, seconds * 0.9))
            if len(self._timeouts) < 64:
                self._timeouts[seconds] = found
        return found

    async def ask(
        self, url: URL, body: JsonObject, timeout: float, headers: Mapping[str, str] | None, form: StreamForm, begun: Begun | None
    ) -> tuple[CIMultiDictProxy[str], JsonObject]:
        """Headers and the reply, put together where the body asks for a stream. Raises as `post` does."""
        got: list[Event] | bytes
        if body.get("stream"):
            said, got = await self._post_for_events(url, body, timeout, headers, form.ends, begun)
        else:
            said, got = await self.post(url, body, timeout, headers)
        return said, loads(self._provider, got) if isinstance(got, bytes) else form.assemble(self._provider, got)

    async def post(
        self, url: URL, body: JsonObject, timeout: float, headers: Mapping[str, str] | None
    ) -> tuple[CIMultiDictProxy[str], bytes]:
        """Headers and body of a reply with status 2xx. Raises `Rejected`, `Unavailable` or `Ambiguous`, as in `failures`."""
        return await self._exchange(url, body, timeout, headers, aiohttp.ClientResponse.read)

    async def _post_for_events(
        self, url: URL, body: JsonObject, timeout: float, headers: Mapping[str, str] | None, ends: Ends, begun: Begun | None
    ) -> tuple[CIMultiDictProxy[str], list[Event] | bytes]:
        """As `post`, of a reply that comes as a stream: its events; bytes where the server gave a whole reply all the same.

        A stream that was not read up to an event that `ends` it may be cut: that is for the caller to see. `begun` is called with the first
        event.
        """

        async def read(reply: aiohttp.ClientResponse) -> list[Event] | bytes:
            if reply.content_type != EVENTS:
                return await reply.read()
            try:
                return await _read_events(reply, ends, begun)
            except ValueError as error:
                raise unreadable(self._provider, f"with a stream that can't be read ({error})") from None

        return await self._exchange(url, body, timeout, headers, read)

    async def _exchange(
        self,
        url: URL,
        body: JsonObject,
        timeout: float,
        headers: Mapping[str, str] | None,
        read: Callable[[aiohttp.ClientResponse], Awaitable[Read]],
    ) -> tuple[CIMultiDictProxy[str], Read]:
        try:
            payload = orjson.dumps(body)
        except orjson.JSONEncodeError as error:
            raise Rejected(f"the body can't be written as JSON ({error}), so it was not sent; correct it and ask again") from None
        status: int | None = None
        try:
            reply = await self._open().post(url, data=payload, headers=headers, timeout=self._timeout(timeout), allow_redirects=False)
            try:
                status = reply.status
                if status < 300:
                    return reply.headers, await read(reply)
                raw = await reply.read()
            finally:
                reply.release()
        except (aiohttp.ConnectionTimeoutError, aiohttp.ClientConnectorError) as error:
            raise Unavailable(f"{self._provider} can't be reached ({_name(error)}); nothing was sent", code="unreachable") from None
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            if status is None or status < 300:
                what = f"no answer within {timeout:g} s" if isinstance(error, TimeoutError) else f"the connection broke ({_name(error)})"
                raise Ambiguous(f"{self._provider}: {what} after the call was sent; it may have been billed") from None
            raw = b""
        if self._secret:
            raw = raw.replace(self._secret, b"[key]")
        raise failure(self._provider, self._key_setting, status, reply.headers, raw, time.time())

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None


async def _read_events(reply: aiohttp.ClientResponse, ends: Ends, begun: Begun | None) -> list[Event]:
    reader = EventReader()
    found: list[Event] = []
    async for piece in reply.content.iter_any():
        for event in reader.feed(piece):
            if begun is not None and not found and not _is_error(event):
                begun()
            found.append(event)
            if ends(event):
                # Whatever becomes of the connection now: the answer is whole.
                with contextlib.suppress(aiohttp.ClientError, TimeoutError, OSError):
                    async with asyncio.timeout(LAST_BYTES_S):
                        await reply.content.read()
                return found
    return found


def _is_error(event: Event) -> bool:
    return event.name == "error" or event.data.startswith(b'{"error"')


def _name(error: BaseException) -> str:
    """The kind of an error; its words may hold the URL, and a URL may hold a key."""
    return type(error).__name__


def call_headers(metadata: Mapping[str, str]) -> dict[str, str] | None:
    """The attempt's id travels as X-Client-Request-Id, which OpenAI keeps and others ignore."""
    attempt = metadata.get("attempt")
    return {"X-Client-Request-Id": attempt} if attempt and attempt.isascii() and attempt.isprintable() else None

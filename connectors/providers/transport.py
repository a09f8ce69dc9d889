"""A thin HTTP transport for hot calls: one session, bytes out, bytes in. It never retries and never logs."""

import time
from collections.abc import Mapping

import aiohttp
import orjson
from multidict import CIMultiDictProxy
from yarl import URL

from ...pipeline.errors import Ambiguous, ConfigError, Rejected, Unavailable
from ...schemas.record import JsonObject
from .failures import failure

CONNECT_S = 10.0


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

    async def post(
        self, url: URL, body: JsonObject, timeout: float, headers: Mapping[str, str] | None
    ) -> tuple[CIMultiDictProxy[str], bytes]:
        """Headers and body of a reply with status 2xx. Raises `Rejected`, `Unavailable` or `Ambiguous`, as in `failures`."""
        try:
            payload = orjson.dumps(body)
        except orjson.JSONEncodeError as error:
            raise Rejected(f"the body can't be written as JSON ({error}), so it was not sent; correct it and ask again") from None
        status: int | None = None
        try:
            reply = await self._open().post(url, data=payload, headers=headers, timeout=self._timeout(timeout), allow_redirects=False)
            try:
                status = reply.status
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
        if status >= 300:
            if self._secret:
                raw = raw.replace(self._secret, b"[key]")
            raise failure(self._provider, self._key_setting, status, reply.headers, raw, time.time())
        return reply.headers, raw

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None


def _name(error: BaseException) -> str:
    """The kind of an error; its words may hold the URL, and a URL may hold a key."""
    return type(error).__name__


def call_headers(metadata: Mapping[str, str]) -> dict[str, str] | None:
    """The attempt's id travels as X-Client-Request-Id, which OpenAI keeps and others ignore."""
    attempt = metadata.get("attempt")
    return {"X-Client-Request-Id": attempt} if attempt and attempt.isascii() and attempt.isprintable() else None

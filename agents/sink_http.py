"""The sink's door on loopback: SQL, health, and "wait until these offsets are stored"."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import orjson
from aiohttp import web

from ..connectors.sink_http import encode_result
from ..pipeline.errors import EngineError, Rejected
from ..pipeline.ports import CostStore

CaughtUp = Callable[[Mapping[int, int], float], Awaitable[dict[int, int]]]
"""(end offset by partition, timeout in seconds) -> for each partition still behind, the offset that is reached."""

_LOOPBACK = frozenset({"127.0.0.1", "localhost", "[::1]"})
_MOST_SECONDS = 600.0


def sink_app(
    store: Callable[[], CostStore], caught_up: CaughtUp, fresh: Callable[[], Awaitable[None]], health: Callable[[], dict[str, Any]]
) -> web.Application:
    """Routes `POST /sql`, `POST /caught_up` and `GET /health`. `fresh` is awaited before each question.

    `store` raises `Unavailable` while there is none. Errors are `{"error": {"code", "message"}}`: 400 for the asker's, 503 for ours.
    """

    async def sql(request: web.Request) -> web.Response:
        text, parameters = await _question(request)
        await fresh()
        columns, rows = await asyncio.to_thread(lambda: store().query(text, parameters))
        return web.Response(body=await asyncio.to_thread(encode_result, columns, rows), content_type="application/json")

    async def wait(request: web.Request) -> web.Response:
        ends, timeout = await _ends(request)
        behind = await caught_up(ends, timeout)
        return _json({"caught_up": not behind, "behind": {str(partition): offset for partition, offset in behind.items()}})

    async def healthy(_: web.Request) -> web.Response:
        return _json(health())

    app = web.Application(middlewares=[_only_loopback_names, _errors_as_json], client_max_size=4 << 20)
    app.add_routes([web.post("/sql", sql), web.post("/caught_up", wait), web.get("/health", healthy)])
    return app


async def _question(request: web.Request) -> tuple[str, Mapping[str, Any] | None]:
    """SQL as plain text, or `{"sql", "parameters"}` as JSON."""
    if request.content_type != "application/json":
        return await request.text(), None
    body = _json_object(await request.read())
    sql, parameters = body.get("sql"), body.get("parameters") or {}
    if not isinstance(sql, str) or not isinstance(parameters, dict):
        raise Rejected('Ask with {"sql": "...", "parameters": {...}}, or with plain text.', code="bad_question")
    return sql, parameters


async def _ends(request: web.Request) -> tuple[dict[int, int], float]:
    """`{"offsets": {partition: end offset}, "timeout_s": seconds}`."""
    body = _json_object(await request.read())
    try:
        ends = {int(partition): int(end) for partition, end in body["offsets"].items()}
        return ends, min(float(body.get("timeout_s", 30)), _MOST_SECONDS)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise Rejected('Ask with {"offsets": {"0": 17}, "timeout_s": 30}.', code="bad_question") from error


def _json_object(raw: bytes) -> dict[str, Any]:
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise Rejected(f"The body is not JSON: {error}.", code="bad_question") from error
    if not isinstance(body, dict):
        raise Rejected("The body must be a JSON object.", code="bad_question")
    return body


def _json(value: Any, status: int = 200) -> web.Response:
    return web.Response(body=orjson.dumps(value), status=status, content_type="application/json")


Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@web.middleware
async def _only_loopback_names(request: web.Request, handler: Handler) -> web.StreamResponse:
    """A web page could reach loopback under a name of its own (DNS rebinding) and read the costs: refused."""
    host = request.host.rsplit(":", 1)[0] if not request.host.endswith("]") else request.host
    if host not in _LOOPBACK:
        return _json({"error": {"code": "wrong_host", "message": f"Ask 127.0.0.1, not {host}."}}, status=403)
    return await handler(request)


@web.middleware
async def _errors_as_json(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except EngineError as error:
        return _json({"error": {"code": error.code, "message": str(error)}}, status=400 if isinstance(error, Rejected) else 503)

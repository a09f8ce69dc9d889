"""The simulated provider as an HTTP server: OpenAI chat completions, Anthropic messages and Cohere chat, limits, faults, and its bill.

    python -m inference_engine.connectors.simulated_server --port 9999 --latency-ms 200 --rpm 600 --bill bill.jsonl

Besides `/v1/chat/completions`, `/v1/responses`, `/v1/messages`, `/v2/chat`, the batches of all but the last and `/v1/models`:
`GET /_bill` (the totals), `POST /_faults` (a rule: kind, count, probability, match, retry_after), `DELETE /_faults`, `POST /_reset`
(totals, faults and prompt caches). Calls with `stream` are answered by events. Marks in a prompt steer one call, see `simulation`.
A call goes on, and is billed, when its caller hangs up, as it would at a provider.
"""

import argparse
import asyncio
import itertools
import math
import signal
import socket
import struct
import time
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
from aiohttp import web

from ..schemas.record import JsonObject
from .simulated_batch_http import BatchHttp, Refused
from .simulated_batches import BatchOptions, SimulatedBatches
from .simulated_bill import Bill, known, price
from .simulated_cache import Served, SimulatedCache, prompt_of_chat, prompt_of_messages, rules_of
from .simulated_forms import cohere_reply, completion, message
from .simulated_limits import Limits
from .simulated_responses import chat_of_responses, response
from .simulated_streams import STREAMS, error_event
from .simulation import UNBILLED_FAULTS, Asked, FaultRule, Faults, answer, asked_of_chat, asked_of_cohere, asked_of_messages

JSON = "application/json"
_READERS = {"openai": asked_of_chat, "responses": asked_of_chat, "anthropic": asked_of_messages, "cohere": asked_of_cohere}
_WRITERS = {"openai": completion, "responses": response, "anthropic": message, "cohere": cohere_reply}
_ANSWER = {"openai": "choices", "responses": "output", "anthropic": "content", "cohere": "message"}
"""Where a reply holds what was said."""


@dataclass(slots=True)
class ServerOptions:
    """How the server behaves. Port 0 takes a free one."""

    port: int = 0
    host: str = "127.0.0.1"
    latency_s: float = 0.0
    drip_s: float = 1.0
    limits: Limits = field(default_factory=Limits)
    bill: Path | None = None
    answers: Mapping[str, str] = field(default_factory=dict)
    seed: int = 0
    api_key: str | None = None
    """Calls with another key are refused (401); None: any key will do."""
    batches: BatchOptions = field(default_factory=BatchOptions)
    streams: bool = True
    """False: whole replies, whatever was asked for, as some servers give them."""


class SimulatedServer:
    """`async with SimulatedServer(options) as server:` and then `server.url`."""

    def __init__(self, options: ServerOptions | None = None) -> None:
        self.options = options or ServerOptions()
        self.faults = Faults(self.options.seed)
        self.bill = Bill(self.options.bill)
        self.cache = SimulatedCache()
        self.batches = BatchHttp(
            SimulatedBatches(self.bill, self.faults, self.options.batches, time.time, self.options.answers, cache=self.cache),
            self.faults,
            time.time,
        )
        self.in_flight = 0
        self.most_in_flight = 0
        self.most_open = 0
        """Calls of one key whose callers were there at once; those that a caller hung up on are in flight, and not open."""
        self.callers: defaultdict[str, set[asyncio.BaseTransport]] = defaultdict(set)
        """By key, the connections on which calls are made."""
        self.asked: Counter[str] = Counter()
        self._numbers = itertools.count(1)
        self._server: web.Server | None = None
        self._listener: asyncio.Server | None = None
        self._stopped = asyncio.Event()
        self.port = 0

    @property
    def url(self) -> str:
        """Without a version, as Anthropic's SDK wants it; OpenAI's wants `url + "/v1"`."""
        return f"http://{self.options.host}:{self.port}"

    async def __aenter__(self) -> "SimulatedServer":
        self._server = web.Server(self._handle, access_log=None)
        loop = asyncio.get_running_loop()
        self._listener = await loop.create_server(self._server, self.options.host, self.options.port, backlog=2048)
        self.port = self._listener.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._stopped.set()
        if self._listener is not None:
            self._listener.close()
        if self._server is not None:
            await self._server.shutdown(1.0)
        self.bill.close()

    # --- one request -------------------------------------------------------------------------------------------------

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        path = request.path
        if self.batches.handles(path):
            return await self._batch(request)
        if path.endswith("/chat/completions"):
            protocol = "openai"
        elif path.endswith("/responses"):
            protocol = "responses"
        elif path.endswith("/messages"):
            protocol = "anthropic"
        elif path.endswith("/v2/chat"):
            protocol = "cohere"
        else:
            return await self._control(request, path)
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        caller, callers = request.transport, self.callers[_key(request)]
        if caller is not None:
            self._opened(caller, callers)
        try:
            return await self._call(request, protocol)
        finally:
            self.in_flight -= 1
            if caller is not None:
                callers.discard(caller)

    def _opened(self, caller: asyncio.BaseTransport, callers: set[asyncio.BaseTransport]) -> None:
        callers.add(caller)
        if len(callers) > self.most_open:
            callers -= {other for other in callers if other.is_closing()}
            self.most_open = max(self.most_open, len(callers))

    async def _call(self, request: web.BaseRequest, protocol: str) -> web.StreamResponse:
        number = next(self._numbers)
        raw = await request.content.read()
        if not self._admitted(request):
            return _error(protocol, 401, "Incorrect API key provided", "invalid_api_key")
        try:
            body = orjson.loads(raw)
            model = body["model"]
            if not isinstance(model, str) or not known(model):
                return _error(protocol, 404, f"The model {str(model)[:80]!r} does not exist", "model_not_found")
            if protocol == "responses":
                body = {**chat_of_responses(body), "stream": body.get("stream")}
            asked = _READERS[protocol](model, body)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            return _error(protocol, 400, str(error), "invalid_request_error")
        wait = self.options.limits.take(_account(request, model), asked.input_tokens, asked.max_tokens or 0)
        if wait is not None:
            return _turned_away(protocol, wait, self.options.limits.headers(_account(request, model), protocol))
        try:
            served = self._served(protocol, model, body)
        except ValueError as error:
            return _error(protocol, 400, str(error), "invalid_request_error")
        stream = None
        if body.get("stream") and self.options.streams:
            stream = bool((body.get("stream_options") or {}).get("include_usage"))
        self.asked[protocol if stream is None else f"{protocol}, streamed"] += 1
        return await self._answer(request, protocol, asked, number, served, stream)

    def _served(self, protocol: str, model: str, body: JsonObject) -> Served:
        """Raises ValueError where its marks are not allowed."""
        if protocol == "cohere":
            return Served()  # it has no prompt cache
        prompt = prompt_of_messages(model, body) if protocol == "anthropic" else prompt_of_chat(model, body)
        return self.cache.begin(rules_of(model, protocol), prompt, time.time())

    async def _batch(self, request: web.BaseRequest) -> web.StreamResponse:
        protocol = "anthropic" if "messages" in request.path else "openai"
        if not self._admitted(request):
            return _error(protocol, 401, "Incorrect API key provided", "invalid_api_key")
        try:
            return await self.batches.handle(request)
        except Refused as refused:
            return _error(protocol, refused.status, str(refused), "refused")
        except ConnectionAbortedError:
            if request.transport is not None:
                request.transport.close()
            return web.Response(status=500)
        except (ValueError, KeyError, TypeError) as error:
            return _error(protocol, 400, repr(error), "invalid_request_error")

    def _admitted(self, request: web.BaseRequest) -> bool:
        key = self.options.api_key
        return key is None or request.headers.get("authorization") == f"Bearer {key}" or request.headers.get("x-api-key") == key

    async def _answer(
        self, request: web.BaseRequest, protocol: str, asked: Asked, number: int, served: Served, stream: bool | None
    ) -> web.StreamResponse:
        """`stream`: None where the whole reply is wanted, else whether its usage is."""
        fault = self.faults.pick(asked.text)
        if self.options.latency_s:
            await asyncio.sleep(self.options.latency_s)
        if fault is not None and fault.kind in UNBILLED_FAULTS:
            return await self._unbilled(protocol, fault)
        self.cache.began(served, time.time())
        made = answer(asked, self.options.answers)
        usage = served.usage(asked.input_tokens, made.output_tokens)
        request_id = f"req_{number:08d}"
        client_id = request.headers.get("x-client-request-id", "")
        await self.bill.add(asked.model, asked.text, request_id, client_id, usage, price(asked.model, usage, asked.tier))
        reply = _WRITERS[protocol](asked, made, request_id, usage)
        headers = {"request-id" if protocol == "anthropic" else "x-request-id": request_id}
        if self.options.limits.active:
            self.options.limits.produced(_account(request, asked.model), usage.output_tokens)
            headers |= self.options.limits.headers(_account(request, asked.model), protocol)
        if fault is not None:
            return await self._billed(request, protocol, fault, reply, headers, stream)
        if stream is not None:
            return await self._streamed(request, protocol, reply, headers, stream, "")
        return web.Response(body=orjson.dumps(reply), content_type=JSON, headers=headers)

    # --- faults ------------------------------------------------------------------------------------------------------

    async def _unbilled(self, protocol: str, fault: FaultRule) -> web.StreamResponse:
        if fault.kind == "hang":
            await self._stopped.wait()
            return web.Response(status=500)
        if fault.kind == "429":
            return _turned_away(protocol, fault.retry_after, {})
        status = int(fault.kind.partition("-")[0])
        return _error(protocol, status, "asked to fail", "rate_limit_exceeded" if status == 429 else "asked_to_fail")

    async def _billed(
        self, request: web.BaseRequest, protocol: str, fault: FaultRule, reply: JsonObject, headers: dict[str, str], stream: bool | None
    ) -> web.StreamResponse:
        kind = fault.kind
        if kind == "billed-500" or (kind == "stream-error" and stream is None):
            return _error(protocol, 500, "asked to fail", "asked_to_fail")
        if kind in ("drop", "hang-billed"):
            if kind == "hang-billed":
                await self._stopped.wait()
            elif request.transport is not None:
                request.transport.close()
            return web.Response(status=500)
        if kind == "no-usage":
            del reply["usage"]
        elif kind == "wrong-model":
            reply["model"] = "another-model"
        elif kind == "no-choices":
            reply[_ANSWER[protocol]] = None
        if stream is not None:
            return await self._streamed(request, protocol, reply, headers, stream, kind)
        raw = orjson.dumps(reply)
        if kind in ("reset", "drip"):
            return await self._in_pieces(request, raw, headers, kind)
        return web.Response(body=raw[: len(raw) // 2] if kind == "truncated" else raw, content_type=JSON, headers=headers)

    async def _in_pieces(self, request: web.BaseRequest, raw: bytes, headers: dict[str, str], kind: str) -> web.StreamResponse:
        response = web.StreamResponse(headers={**headers, "Content-Type": JSON, "Content-Length": str(len(raw))})
        await response.prepare(request)
        half = len(raw) // 2
        await response.write(raw[:half])
        if kind == "reset":
            _reset(request)
            return response
        for start in range(half, len(raw), 64):
            await asyncio.sleep(self.options.drip_s * 64 / (len(raw) - half))
            await response.write(raw[start : start + 64])
        return response

    async def _streamed(
        self, request: web.BaseRequest, protocol: str, reply: JsonObject, headers: dict[str, str], with_usage: bool, kind: str
    ) -> web.StreamResponse:
        events = list(STREAMS[protocol](reply, with_usage))
        response = web.StreamResponse(headers={**headers, "Content-Type": "text/event-stream; charset=utf-8"})
        await response.prepare(request)
        cut = len(events) // 2 if kind in ("reset", "truncated", "stream-error") else len(events)
        for event in events[:cut]:
            if kind == "drip":
                await asyncio.sleep(self.options.drip_s / len(events))
            await response.write(event)
        if kind == "stream-error":
            await response.write(error_event(protocol))
        elif kind == "reset":
            _reset(request)
        return response

    # --- control -----------------------------------------------------------------------------------------------------

    async def _control(self, request: web.BaseRequest, path: str) -> web.StreamResponse:
        if path == "/_bill":
            return _json(self.summary())
        if path == "/_reset" and request.method == "POST":
            self.bill.clear()
            self.asked.clear()
            self.faults.clear()
            self.cache.clear()
            self.options.limits.clear()
            return _json({"reset": True})
        if path == "/_faults" and request.method == "DELETE":
            self.faults.clear()
            return _json({"faults": 0})
        if path == "/_faults" and request.method == "POST":
            try:
                self.faults.add(FaultRule(**orjson.loads(await request.content.read())))
            except (TypeError, ValueError) as error:
                return _json({"error": str(error)}, 400)
            return _json({"faults": len(self.faults.rules)})
        if path.endswith("/models"):
            return _json({"object": "list", "data": [{"id": n, "object": "model"} for n in ("sim-economy", "sim-standard", "sim-premium")]})
        return _json({"error": {"message": f"there is nothing at {path}", "code": "not_found"}}, 404)

    def summary(self) -> dict[str, Any]:
        """The bill, and what the server saw."""
        limits = self.options.limits
        counted = {"admitted": limits.admitted, "counted_tokens": limits.counted_tokens, "refused_429": limits.refused}
        return {**self.bill.summary(), **counted, "asked": dict(self.asked), "most_in_flight": self.most_in_flight,
                "most_open": self.most_open}  # fmt: skip


def _account(request: web.BaseRequest, model: str) -> str:
    """Whose limits a call counts against: those of its model with its key."""
    return f"{model} {_key(request)}"


def _key(request: web.BaseRequest) -> str:
    return request.headers.get("authorization") or request.headers.get("x-api-key") or ""


def _json(body: Any, status: int = 200) -> web.Response:
    return web.Response(body=orjson.dumps(body), content_type=JSON, status=status)


def _error(protocol: str, status: int, words: str, code: str, headers: Mapping[str, str] | None = None) -> web.Response:
    if protocol == "cohere":
        return web.Response(body=orjson.dumps({"message": words, "id": code}), content_type=JSON, status=status, headers=headers)
    error = {"message": words, "type": code, "param": None, "code": code} if protocol != "anthropic" else {"type": code, "message": words}
    body = {"error": error} if protocol != "anthropic" else {"type": "error", "error": error}
    return web.Response(body=orjson.dumps(body), content_type=JSON, status=status, headers=headers)


def _turned_away(protocol: str, wait: float, headers: dict[str, str]) -> web.Response:
    said = {"Retry-After": str(math.ceil(wait))} | (
        {"retry-after-ms": str(math.ceil(wait * 1000))} if protocol in ("openai", "responses") else {}
    )
    code = "rate_limit_exceeded" if protocol in ("openai", "responses") else "rate_limit_error"
    return _error(protocol, 429, "Rate limit reached", code, {**headers, **said})


def _reset(request: web.BaseRequest) -> None:
    """Ends the connection with RST in place of FIN."""
    if request.transport is not None:
        connection: socket.socket = request.transport.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        request.transport.abort()


# --- command line ----------------------------------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="simulated_server", description="A provider that answers, bills, limits and fails on demand.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=9999)
    parser.add_argument("--latency-ms", type=float, default=0.0)
    parser.add_argument("--rpm", type=float, help="requests per minute and model")
    parser.add_argument("--tpm", type=float, help="tokens per minute and model, counted as OpenAI does")
    parser.add_argument("--itpm", type=float, help="input tokens per minute and model, as Anthropic counts")
    parser.add_argument("--otpm", type=float, help="output tokens per minute and model, as Anthropic counts")
    parser.add_argument("--burst-s", type=float, default=1.0, help="seconds' worth of a limit that may come at once")
    parser.add_argument("--bill", type=Path, help="a file that gets one JSON line per billed call, on disk before the reply")
    parser.add_argument("--answers", type=Path, help="a JSON object: known answers by last user message")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch-s", type=float, default=0.0, help="how long a batch takes")
    parser.add_argument("--batch-window-s", type=float, default=86_400.0, help="after which its rows expire")
    parser.add_argument("--api-key", help="refuse calls with another key")
    return parser


async def serve(options: ServerOptions) -> None:
    """Serves until SIGINT or SIGTERM."""
    done = asyncio.Event()
    for name in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(name, done.set)
    async with SimulatedServer(options) as server:
        print(f"simulated provider at {server.url} (OpenAI: {server.url}/v1)", flush=True)
        await done.wait()
        print(orjson.dumps(server.summary()).decode(), flush=True)


def main() -> None:
    import uvloop

    given = _parser().parse_args()
    answers = orjson.loads(given.answers.read_bytes()) if given.answers else {}
    limits = Limits(given.rpm, given.tpm, given.itpm, given.otpm, given.burst_s)
    uvloop.run(
        serve(
            ServerOptions(
                given.port, given.host, given.latency_ms / 1000, limits=limits, bill=given.bill,
                answers=answers, seed=given.seed, api_key=given.api_key,
                batches=BatchOptions(given.batch_s, given.batch_window_s),
            )
        )
    )  # fmt: skip


if __name__ == "__main__":
    main()

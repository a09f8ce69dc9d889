"""The batch and file APIs of the simulated server: OpenAI's `/v1/files` and `/v1/batches`, Anthropic's `/v1/messages/batches`.

Faults of a submission are rules whose `match` is part of `[batch submit]`: a status turns it away, `drop` and `billed-500`
begin the batch and lose the answer.
"""

import secrets
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import orjson
from aiohttp import BodyPartReader, MultipartReader, web

from ..schemas.record import JsonObject
from .simulated_batches import Result, SimulatedBatch, SimulatedBatches
from .simulation import STATUS_FAULTS, Faults

SUBMIT = "[batch submit]"
MOST_LISTED = 100
LIMITS = {"openai": (50_000, 200_000_000), "anthropic": (100_000, 256_000_000)}
"""Rows and bytes."""
ENDPOINTS = ("/v1/chat/completions", "/v1/responses")

_NO_ROOM = {"code": "token_limit_exceeded", "message": "Enqueued token limit reached. Please try again later.", "line": None, "param": None}


@dataclass(slots=True)
class _File:
    name: str
    data: bytes
    created_s: float
    purpose: str = "batch"


class Refused(Exception):
    """To be answered with a status and words."""

    def __init__(self, status: int, words: str) -> None:
        super().__init__(words)
        self.status = status


@dataclass(slots=True)
class BatchHttp:
    """Both protocols in front of one store."""

    batches: SimulatedBatches
    faults: Faults
    clock: Callable[[], float]
    files: dict[str, _File] = field(default_factory=dict)
    _origin: str = ""

    def handles(self, path: str) -> bool:
        parts = path.strip("/").split("/")
        return "batches" in parts[-3:] or "files" in parts[-3:]

    async def handle(self, request: web.BaseRequest) -> web.Response:
        """The reply. Raises `Refused`; `ConnectionAbortedError` where the connection is to be dropped."""
        path = request.path.strip("/").split("/")
        self._origin = str(request.url.origin())
        if "messages" in path:
            return await self._anthropic(request, path[path.index("batches") + 1 :])
        if "files" in path:
            return await self._files(request, path[path.index("files") + 1 :])
        return await self._openai(request, path[path.index("batches") + 1 :])

    # --- OpenAI ------------------------------------------------------------------------------------------------------

    async def _files(self, request: web.BaseRequest, rest: list[str]) -> web.Response:
        if not rest and request.method == "POST":
            return _json(await self._upload(request))
        if not rest:
            return _json(_page([self._file(i) for i in self.files]))
        found = self.files.get(rest[0])
        if found is None:
            raise Refused(404, f"No such File object: {rest[0]}")
        if request.method == "DELETE":
            del self.files[rest[0]]
            return _json({"id": rest[0], "object": "file", "deleted": True})
        if rest[1:] == ["content"]:
            return web.Response(body=found.data, content_type="application/octet-stream")
        return _json(self._file(rest[0]))

    async def _upload(self, request: web.BaseRequest) -> JsonObject:
        name, data, purpose = "", b"", ""
        reader = MultipartReader(request.headers, request.content)
        while (part := await reader.next()) is not None:
            if not isinstance(part, BodyPartReader):
                continue
            if part.name == "file":
                name, data = part.filename or "", bytes(await part.read())
            elif part.name == "purpose":
                purpose = await part.text()
        if purpose != "batch":
            raise Refused(400, f"purpose {purpose!r} is not served here")
        if len(data) > LIMITS["openai"][1]:
            raise Refused(400, "the file is too large")
        file_id = f"file-{secrets.token_hex(12)}"
        self.files[file_id] = _File(name, data, self.clock())
        return self._file(file_id)

    def _file(self, file_id: str) -> JsonObject:
        f = self.files[file_id]
        return {"id": file_id, "object": "file", "bytes": len(f.data), "created_at": int(f.created_s), "filename": f.name,
                "purpose": f.purpose, "status": "processed"}  # fmt: skip

    async def _openai(self, request: web.BaseRequest, rest: list[str]) -> web.Response:
        if not rest and request.method == "POST":
            return _json(await self._submitted(self._create_openai, orjson.loads(await request.content.read())))
        if not rest:
            found = self.batches.list("openai")
            return _json(await self._listed(found, request.query.get("after"), request.query.get("limit"), self._openai_form))
        batch = self._known(rest[0])
        if rest[1:] == ["cancel"]:
            self.batches.cancel(batch)
        return _json(await self._openai_form(batch))

    async def _submitted(self, create: Callable[[JsonObject], Awaitable[JsonObject]], body: JsonObject) -> JsonObject:
        fault = self.faults.pick(SUBMIT)
        kind = fault.kind if fault is not None else ""
        if kind in STATUS_FAULTS:
            raise Refused(int(kind), "asked to fail")
        made = await create(body)
        if kind == "drop":
            raise ConnectionAbortedError
        if kind == "billed-500":
            raise Refused(500, "asked to fail")
        return made

    async def _create_openai(self, body: JsonObject) -> JsonObject:
        file = self.files.get(body.get("input_file_id", ""))
        if file is None:
            raise Refused(400, "input_file_id names no file")
        if body.get("completion_window") != "24h" or body.get("endpoint") not in ENDPOINTS:
            raise Refused(400, f"completion_window is 24h, endpoint one of {', '.join(ENDPOINTS)}")
        lines = [orjson.loads(line) for line in file.data.splitlines() if line]
        if len(lines) > LIMITS["openai"][0]:
            raise Refused(400, "the file has too many lines")
        if any(line["url"] != body["endpoint"] for line in lines):
            raise Refused(400, "the url of a line is not the endpoint of the batch")
        rows = [(str(line["custom_id"]), line["body"]) for line in lines]
        return await self._openai_form(self._create("openai", rows, body.get("metadata") or {}, body["input_file_id"]))

    def _create(self, protocol: Any, rows: list[tuple[str, JsonObject]], metadata: dict[str, str], file_id: str = "") -> SimulatedBatch:
        try:
            return self.batches.create(protocol, rows, metadata, file_id)
        except ValueError as error:
            raise Refused(400, str(error)) from None

    def _known(self, batch_id: str) -> SimulatedBatch:
        batch = self.batches.get(batch_id)
        if batch is None:
            raise Refused(404, f"no such batch: {batch_id}")
        return batch

    async def _openai_form(self, batch: SimulatedBatch) -> JsonObject:
        await self.batches.advance(batch)
        if batch.results and not batch.output_file_id:
            self._write_files(batch, batch.results)
        ends = [r.end for r in batch.results or ()]
        status = "in_progress" if batch.canceled_s is None else "cancelling"
        if batch.results is not None:
            status = "cancelled" if batch.canceled_s is not None else "expired" if "expired" in ends else "completed"
        if batch.crowded:
            status = "failed"
        failed = ends.count("errored")
        done = 0 if batch.crowded else ends.count("succeeded") if ends else self.batches.done(batch)
        endpoint = ENDPOINTS["input" in batch.rows[0][1]]
        return {
            "id": batch.id, "object": "batch", "endpoint": endpoint, "completion_window": "24h", "status": status,
            "created_at": int(batch.created_s), "expires_at": int(batch.created_s + self.batches.options.window_s),
            "input_file_id": batch.file_id, "output_file_id": batch.output_file_id or None, "error_file_id": batch.error_file_id or None,
            "errors": {"object": "list", "data": [_NO_ROOM]} if batch.crowded else None,
            "metadata": batch.metadata, "request_counts": {"total": len(batch.rows), "completed": done, "failed": failed},
        }  # fmt: skip

    def _write_files(self, batch: SimulatedBatch, results: list[Result]) -> None:
        good = [_openai_line(r) for r in results if r.end == "succeeded"]
        bad = [_openai_line(r) for r in results if r.end != "succeeded"]
        batch.output_file_id, batch.error_file_id = f"file-out-{batch.id}", f"file-err-{batch.id}" if bad else ""
        self.files[batch.output_file_id] = _File("output.jsonl", b"".join(good), self.clock(), "batch_output")
        if bad:
            self.files[batch.error_file_id] = _File("errors.jsonl", b"".join(bad), self.clock(), "batch_output")

    # --- Anthropic ---------------------------------------------------------------------------------------------------

    async def _anthropic(self, request: web.BaseRequest, rest: list[str]) -> web.Response:
        if not rest and request.method == "POST":
            return _json(await self._submitted(self._create_anthropic, orjson.loads(await request.content.read())))
        if not rest:
            found = self.batches.list("anthropic")
            return _json(await self._listed(found, request.query.get("after_id"), request.query.get("limit"), self._anthropic_form))
        batch = self._known(rest[0])
        if rest[1:] == ["results"]:
            return await self._results(batch)
        if rest[1:] == ["cancel"]:
            self.batches.cancel(batch)
        if request.method == "DELETE":
            if batch.results is None:
                raise Refused(400, "a batch that is worked on can't be deleted")
            self.batches.delete(batch)
            return _json({"id": batch.id, "type": "message_batch_deleted"})
        return _json(await self._anthropic_form(batch))

    async def _create_anthropic(self, body: JsonObject) -> JsonObject:
        rows = [(str(row["custom_id"]), row["params"]) for row in body.get("requests") or ()]
        if len(rows) > LIMITS["anthropic"][0]:
            raise Refused(413, "too many requests in one batch")
        return await self._anthropic_form(self._create("anthropic", rows, {}))

    async def _anthropic_form(self, batch: SimulatedBatch) -> JsonObject:
        await self.batches.advance(batch)
        counts = dict.fromkeys(("processing", "succeeded", "errored", "canceled", "expired"), 0)
        for result in batch.results or ():
            counts[result.end] += 1
        if batch.results is None:
            counts["processing"] = len(batch.rows)
        working = "in_progress" if batch.canceled_s is None else "canceling"
        return {
            "id": batch.id, "type": "message_batch", "processing_status": working if batch.results is None else "ended",
            "request_counts": counts, "created_at": _moment(batch.created_s), "archived_at": None,
            "expires_at": _moment(batch.created_s + self.batches.options.window_s),
            "ended_at": None if batch.ended_s is None else _moment(batch.ended_s),
            "cancel_initiated_at": None if batch.canceled_s is None else _moment(batch.canceled_s),
            "results_url": None if batch.results is None else f"{self._origin}/v1/messages/batches/{batch.id}/results",
        }  # fmt: skip

    async def _results(self, batch: SimulatedBatch) -> web.Response:
        await self.batches.advance(batch)
        if batch.results is None:
            raise Refused(404, "the batch has not ended")
        # Not in the order of the requests, as the real one warns.
        data = b"".join(_anthropic_line(r) for r in reversed(batch.results))
        return web.Response(body=data, content_type="application/x-jsonl")

    # --- both --------------------------------------------------------------------------------------------------------

    async def _listed(
        self, found: list[SimulatedBatch], after: str | None, limit: str | None, form: Callable[[SimulatedBatch], Awaitable[JsonObject]]
    ) -> JsonObject:
        ids = [batch.id for batch in found]
        start = ids.index(after) + 1 if after in ids else 0
        most = min(int(limit or 20), MOST_LISTED)
        page = _page([await form(batch) for batch in found[start : start + most]])
        return {**page, "has_more": start + most < len(found)}


def _openai_line(result: Result) -> bytes:
    line: JsonObject = {"id": f"batch_{result.request_id}", "custom_id": result.custom_id, "response": None, "error": None}
    if result.reply is not None:
        line["response"] = {"status_code": result.status, "request_id": result.request_id, "body": result.reply}
    else:
        code = "batch_expired" if result.end == "expired" else "batch_cancelled"
        line["error"] = {"code": code, "message": "This request could not be executed in time."}
    return orjson.dumps(line) + b"\n"


def _anthropic_line(result: Result) -> bytes:
    outcome: JsonObject = {"type": result.end}
    if result.end == "succeeded":
        outcome["message"] = result.reply
    elif result.end == "errored":
        outcome["error"] = result.reply
    return orjson.dumps({"custom_id": result.custom_id, "result": outcome}) + b"\n"


def _page(data: list[JsonObject]) -> JsonObject:
    ids = [d["id"] for d in data]
    return {"object": "list", "data": data, "has_more": False, "first_id": ids[0] if ids else None, "last_id": ids[-1] if ids else None}


def _moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z")


def _json(body: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> web.Response:
    return web.Response(body=orjson.dumps(body), content_type="application/json", status=status, headers=headers)

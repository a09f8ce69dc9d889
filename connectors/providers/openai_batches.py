"""OpenAI's batches, on its official SDK: a file of lines goes up, a file of answers comes down."""

from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import orjson

from ...pipeline.errors import EngineError, Rejected, Unavailable
from ...pipeline.models import Api, Model
from ...pipeline.ports import BatchStatus, RowResult
from ...pipeline.provider_batch import BatchTraits
from .batch_errors import translated
from .chat_form import read_completion
from .failures import failure
from .openai import OPENAI_URL, OpenAIProvider
from .responses_form import read_response

TRAITS = BatchTraits(rows=50_000, file_bytes=200_000_000)
KEY = "engine_batch"
"""The name in `metadata` by which a batch is found again."""
QUEUE_FULL = "token_limit_exceeded"
"""More input tokens wait in batches of this model than the account may have there. It is said only after the batch was made."""
CLOCKS_S = 3600
"""Their clock and ours differ by less."""
FILE_LIVES_S = 3 * 86_400
"""Longer than any batch."""
ENDPOINTS: Mapping[Api, str] = {"chat": "/v1/chat/completions", "responses": "/v1/responses"}
_ENDED = frozenset({"completed", "expired", "cancelled"})


class OpenAIBatches:
    """Implements `BatchProvider`. Retries are off: a submission that nobody has booked could be paid twice."""

    def __init__(self, api_key: str | None, base_url: str = OPENAI_URL, *, traits: BatchTraits = TRAITS) -> None:
        from openai import AsyncOpenAI, OpenAIError

        self._client = AsyncOpenAI(api_key=api_key or "none", base_url=base_url, max_retries=0)
        self._error: type[Exception] = OpenAIError
        self._form = OpenAIProvider(api_key, base_url)
        self.traits = traits

    def line(self, model: Model, custom_id: str, body: Mapping[str, Any]) -> bytes:
        """See `BatchProvider.line`."""
        sent = self._form.request(model, {**body, "stream": None})
        # A batch is a tier of its own.
        sent.pop("service_tier", None)
        sent.pop("stream", None)
        return orjson.dumps({"custom_id": custom_id, "method": "POST", "url": ENDPOINTS[model.api], "body": sent})

    async def upload(self, key: str, path: Path) -> str:
        """See `BatchProvider.upload`."""
        async with translated("openai", self._error):
            with path.open("rb") as file:
                # Should nobody live to delete it, it goes by itself.
                made = await self._client.files.create(
                    file=(f"{key}.jsonl", file, "application/jsonl"),
                    purpose="batch",
                    expires_after={"anchor": "created_at", "seconds": FILE_LIVES_S},
                )
            return made.id

    async def create(self, key: str, file_id: str, path: Path, *, timeout: float) -> str:
        """See `BatchProvider.create`."""
        with path.open("rb") as file:
            endpoint = orjson.loads(file.readline())["url"]  # of all its lines: a file is of one model
        async with translated("openai", self._error, paid=True):
            made = await self._client.batches.create(
                input_file_id=file_id, endpoint=endpoint, completion_window="24h", metadata={KEY: key}, timeout=timeout
            )
            return made.id

    async def find(self, key: str, file_id: str, prepared_ms: int, rows: int) -> str | None:
        """See `BatchProvider.find`: by the key in its metadata."""
        async with translated("openai", self._error):
            async for batch in self._client.batches.list(limit=100):
                if (batch.metadata or {}).get(KEY) == key or (file_id and batch.input_file_id == file_id):
                    return batch.id
                if batch.created_at < prepared_ms // 1000 - CLOCKS_S:
                    return None
        return None

    async def status(self, batch_id: str) -> BatchStatus:
        """See `BatchProvider.status`."""
        async with translated("openai", self._error):
            batch = await self._client.batches.retrieve(batch_id)
        counts = batch.request_counts
        done, failed = (counts.completed, counts.failed) if counts is not None else (0, 0)
        if batch.status == "failed":
            errors = batch.errors.data if batch.errors and batch.errors.data else []
            said = "; ".join(str(e.message) for e in errors[:3])
            return BatchStatus("failed", done, failed, said or "no reason was given", full=any(e.code == QUEUE_FULL for e in errors))
        return BatchStatus("ended" if batch.status in _ENDED else "working", done, failed)

    async def results(self, model: Model, batch_id: str) -> AsyncIterator[RowResult]:
        """See `BatchProvider.results`."""
        async with translated("openai", self._error):
            batch = await self._client.batches.retrieve(batch_id)
        for file_id in (batch.output_file_id, batch.error_file_id):
            if file_id is not None:
                async for line in self._lines(file_id):
                    yield read_line(model, line)

    async def _lines(self, file_id: str) -> AsyncIterator[str]:
        async with translated("openai", self._error), self._client.files.with_streaming_response.content(file_id) as response:
            async for line in response.iter_lines():
                if line.strip():
                    yield line

    async def cancel(self, batch_id: str) -> None:
        """See `BatchProvider.cancel`."""
        async with translated("openai", self._error):
            await self._client.batches.cancel(batch_id)

    async def forget(self, batch_id: str, file_id: str) -> None:
        """See `BatchProvider.forget`: the batch itself stays listed, its files go."""
        files = [file_id]
        if batch_id:
            async with translated("openai", self._error):
                batch = await self._client.batches.retrieve(batch_id)
            files += [batch.input_file_id, batch.output_file_id or "", batch.error_file_id or ""]
        for name in dict.fromkeys(f for f in files if f):
            try:
                async with translated("openai", self._error):
                    await self._client.files.delete(name)
            except Rejected as gone:
                if gone.code != "model_not_found":  # as every 404 is called
                    raise

    async def close(self) -> None:
        await self._client.close()
        await self._form.close()


def read_line(model: Model, line: str) -> RowResult:
    """One line of an output or an error file. Raises `Unavailable` where it can't be read at all."""
    try:
        row = orjson.loads(line)
        custom_id, response, error = str(row["custom_id"]), row.get("response"), row.get("error")
    except (orjson.JSONDecodeError, KeyError, AttributeError, TypeError):
        raise Unavailable("a line of a batch's results can't be read; they are fetched again", code="unreadable_reply") from None
    if not isinstance(response, dict):
        said = error if isinstance(error, dict) else {}
        return RowResult(custom_id, Unavailable(f"openai did not work on the row: {said.get('message')}", code=str(said.get("code"))))
    status, body = response.get("status_code"), response.get("body")
    try:
        if status != 200 or not isinstance(body, dict):
            code = status if isinstance(status, int) and status >= 300 else 500
            raise failure("openai", "OPENAI_API_KEY", code, {}, orjson.dumps(body), 0.0)
        # By what it is: the model's setting may have been changed since the batch was made.
        read = read_response if body.get("object") == "response" else read_completion
        return RowResult(custom_id, read("openai", model.provider_model, body, str(response.get("request_id") or ""), None))
    except EngineError as meant:
        return RowResult(custom_id, meant)

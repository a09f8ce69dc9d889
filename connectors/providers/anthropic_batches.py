"""Anthropic's message batches, on its official SDK: all requests go up in one call, results come down as lines."""

import time
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import orjson

from ...pipeline.errors import EngineError, Rejected, Unavailable
from ...pipeline.models import Model
from ...pipeline.ports import BatchStatus, RowResult
from ...pipeline.provider_batch import BatchTraits
from .anthropic import ANTHROPIC_URL, read_reply
from .anthropic_form import to_messages
from .batch_errors import translated

TRAITS = BatchTraits(rows=100_000, file_bytes=256_000_000)
CLOCKS_MS = 300_000
"""Their clock and ours differ by less."""


class AnthropicBatches:
    """Implements `BatchProvider`. Batches carry no metadata here: a lost one is known by the custom_ids of its results."""

    def __init__(self, api_key: str | None, base_url: str = ANTHROPIC_URL, *, traits: BatchTraits = TRAITS) -> None:
        from anthropic import AnthropicError, AsyncAnthropic

        self._client = AsyncAnthropic(api_key=api_key or "none", base_url=base_url.removesuffix("/").removesuffix("/v1"), max_retries=0)
        self._error: type[Exception] = AnthropicError
        self.traits = traits

    def line(self, model: Model, custom_id: str, body: Mapping[str, Any]) -> bytes:
        """See `BatchProvider.line`."""
        params = to_messages(model, dict(body))
        # A batch is a tier of its own.
        params.pop("service_tier", None)
        return orjson.dumps({"custom_id": custom_id, "params": params})

    async def upload(self, key: str, path: Path) -> str:
        """The requests travel with `create`."""
        return ""

    async def create(self, key: str, file_id: str, path: Path, *, timeout: float) -> str:
        """See `BatchProvider.create`."""
        with path.open("rb") as file:
            requests: list[Any] = [orjson.loads(line) for line in file]
        async with translated("anthropic", self._error, paid=True):
            made = await self._client.messages.batches.create(requests=requests, timeout=timeout)
            return made.id

    async def find(self, key: str, file_id: str, prepared_ms: int, rows: int) -> str | None:
        """See `BatchProvider.find`: only the results name the custom_ids, so one that is worked on can't be told yet."""
        working = False
        async with translated("anthropic", self._error):
            async for batch in self._client.messages.batches.list(limit=100):
                if batch.created_at.timestamp() * 1000 < prepared_ms - CLOCKS_MS:
                    break
                counts = batch.request_counts
                if sum((counts.processing, counts.succeeded, counts.errored, counts.canceled, counts.expired)) != rows:
                    continue
                if batch.processing_status != "ended":
                    working = True
                elif await self._is(batch.id, key):
                    return batch.id
        if working:
            raise Unavailable("a batch that may be the lost one is still worked on: its rows are known when it ends")
        return None

    async def _is(self, batch_id: str, key: str) -> bool:
        async for row in await self._client.messages.batches.results(batch_id):
            return row.custom_id.rpartition("-")[0] == key
        return False

    async def status(self, batch_id: str) -> BatchStatus:
        """See `BatchProvider.status`; nothing is counted before the end."""
        async with translated("anthropic", self._error):
            batch = await self._client.messages.batches.retrieve(batch_id)
        counts = batch.request_counts
        return BatchStatus("ended" if batch.processing_status == "ended" else "working", counts.succeeded, counts.errored)

    async def results(self, model: Model, batch_id: str) -> AsyncIterator[RowResult]:
        """See `BatchProvider.results`."""
        async with translated("anthropic", self._error):
            async for row in await self._client.messages.batches.results(batch_id):
                yield read_row(model, row.custom_id, row.result.to_dict())

    async def cancel(self, batch_id: str) -> None:
        """See `BatchProvider.cancel`."""
        async with translated("anthropic", self._error):
            await self._client.messages.batches.cancel(batch_id)

    async def forget(self, batch_id: str, file_id: str) -> None:
        """See `BatchProvider.forget`."""
        if not batch_id:
            return
        try:
            async with translated("anthropic", self._error):
                await self._client.messages.batches.delete(batch_id)
        except Rejected as gone:
            if gone.code != "model_not_found":  # as every 404 is called
                raise

    async def close(self) -> None:
        await self._client.close()


def read_row(model: Model, custom_id: str, result: Mapping[str, Any]) -> RowResult:
    """One result. Only those that succeeded are billed."""
    kind = result.get("type")
    if kind == "succeeded":
        message = dict(result["message"])
        try:
            return RowResult(custom_id, read_reply(model, {}, message, str(message.get("id") or ""), int(time.time())))
        except EngineError as meant:
            return RowResult(custom_id, meant)
    error = (result.get("error") or {}).get("error") or {}
    said = f"anthropic: {error.get('type') or kind}: {str(error.get('message') or 'the row was not worked on')[:400]}; nothing was billed"
    if kind == "errored" and error.get("type") == "invalid_request_error":
        return RowResult(custom_id, Rejected(said, code="provider_rejected"))
    return RowResult(custom_id, Unavailable(said, code=f"batch_{kind}"))

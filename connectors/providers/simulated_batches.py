"""The in-process simulated provider's batches: kept in a folder, so that they outlive the worker that began them."""

from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import orjson

from ...pipeline.errors import EngineError, Rejected, Unavailable
from ...pipeline.models import Model
from ...pipeline.ports import BatchStatus, RowResult
from ...pipeline.provider_batch import BatchTraits
from ..simulated_batches import SimulatedBatch, SimulatedBatches
from .chat_form import read_completion
from .failures import failure

KEY = "engine_batch"


def traits_of(turnaround_s: float) -> BatchTraits:
    """Everything as with a real provider, only sooner."""
    return BatchTraits(
        rows=50_000, file_bytes=200_000_000, turnaround_s=max(turnaround_s, 1.0), gather_s=1.0, longest_gather_s=20.0, poll_s=0.5,
        longest_poll_s=5.0, cancel_s=1.0, fallback_s=30.0, settle_s=0.0,
    )  # fmt: skip


class SimulatedBatchProvider:
    """Implements `BatchProvider` on the simulation itself."""

    def __init__(self, store: SimulatedBatches, traits: BatchTraits) -> None:
        self._store = store
        self.traits = traits

    def line(self, model: Model, custom_id: str, body: Mapping[str, Any]) -> bytes:
        """See `BatchProvider.line`."""
        return orjson.dumps({"custom_id": custom_id, "body": {**body, "model": model.provider_model}})

    async def upload(self, key: str, path: Path) -> str:
        """The rows travel with `create`."""
        return ""

    async def create(self, key: str, file_id: str, path: Path, *, timeout: float) -> str:
        """See `BatchProvider.create`."""
        with path.open("rb") as file:
            rows = [(line["custom_id"], line["body"]) for line in map(orjson.loads, file)]
        try:
            return self._store.create("openai", rows, {KEY: key}).id
        except ValueError as error:
            raise Rejected(f"simulated refused the batch ({error}); nothing was billed", code="provider_rejected") from None

    async def find(self, key: str, file_id: str, prepared_ms: int, rows: int) -> str | None:
        """See `BatchProvider.find`."""
        return next((b.id for b in self._store.list("openai") if b.metadata.get(KEY) == key), None)

    async def status(self, batch_id: str) -> BatchStatus:
        """See `BatchProvider.status`."""
        batch = await self._batch(batch_id)
        if batch.crowded:
            return BatchStatus("failed", message="there is no room in the queue", full=True)
        errors = sum(r.end == "errored" for r in batch.results or ())
        return BatchStatus("working" if batch.results is None else "ended", self._store.done(batch) - errors, errors)

    async def _batch(self, batch_id: str) -> SimulatedBatch:
        batch = self._store.get(batch_id)
        if batch is None:
            raise Rejected(f"simulated knows no batch {batch_id}", code="model_not_found")
        await self._store.advance(batch)
        return batch

    async def results(self, model: Model, batch_id: str) -> AsyncIterator[RowResult]:
        """See `BatchProvider.results`."""
        for row in (await self._batch(batch_id)).results or ():
            try:
                if row.reply is None:
                    raise Unavailable(f"simulated did not work on the row ({row.end})", code=f"batch_{row.end}")
                if row.status != 200:
                    raise failure("simulated", "", row.status, {}, orjson.dumps(row.reply), 0.0)
                yield RowResult(row.custom_id, read_completion("simulated", model.provider_model, row.reply, row.request_id, None))
            except EngineError as meant:
                yield RowResult(row.custom_id, meant)

    async def cancel(self, batch_id: str) -> None:
        """See `BatchProvider.cancel`."""
        self._store.cancel(await self._batch(batch_id))

    async def forget(self, batch_id: str, file_id: str) -> None:
        """See `BatchProvider.forget`."""
        batch = self._store.get(batch_id)
        if batch is not None:
            self._store.delete(batch)

    async def close(self) -> None:
        """Nothing is held."""

"""A worker as the command starts it, with shorter group timings and, on request, parts that are broken.

    python -m tests.faults.worker STATE_FILE     settings from the environment, as for `inference-engine worker`

FAULT_CLOCK_OFFSET_MS: its clock is wrong by so much; SIGUSR1 sets it an hour ahead, behind, right.
FAULT_INDEX: `hash` switches the semantic tier on, with vectors of hashed words; `missing`, `failing` and `dimension` do the same with an
index that can't be made, asked, or written to, `slow` with one that takes its time.
FAULT_STUCK: requests with this word get stuck at the door. FAULT_RECOVERY: its partitions never become ready.
"""

import asyncio
import os
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from inference_engine.agents import compose, worker
from inference_engine.agents.ingest import IngestStage
from inference_engine.agents.names import app_id
from inference_engine.agents.safe import Delivered, SafeApp, create_app
from inference_engine.agents.settings import load_settings
from inference_engine.connectors.data_folder import DataFolder
from inference_engine.connectors.embedder import FoundEmbedder, HashEmbedder
from inference_engine.connectors.qdrant import QdrantEdgeIndex
from inference_engine.connectors.state_file import remove_state, write_state
from inference_engine.connectors.vector_index import BruteForceIndex
from inference_engine.pipeline.errors import Unavailable
from inference_engine.pipeline.ports import Neighbour, Point, VectorIndex, Vectors

HOUR_MS = 3_600_000
JUMPS = (0, HOUR_MS, -HOUR_MS)
offset_ms = int(os.environ.get("FAULT_CLOCK_OFFSET_MS", "0"))
INDEX = os.environ.get("FAULT_INDEX", "")
HANGS = bool(os.environ.get("FAULT_RECOVERY"))
STUCK = os.environ.get("FAULT_STUCK", "").encode()
SESSION_S = 6.0


def wrong_clock() -> int:
    return time.time_ns() // 1_000_000 + offset_ms


def jump(*_: object) -> None:
    """The next of the wrong times."""
    global offset_ms
    offset_ms = JUMPS[(JUMPS.index(offset_ms) + 1) % len(JUMPS)]


class QuickWorker(worker.Worker):
    """Notices the death of others sooner than it would in production."""

    def _app(self) -> SafeApp:
        parts = self.parts
        return create_app(
            app_id(parts.topics),
            parts.brokers,
            parts.data_dir / "tables",
            store=parts.store,
            max_request_bytes=worker.MAX_RECORD_BYTES,
            session_timeout_s=SESSION_S,
            heartbeat_s=0.5,
            commit_interval_s=0.2,
        )


class StuckDoor(IngestStage):
    """Some requests never get through."""

    async def on_request(self, event: Delivered) -> None:
        if STUCK in (event.value or b""):
            await asyncio.Event().wait()
        await super().on_request(event)


class FailingIndex:
    """Can't be asked, nor written to."""

    def upsert(self, points: Sequence[Point]) -> None:
        raise Unavailable("the index of this test is down")

    def search(self, tenant: str, scope: str, queries: Vectors, limit: int) -> list[list[Neighbour]]:
        raise Unavailable("the index of this test is down")

    def delete(self, ids: Sequence[str]) -> None:
        raise Unavailable("the index of this test is down")

    def purge(self) -> int:
        raise Unavailable("the index of this test is down")

    def count(self) -> int:
        raise Unavailable("the index of this test is down")

    def close(self) -> None:
        """Nothing is held."""


class SlowIndex(BruteForceIndex):
    """Finds what it should, late."""

    def search(self, tenant: str, scope: str, queries: Vectors, limit: int) -> list[list[Neighbour]]:
        time.sleep(1.0)
        return super().search(tenant, scope, queries, limit)


async def hangs(*_: object) -> None:
    """What comes before the first event of a partition does not end."""
    await asyncio.Event().wait()


def broken_index(settings: Any, folder: Path, partition: int) -> VectorIndex:
    if INDEX == "missing":
        raise Unavailable("the index of this test can't be made")
    if INDEX == "failing":
        return FailingIndex()
    if INDEX == "slow":
        return SlowIndex(settings.caching.embedding_dimension)
    return QdrantEdgeIndex.recreate(folder / "vectors" / str(partition), settings.caching.embedding_dimension + 1)


def break_parts() -> None:
    worker.now_ms = compose.now_ms = wrong_clock  # type: ignore[attr-defined]
    signal.signal(signal.SIGUSR1, jump)
    if HANGS:
        QuickWorker._assigned = hangs  # type: ignore[method-assign,assignment]
    if STUCK:
        worker.IngestStage = StuckDoor  # type: ignore[attr-defined]
    if INDEX:
        compose.embedder_of = lambda settings: FoundEmbedder(HashEmbedder(settings.caching.embedding_dimension), "")  # type: ignore[attr-defined]
    if INDEX not in ("", "hash"):
        compose._make_index = broken_index


async def run(state_file: Path) -> None:
    break_parts()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    settings = load_settings()
    parts = compose.compose(settings, DataFolder(settings.data_dir).child_data(state_file.stem))
    parts = replace(parts, ledger=replace(parts.ledger, take_again_s=SESSION_S + 2))

    def ready(port: int) -> None:
        write_state(state_file, port=port)

    try:
        await QuickWorker(parts).run(stop, on_ready=ready)
    finally:
        remove_state(state_file)


if __name__ == "__main__":
    asyncio.run(run(Path(sys.argv[1])))

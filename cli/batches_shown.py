"""The provider batches of the workers on this machine, as a run shows them while it waits."""

import threading
import urllib.request
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import orjson

from ..connectors.data_folder import DataFolder
from ..connectors.state_file import read_state
from .progress import Progress, Snapshot

EVERY_S = 3.0
TIMEOUT_S = 5.0

Look = Callable[[], Iterable[Mapping[str, Any]]]
"""What each worker says of itself."""


def workers_of(folder: DataFolder) -> Look:
    """Asks every worker whose state file lies in the folder; one that does not answer says nothing."""

    def look() -> Iterable[Mapping[str, Any]]:
        for path in sorted(Path(folder.root).glob("worker-*.json")):
            state = read_state(path)
            if state is None:
                continue
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{state.port}/health", timeout=TIMEOUT_S) as answer:
                    yield orjson.loads(answer.read())
            except (OSError, ValueError):
                continue

    return look


def said(health: Iterable[Mapping[str, Any]]) -> str:
    """One line, or nothing where there are no batches."""
    batches: list[Mapping[str, Any]] = []
    waiting = 0
    for worker in health:
        batches += worker.get("batches") or []
        waiting += worker.get("waiting_for_a_batch") or 0
    parts = []
    if batches:
        rows, done = sum(b["rows"] for b in batches), sum(b["done"] for b in batches)
        where = ", ".join(sorted({str(b["provider"]) for b in batches}))
        count = f"{len(batches):,} batches" if len(batches) > 1 else "1 batch"
        parts.append(f"{count} at {where}: {done:,} of {rows:,} rows done")
    if waiting:
        parts.append(f"{waiting:,} wait for a batch to be closed")
    return "; ".join(parts)


@dataclass(slots=True)
class WithBatches:
    """A progress that also says how far the batches are; it looks in a thread, since a worker may be slow to answer."""

    progress: Progress
    look: Look
    every_s: float = EVERY_S
    _text: str = ""
    _done: threading.Event = field(default_factory=threading.Event)

    def start(self) -> "WithBatches":
        threading.Thread(target=self._watch, name="batches", daemon=True).start()
        return self

    def _watch(self) -> None:
        while not self._done.wait(self.every_s):
            self._text = said(self.look())

    def update(self, snapshot: Snapshot, *, last: bool = False) -> None:
        self.progress.update(replace(snapshot, batches="" if last else self._text), last=last)

    def note(self, text: str) -> None:
        self.progress.note(text)

    def close(self) -> None:
        self._done.set()
        self.progress.close()

"""What the stages of the provider batches share."""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..pipeline.models import Model
from ..pipeline.ports import BatchProvider
from ..pipeline.prefix import Terms
from ..pipeline.provider_batch import ROWS_OF_A_RECORD, WayPrices
from ..schemas.record import JsonObject
from .attempt import CallParts
from .call import CallStage
from .ledger import OwnedLedger

AGAIN_S = 3600.0
"""A provider that refused a batch is asked for another one after so long."""
CROWDED_S = 60.0
"""A provider whose queue was full is asked again after so long, or as soon as a batch has left it."""
AT_ONCE = 128
"""Rows whose outcomes are written at once, and calls that are made one by one at once, of a partition."""


@dataclass(frozen=True, slots=True)
class BatchParts:
    """What the stage works with."""

    calls: CallParts
    stage: CallStage
    """Makes calls one by one where a batch is no way, or no way any more."""
    providers: Mapping[str, BatchProvider]
    """By provider."""
    prices: Callable[[Model, JsonObject], WayPrices]
    """Raises `Unpriced`."""
    cap: Callable[[Model, JsonObject], int]
    """The most that a row of a batch can cost now, in pico-dollars. Raises `Unpriced`."""
    new_key: Callable[[], str]
    """Letters and digits, 32 at most."""
    folder: Path
    """For the files on their way."""
    terms: Callable[[Model], Terms | None] = lambda _: None
    """Of a model's prompt cache at the prices of a batch; None: nothing is saved by it, or it is not to be used."""
    create_timeout_s: float = 300.0
    slack_s: float = 15.0
    """A preparation that took longer to commit is not submitted any more."""
    tick_s: float = 0.25
    """Between looks at what there is to do."""


@dataclass(slots=True)
class Provided:
    """How one provider's batches go at the moment."""

    took_s: float = 0.0
    """A running mean of how long they take; 0: none has ended yet."""
    closed_until_ms: int = 0
    """It turned batches away."""
    refused_until_ms: int = 0
    """It refused them: its rows are called for one by one."""
    most_rows: int | None = None
    """Of a file, and of its batches one at a time, since its queue was full; None: it was not."""

    def crowded(self, rows: int, now_ms: int) -> None:
        """A batch of so many rows found no room in its queue."""
        self.most_rows = max(1, rows // 2)
        self.closed_until_ms = now_ms + int(CROWDED_S * 1000)

    def ended(self) -> None:
        """A batch has left its queue."""
        if self.most_rows is not None:
            more = 2 * self.most_rows
            self.most_rows, self.closed_until_ms = (more if more < ROWS_OF_A_RECORD else None), 0

    def took(self, seconds: float) -> None:
        self.took_s = seconds if not self.took_s else self.took_s + 0.3 * (seconds - self.took_s)


@dataclass(slots=True, eq=False)
class Keeping:
    """One partition's batches while this worker owns it."""

    owned: OwnedLedger
    busy: set[str] = field(default_factory=set)
    """Flights that a task works on."""
    tended: set[str] = field(default_factory=set)
    """Batches that a task looks after."""
    tasks: set["asyncio.Task[None]"] = field(default_factory=set)
    left: set[str] = field(default_factory=set)
    """Flights that a previous owner was calling for one by one when it ended."""
    turns: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(AT_ONCE))
    shown: dict[str, dict[str, Any]] = field(default_factory=dict)
    """What people are told of each open batch."""

    def begin(self, work: Any, name: str) -> None:
        """Runs until it ends, or the partition goes."""
        task: asyncio.Task[None] = asyncio.create_task(work, name=name)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def end(self) -> None:
        for task in list(self.tasks):
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)

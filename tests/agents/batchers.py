"""Workers with provider batches, and the provider that outlives them: everything that a test of the batch lane needs."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import orjson

from inference_engine.agents import attempt, batch_file, batch_tend, provider_batch
from inference_engine.agents import call as call_stage
from inference_engine.agents.attempt import CallParts
from inference_engine.agents.batch_parts import BatchParts
from inference_engine.agents.provider_batch import BatchStage
from inference_engine.connectors.memory_ledger import MemoryFencedLog
from inference_engine.connectors.providers.simulated_batches import SimulatedBatchProvider
from inference_engine.connectors.simulated_batches import BatchOptions, SimulatedBatches
from inference_engine.connectors.simulated_bill import Bill as ProvidersBill
from inference_engine.connectors.simulation import Faults
from inference_engine.pipeline.errors import Ambiguous
from inference_engine.pipeline.models import Model, Prices
from inference_engine.pipeline.ports import BatchProvider, BatchStatus, RowResult
from inference_engine.pipeline.prefix import Terms
from inference_engine.pipeline.provider_batch import BatchTraits, WayPrices
from inference_engine.schemas.answers import Usage
from inference_engine.schemas.requests import Call

from ..pipeline.support import NOW
from .payers import Worker, World, call, make, now

HOUR = 3600
PRICES = Prices(input=Decimal(1), output=Decimal(4), batch_factor=Decimal("0.5"))
TRAITS = BatchTraits(rows=100, file_bytes=100_000, turnaround_s=HOUR, gather_s=10, longest_gather_s=60, poll_s=30, longest_poll_s=300,
                     cancel_s=600, fallback_s=300, settle_s=30)  # fmt: skip
BATCH_PRICE, SYNC_PRICE = 200, 400
POINTS = ("after_parked", "before_prepared", "after_prepared", "after_submit", "after_submitted", "in_collection", "after_collection",
          "after_forget")  # fmt: skip


class Crash(BaseException):
    """The process is dead."""


@dataclass
class Death:
    """Kills the worker at a named point, and says so."""

    point: str = ""
    passage: int = 1
    happened: asyncio.Event = field(default_factory=asyncio.Event)

    def __call__(self, point: str) -> None:
        if point == self.point:
            self.passage -= 1
            if self.passage == 0:
                self.happened.set()
                raise Crash(point)


@dataclass
class BatchWorld:
    """The ledger, the provider and what it was asked."""

    world: World
    folder: Path
    options: BatchOptions = field(default_factory=lambda: BatchOptions(turnaround_s=HOUR / 2))
    traits: BatchTraits = TRAITS
    bill: ProvidersBill = field(default_factory=ProvidersBill)
    faults: Faults = field(default_factory=Faults)
    created: list[tuple[float, str]] = field(default_factory=list)
    """(time, key) of each batch that reached the provider."""
    forgotten: list[str] = field(default_factory=list)
    lose_answers: int = 0
    """So many submissions reach the provider, and the answer does not come back."""
    lose_submits: int = 0
    """So many never reach it, and nobody is told."""
    refuse: list[Exception] = field(default_factory=list)
    prices: WayPrices = field(default_factory=lambda: WayPrices(sync=SYNC_PRICE, batch=BATCH_PRICE))
    terms: Terms | None = None
    """Of the model's prompt cache."""
    submitted: list[dict[str, Any]] = field(default_factory=list)
    """The rows of all files, as they were sent."""
    fence: Callable[[World], Any] = lambda world: MemoryFencedLog(world.topic)
    store: SimulatedBatches = field(init=False)

    def __post_init__(self) -> None:
        self.store = SimulatedBatches(self.bill, self.faults, self.options, lambda: now() / 1000, prices=lambda _: PRICES)

    @property
    def records(self) -> list[str]:
        return self.world.kinds()

    def paid_in_batches(self) -> int:
        return self.bill.calls

    def totals(self, worker: Worker) -> tuple[int, int, int]:
        found = worker.ledger.totals()[0]
        return found.certain, found.ambiguous, found.open


class Provided(SimulatedBatchProvider):
    """The provider as one worker sees it: once that is dead, nothing of it gets through."""

    def __init__(self, world: BatchWorld, death: Death) -> None:
        super().__init__(world.store, world.traits)
        self._w, self._death = world, death

    async def _alive(self) -> None:
        if self._death.happened.is_set():
            await asyncio.Event().wait()

    async def create(self, key: str, file_id: str, path: Path, *, timeout: float) -> str:
        await self._alive()
        if self._w.refuse:
            raise self._w.refuse.pop(0)
        if self._w.lose_submits:
            self._w.lose_submits -= 1
            raise Ambiguous("the connection broke")
        self._w.submitted += map(orjson.loads, path.read_bytes().splitlines())  # noqa: ASYNC240 - as small as a test's file is
        made = await super().create(key, file_id, path, timeout=timeout)
        self._w.created.append((asyncio.get_running_loop().time(), key))
        if self._w.lose_answers:
            self._w.lose_answers -= 1
            raise Ambiguous("the connection broke")
        return made

    async def status(self, batch_id: str) -> BatchStatus:
        await self._alive()
        return await super().status(batch_id)

    async def results(self, model: Model, batch_id: str) -> AsyncIterator[RowResult]:
        await self._alive()
        async for row in super().results(model, batch_id):
            yield row

    async def forget(self, batch_id: str, file_id: str) -> None:
        await self._alive()
        self._w.forgotten.append(batch_id)
        await super().forget(batch_id, file_id)


@dataclass
class BatchWorker:
    """One worker of that world."""

    worker: Worker
    batches: BatchStage
    death: Death

    async def run(self, *calls: Call) -> None:
        """Returns when every packet is acknowledged."""
        await asyncio.gather(*(self.worker.run(c) for c in calls))

    async def until(self, done: Callable[[], bool], within_s: float = 48 * HOUR) -> None:
        async with asyncio.timeout(within_s):
            while not done():  # noqa: ASYNC110 - in virtual time, and over all that there is
                await asyncio.sleep(5)

    async def crash(self) -> None:
        self.death.happened.set()
        for task in [*self.batches._keepers.values(), *self.batches._detached, *self.worker.tasks, *self.worker.stage._paying]:
            task.cancel()
        for keeping in list(self.batches._keepings.values()):
            await keeping.end()
        await asyncio.gather(*self.batches._keepers.values(), *self.batches._detached, return_exceptions=True)
        await self.worker.crash()


@asynccontextmanager
async def batch_worker(world: BatchWorld, monkeypatch: Any = None, *, point: str = "", passage: int = 1) -> AsyncIterator[BatchWorker]:
    """A worker that owns partition 0; with a `point` it dies there."""
    death = Death(point, passage)
    if monkeypatch is not None:
        for module in (attempt, batch_file, batch_tend, call_stage, provider_batch):
            monkeypatch.setattr(module, "crash_at", death)

    async def append(topic: str, key: bytes | None, value: bytes, *, partition: int | None = None) -> int:
        if death.happened.is_set():
            await asyncio.Event().wait()
        return await world.world.topic.append(topic, key, value, partition=partition)

    one = make(world.world, world.fence(world.world), world.world.topic, append, now)
    parts: CallParts = replace(one.stage.parts, price=price)
    one.stage.parts = parts
    providers: Mapping[str, BatchProvider] = {"simulated": Provided(world, death)}
    stage = BatchStage(
        BatchParts(parts, one.stage, providers, lambda _model, _body: world.prices, lambda _model, _body: 500,
                   new_key=lambda: f"k{next(world.world.epochs)}", folder=world.folder, terms=lambda _: world.terms,
                   create_timeout_s=60, slack_s=10, tick_s=5)
    )  # fmt: skip
    one.stage.batches = stage
    await one.ledger.assigned([0])
    await stage.assigned([0])
    feeding = asyncio.create_task(one.feed(every_s=5))
    me = BatchWorker(one, stage, death)
    try:
        yield me
    finally:
        await me.crash()
        feeding.cancel()


def price(_model: Model, _usage: Usage, tier: str, _ms: int) -> int:
    return BATCH_PRICE if tier == "batch" else SYNC_PRICE


def patient(custom_id: str = "r1", *, hours: float = 24, text: str = "", **more: Any) -> Call:
    """A call that has time."""
    made = call(custom_id, deadline_ms=NOW + int(hours * HOUR * 1000), **more)
    if not text:
        return made
    body = {**made.request.body, "messages": [{"role": "user", "content": text}]}
    return made.model_copy(update={"request": made.request.model_copy(update={"body": body})})

"""Workers that pay, a provider that keeps its own bill, and the topic between them."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from inference_engine.agents.attempt import CallParts, CallSettings
from inference_engine.agents.call import CallStage
from inference_engine.agents.ledger import LedgerSettings, LedgerStage
from inference_engine.agents.limits import Limits
from inference_engine.agents.packer import Append
from inference_engine.agents.prefix import PrefixRoom, TermsOf
from inference_engine.connectors.fenced_log import FencedAppend
from inference_engine.connectors.ledger_log import LedgerReader
from inference_engine.connectors.memory_ledger import MemoryFencedLog, MemoryLedgerTopic
from inference_engine.connectors.providers.accounts import keys_of
from inference_engine.pipeline.errors import Stale
from inference_engine.pipeline.flights import MemoryFlightIndex
from inference_engine.pipeline.ledger import OnAmbiguous
from inference_engine.pipeline.models import Catalogue, Model
from inference_engine.pipeline.ports import Begun, ProviderReply
from inference_engine.schemas import packets
from inference_engine.schemas.answers import Usage
from inference_engine.schemas.ledger import Completion, Failure, LedgerRecord
from inference_engine.schemas.record import JsonObject, Lane
from inference_engine.schemas.requests import Call, Request, Route

from ..pipeline.support import NOW, catalogue, identity, request

CAP, PRICE = 1_000, 400
REPLY = ProviderReply({"id": "c", "choices": []}, Usage(input_tokens=10, output_tokens=5), "stop", "p1")
Script = Callable[[Model, int], Awaitable[ProviderReply]]
"""(model, number of this call) -> reply, or an exception."""


async def answers_at_once(_model: Model, _number: int) -> ProviderReply:
    return REPLY


@dataclass
class Bill:
    """A provider: what reaches it is on its bill, unless it raises `Unavailable` or `Rejected`."""

    script: Script = answers_at_once
    calls: list[tuple[float, str, str]] = field(default_factory=list)
    """(time, model, attempt) in the order of arrival."""
    bodies: list[JsonObject] = field(default_factory=list)
    reached: asyncio.Event = field(default_factory=asyncio.Event)
    begins_s: float = 0.5
    """After which a streamed answer begins."""

    async def complete(
        self, model: Model, body: JsonObject, *, timeout: float, metadata: Mapping[str, str], begun: Begun | None = None
    ) -> ProviderReply:
        self.bodies.append(body)
        self.calls.append((asyncio.get_running_loop().time(), model.name, metadata["attempt"]))
        self.reached.set()
        if body.get("stream") and begun is not None:
            asyncio.get_running_loop().call_later(self.begins_s, begun)
        return await self.script(model, len(self.calls))

    async def close(self) -> None:
        return None


@dataclass
class World:
    """What outlives a worker."""

    topic: MemoryLedgerTopic = field(default_factory=MemoryLedgerTopic)
    provider: Bill = field(default_factory=Bill)
    models: Catalogue = field(default_factory=catalogue)
    cancelled: set[str] = field(default_factory=set)
    on_ambiguous: OnAmbiguous = "retry"
    tenants: dict[str, OnAmbiguous] = field(default_factory=dict)
    """Who wants it otherwise."""
    settings: CallSettings = field(default_factory=lambda: CallSettings(call_timeout_s=60, intent_slack_s=5))
    terms: TermsOf = lambda _model: None
    """Of the models' prompt caches."""
    permits: dict[Lane, int] = field(default_factory=lambda: dict.fromkeys(Lane, 64))
    epochs: Any = field(default_factory=itertools.count)
    reemitted: list[Completion | Failure] = field(default_factory=list)
    aborted: list[bytes] = field(default_factory=list)
    """Members of transactions that were rolled back."""

    def records(self, partition: int = 0) -> list[LedgerRecord]:
        return [record for packet in self.topic.packets.get(partition, ()) for record in packets.ledger.decode(packet)]

    def kinds(self) -> list[str]:
        return [record.type for record in self.records()]

    def limit(self, **limits: Any) -> None:
        self.models = Catalogue(tuple(replace(m, **limits) for m in self.models.models), self.models.default_premium)


def now() -> int:
    return NOW + int(asyncio.get_running_loop().time() * 1000)


@dataclass
class Worker:
    """One worker of that world; `crash` it, or leave its `with` block."""

    world: World
    ledger: LedgerStage
    stage: CallStage
    tasks: set[asyncio.Task[None]] = field(default_factory=set)
    current: bool = True

    def start(self, call: Call, lane: Lane = Lane.STANDARD) -> "asyncio.Task[None]":
        task = asyncio.create_task(self.stage.run(0, call, lane, lambda: self.current))
        self.tasks.add(task)
        return task

    async def run(self, call: Call, lane: Lane = Lane.STANDARD) -> None:
        await self.start(call, lane)

    async def feed(self, every_s: float = 0.1) -> None:
        """Reads the topic, as the respond stage does, forever."""
        offset = 0
        while True:
            if offset >= await self.world.topic.end(0):
                await asyncio.sleep(every_s)
                continue
            offset += 1
            try:
                for record in packets.ledger.decode(await self.world.topic.fetch(0, offset - 1)):
                    self.ledger.learn(0, offset - 1, record)
            except Stale:
                return

    async def crash(self) -> None:
        """Nothing is written any more; what was sent stays sent."""
        tasks = {*self.tasks, *self.stage._paying}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def make(
    world: World, fenced: FencedAppend, reader: LedgerReader, append: Append, time_ms: Callable[[], int], name: str = "ledger"
) -> Worker:
    ledger = LedgerStage(
        topic=name, fenced=fenced, reader=reader, append=append, index=lambda _: MemoryFlightIndex(), now=time_ms, sleep=asyncio.sleep,
        new_epoch=lambda: f"e{next(world.epochs)}", settings=LedgerSettings(),
    )  # fmt: skip

    async def reemit(_partition: int, record: Completion | Failure) -> None:
        world.reemitted.append(record)

    limits = Limits(world.permits, clock=asyncio.get_running_loop().time, keys=keys_of({"simulated": world.provider}))
    parts = CallParts(
        catalogue=world.models, providers={"simulated": world.provider}, ledger=ledger, limits=limits,
        cap=lambda _model, _body: CAP, price=lambda _model, _usage, _tier, _ms: PRICE, reemit=reemit,
        cancelled=lambda asked: asked.identity.custom_id in world.cancelled,
        on_ambiguous=lambda tenant: world.tenants.get(tenant, world.on_ambiguous), now=time_ms, sleep=asyncio.sleep,
        random=lambda: 0.5, settings=world.settings, prefixes=PrefixRoom(world.terms, enabled=True, remember=100, now=time_ms),
    )  # fmt: skip
    return Worker(world, ledger, CallStage(parts))


@asynccontextmanager
async def worker(world: World, *, fed: bool = False) -> AsyncIterator[Worker]:
    """A worker that owns partition 0 and has replayed it."""
    one = make(world, MemoryFencedLog(world.topic), world.topic, world.topic.append, now)
    await one.ledger.assigned([0])
    feeding = asyncio.create_task(one.feed()) if fed else None
    try:
        yield one
    finally:
        await one.crash()
        if feeding is not None:
            feeding.cancel()


def call(custom_id: str = "r1", *models: str, tenant: str = "t", **more: Any) -> Call:
    """`more`: other fields of the request."""
    asked: Request = request(f"question {custom_id}", who=identity(custom_id, tenant=tenant))
    return Call(request=asked.model_copy(update=more), route=Route(models=models or ("small",), reason="test"))

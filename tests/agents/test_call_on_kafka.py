"""The call stage on a real broker: fencing, replay and late answers are Kafka's own here."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest_asyncio
from aiokafka import AIOKafkaProducer

from inference_engine.agents.attempt import CallSettings
from inference_engine.connectors.fenced_log import FencedLog
from inference_engine.connectors.kafka_admin import create_topics
from inference_engine.connectors.ledger_log import LedgerLog
from inference_engine.pipeline.models import Model
from inference_engine.pipeline.ports import ProviderReply
from inference_engine.schemas import packets
from inference_engine.schemas.ledger import LedgerRecord
from inference_engine.schemas.topics import TopicSpec

from .payers import CAP, PRICE, REPLY, Bill, Worker, World, call, make


@dataclass
class Broker:
    """The real ledger topic."""

    brokers: str
    topic: str
    producer: AIOKafkaProducer

    async def append(self, topic: str, key: bytes | None, value: bytes, *, partition: int | None = None) -> int:
        return int((await self.producer.send_and_wait(topic, value, key, partition=partition)).offset)

    @asynccontextmanager
    async def worker(self, world: World) -> AsyncIterator[Worker]:
        fenced, reader = FencedLog(self.brokers, self.topic, f"{self.topic}-"), LedgerLog(self.brokers, self.topic)
        one = make(world, fenced, reader, self.append, lambda: time.time_ns() // 1_000_000, self.topic)
        await one.ledger.assigned([0])
        try:
            yield one
        finally:
            await one.crash()
            await fenced.close()
            await reader.close()

    async def records(self) -> list[LedgerRecord]:
        reader = LedgerLog(self.brokers, self.topic)
        return [record async for _, packet in reader.replay(0, 0) for record in packets.ledger.decode(packet)]


@pytest_asyncio.fixture
async def broker(kafka: str, topic_prefix: str) -> AsyncIterator[Broker]:
    topic = f"{topic_prefix}ledger"
    create_topics(kafka, [TopicSpec(topic, 1)])
    async with AIOKafkaProducer(bootstrap_servers=kafka, acks="all", enable_idempotence=True) as producer:
        yield Broker(kafka, topic, producer)


QUICK = CallSettings(call_timeout_s=1.0, intent_slack_s=1.0)


async def hangs(_model: Model, _number: int) -> ProviderReply:
    await asyncio.sleep(1e9)
    return REPLY


async def test_a_call_in_flight_at_a_crash_is_booked_paid_once_more_and_never_again(broker: Broker) -> None:
    world = World(provider=Bill(hangs), settings=QUICK)
    async with broker.worker(world) as old:
        old.start(call())
        await world.provider.reached.wait()
        for task in old.stage._paying:
            task.cancel()
        world.provider.script = Bill().script
        async with broker.worker(world) as new:
            await new.run(call())
            totals = new.ledger.totals()[0]
            assert (totals.certain, totals.ambiguous, totals.open) == (PRICE, CAP, 0)
        async with broker.worker(world) as third:
            await third.run(call())
            assert third.ledger.totals()[0] == totals
    assert [r.type for r in await broker.records()] == ["intent", "ambiguous", "intent", "completion"]
    assert len(world.provider.calls) == 2
    assert [r.type for r in world.reemitted] == ["completion"]


async def test_a_late_answer_of_a_fenced_worker_is_found_before_its_call_is_paid_again(broker: Broker) -> None:
    async def slow(_model: Model, _number: int) -> ProviderReply:
        await asyncio.sleep(0.8)
        return REPLY

    world = World(provider=Bill(slow), settings=QUICK)
    async with broker.worker(world) as old:
        old.start(call())
        await world.provider.reached.wait()
        # Nobody reads the topic for the new owner: it finds the answer when it looks before it pays.
        async with broker.worker(world) as new:
            await new.run(call())
    assert [r.type for r in await broker.records()] == ["intent", "completion"]
    assert len(world.provider.calls) == 1


async def test_many_calls_share_commits_and_each_is_paid_once(broker: Broker) -> None:
    world = World(settings=QUICK)
    async with broker.worker(world) as one:
        await asyncio.gather(*(one.run(call(f"r{i}")) for i in range(200)))
    records = await broker.records()
    assert sum(r.type == "completion" for r in records) == sum(r.type == "intent" for r in records) == len(world.provider.calls) == 200

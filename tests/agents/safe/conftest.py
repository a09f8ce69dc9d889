"""Workers inside the test's own loop, on topics of their own, and ways to end them."""

import asyncio
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic  # type: ignore[attr-defined]

from inference_engine.agents.safe import DeadLetter, Delivered, SafeApp, Turns, consume, create_app, run_app


async def until(condition: Callable[[], Any], what: str, timeout: float = 20.0) -> None:
    """Waits until `condition`, plain or async, holds: at most `timeout` seconds."""
    end = monotonic() + timeout
    while True:
        holds = condition()
        if inspect.isawaitable(holds):
            holds = await holds
        if holds:
            return
        if monotonic() > end:
            raise AssertionError(f"not reached within {timeout} s: {what}")
        await asyncio.sleep(0.02)


async def no_dead_letters(event: Delivered, dead: DeadLetter) -> None:
    raise AssertionError(f"{event} was given up: {dead}")


@dataclass
class Bench:
    """Topics and workers of one test, all under its own prefix."""

    brokers: str
    prefix: str
    folder: Path
    partitions: int = 4
    _ends: dict[int, tuple[asyncio.Event, "asyncio.Task[None]"]] = field(default_factory=dict)

    def topic(self, name: str) -> str:
        return f"{self.prefix}{name}"

    def create(self, *names: str, partitions: int | None = None, **config: str) -> None:
        """Creates topics by their short names; returns once they exist."""
        self.create_exactly(*(self.topic(name) for name in names), partitions=partitions, **config)

    def create_exactly(self, *names: str, partitions: int | None = None, **config: str) -> None:
        admin = AdminClient({"bootstrap.servers": self.brokers, "log_level": 2})
        settings = {key.replace("_", "."): value for key, value in config.items()}
        new = [NewTopic(name, partitions or self.partitions, 1, config=settings) for name in names]
        for created in admin.create_topics(new).values():
            created.result()

    def app(self, worker: str = "w1", **options: Any) -> SafeApp:
        """A worker of this test's one group, with a data folder of its own."""
        options = {"session_timeout_s": 6.0, "heartbeat_s": 0.2, "commit_interval_s": 0.2, "revoke_grace_s": 0.2, "drain_s": 3.0, **options}
        return create_app(self.topic("app"), [self.brokers], self.folder / worker, topic_prefix="", **options)

    def agent(
        self,
        app: SafeApp,
        topic: str,
        handle: Callable[[Delivered], Awaitable[None]],
        *,
        limit: int = 64,
        name: str = "",
        on_dead: Any = no_dead_letters,
        turns: Turns | None = None,
    ) -> None:
        """A named agent on one topic."""

        async def body(stream: Any) -> None:
            await consume(app, stream, handle, limit=limit, name=name or topic, on_dead=on_dead, turns=turns)

        app.agent(app.topic(self.topic(topic)), name=name or topic)(body)

    async def start(self, app: SafeApp, *, ready: bool = True) -> None:
        stop = asyncio.Event()
        task = asyncio.create_task(run_app(app, stop=stop))
        self._ends[id(app)] = (stop, task)
        if ready:
            waiting = asyncio.create_task(app.ready.wait())
            await asyncio.wait({waiting, task}, timeout=20, return_when=asyncio.FIRST_COMPLETED)
            waiting.cancel()
            if task.done():
                await task
            assert app.ready.is_set()

    async def stop(self, app: SafeApp) -> None:
        """The orderly end."""
        stop, task = self._ends.pop(id(app))
        stop.set()
        await task

    async def kill(self, app: SafeApp) -> None:
        """What a crash leaves: handlers die where they stand, nothing more is committed."""
        app.consumer_of_records.freeze()
        for intake in app.consumer_of_records.intakes:
            await intake.cancel()
        await self.stop(app)

    async def end_all(self) -> None:
        for stop, _ in self._ends.values():
            stop.set()
        await asyncio.gather(*(task for _, task in self._ends.values()), return_exceptions=True)

    @asynccontextmanager
    async def running(self, app: SafeApp) -> AsyncIterator[SafeApp]:
        await self.start(app)
        try:
            yield app
        finally:
            if id(app) in self._ends:
                await self.stop(app)

    async def feed(self, name: str, records: Sequence[tuple[bytes, bytes | None]], *, partition: int | None = None) -> None:
        """Appends records from outside of any worker."""
        producer = AIOKafkaProducer(bootstrap_servers=self.brokers, acks="all")
        await producer.start()
        try:
            sent = [await producer.send(name, value, key, partition) for key, value in records]
            await asyncio.gather(*sent)
        finally:
            await producer.stop()

    async def read(self, topic: str) -> list[Any]:
        """All records that lie on a topic now."""
        return await self.read_exactly(self.topic(topic))

    async def read_exactly(self, name: str) -> list[Any]:
        consumer = AIOKafkaConsumer(bootstrap_servers=self.brokers, auto_offset_reset="earliest", group_id=None)
        await consumer.start()
        try:
            tps = [TopicPartition(name, number) for number in range(self.partitions)]
            consumer.assign(tps)
            ends = await consumer.end_offsets(tps)
            await consumer.seek_to_beginning(*tps)
            found: list[Any] = []
            while any([await consumer.position(tp) < ends[tp] for tp in tps]):
                for records in (await consumer.getmany(timeout_ms=200)).values():
                    found.extend(records)
            return found
        finally:
            await consumer.stop()


async def fill(app: SafeApp, topic: str, ids: Iterable[int], *, partition: int | None = None) -> None:
    """Appends each id as a record of its own, key and value alike."""
    await asyncio.gather(*(app.append(topic, b"%d" % n, b"%d" % n, partition=partition) for n in ids))


@pytest.fixture
async def bench(kafka: str, topic_prefix: str, tmp_path: Path) -> AsyncIterator[Bench]:
    bench = Bench(kafka, topic_prefix, tmp_path)
    try:
        yield bench
    finally:
        await bench.end_all()

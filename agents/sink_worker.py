"""The sink process: from the `costs` topic into the cost store, which it owns and answers SQL for."""

import asyncio
import contextlib
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aiohttp import web
from aiokafka import TopicPartition
from aiokafka.errors import KafkaError
from pydantic import ValidationError

from ..connectors.clickhouse import ClickHouseStore, open_embedded, open_server
from ..connectors.data_folder import DataFolder
from ..connectors.state_file import remove_state, write_state
from ..pipeline.errors import ConfigError, Rejected
from ..schemas import packets
from ..schemas.costs import CostEvent
from ..schemas.topics import Topics
from .dead_letters import dead_letter_headers
from .safe import DeadLetter, Delivered, SafeApp, consume, create_app, run_app
from .sink import CostSink
from .sink_http import sink_app

PACKETS_AT_ONCE = 128
POLL_S = 0.02
FRESH_S = 5.0
DRAIN_S = 3.0
"""A batch that is being stored ends within this; where the store is down the rest is delivered again."""


@dataclass(frozen=True, slots=True)
class SinkOptions:
    """All that a sink process needs to know."""

    brokers: tuple[str, ...]
    """`host:port` each."""
    folder: DataFolder
    """The sink keeps to `folder.costs` and its own child's folder."""
    state_file: Path
    """Written when the sink is ready: `connectors.state_file.ChildState`."""
    prefix: str = ""
    """Of topics and consumer group."""
    clickhouse_url: str | None = None
    """A server in place of the engine in this process."""
    port: int = 0
    """Of the HTTP door on loopback; 0: any free one, see the state file."""

    @property
    def group(self) -> str:
        return f"{self.prefix}inference-engine-sink"


async def run_sink(options: SinkOptions, *, stop: asyncio.Event | None = None) -> None:
    """Runs until `stop` is set, or for ever. Writes `options.state_file` once costs are consumed and SQL is answered.

    Raises `ConfigError` where the embedded store can't be opened, the port is taken or the `costs` topic is missing. A ClickHouse
    server that is down is waited for: costs stay on their topic meanwhile.
    """
    stores = _LazyStore(options)
    try:
        if options.clickhouse_url is None:
            await asyncio.to_thread(stores.get)
        await _run(options, stores, stop or asyncio.Event())
    finally:
        await asyncio.to_thread(stores.close)


async def _run(options: SinkOptions, stores: "_LazyStore", stop: asyncio.Event) -> None:
    topics = Topics(options.prefix)
    sink = CostSink(stores.insert, max_packets=PACKETS_AT_ONCE)
    app = create_app(options.group, options.brokers, options.folder.child_data("sink"), store="memory", drain_s=DRAIN_S)
    bind_sink(app, topics, sink)
    progress = _Progress(app, topics.costs, sink)
    runner = web.AppRunner(sink_app(stores.get, progress.wait_for, progress.fresh, progress.health))
    try:
        port = await _listen(runner, options.port)
        announcing = asyncio.create_task(_announce(app, options.state_file, port))
        # Without its state file nobody finds this process: then it had better end.
        announcing.add_done_callback(lambda task: stop.set() if not task.cancelled() and task.exception() else None)
        try:
            await run_app(app, stop=stop)
        finally:
            announcing.cancel()
            outcome = (await asyncio.gather(announcing, return_exceptions=True))[0]
            remove_state(options.state_file)
        if isinstance(outcome, Exception):
            raise outcome
    finally:
        await sink.close()
        await runner.cleanup()


async def _listen(runner: web.AppRunner, port: int) -> int:
    """Opens the door on loopback; returns its port."""
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", port).start()
    except OSError as error:
        raise ConfigError(f"The sink can't listen on 127.0.0.1:{port} ({error}); no cost is lost. Choose another port, or 0.") from error
    return int(runner.addresses[0][1])


async def _announce(app: SafeApp, state_file: Path, port: int) -> None:
    await app.ready.wait()
    write_state(state_file, port=port)


def bind_sink(app: SafeApp, topics: Topics, sink: CostSink) -> None:
    """The named agent `sink`: a packet is released once all of its rows are durable."""

    async def handle(event: Delivered) -> None:
        try:
            rows = packets.costs.decode(event.value or b"")
        except ValidationError as error:
            raise DeadLetter(f"not a packet of cost events: {error.errors()[0]['msg']}", error_class="Rejected") from error
        try:
            await sink.add(rows)
        except Rejected as error:
            raise DeadLetter(str(error), error_class="Rejected") from error

    async def dead(event: Delivered, error: DeadLetter) -> None:
        await app.append(topics.dead_letters, event.key, event.value or b"", headers=dead_letter_headers(event, error))

    async def run(stream: Any) -> None:
        await consume(app, stream, handle, limit=PACKETS_AT_ONCE, name="sink", on_dead=dead)

    app.agent(app.topic(topics.costs), name="sink")(run)


class _Progress:
    """How far the topic is stored."""

    def __init__(self, app: SafeApp, topic: str, sink: CostSink) -> None:
        self._app = app
        self._topic = topic
        self._sink = sink

    def behind(self, ends: Mapping[int, int]) -> dict[int, int]:
        """Partitions that are not stored up to their end offset, with the offset that is reached."""
        reached = self._app.lowest_unfinished()
        offsets = {partition: reached.get(TopicPartition(self._topic, partition), 0) for partition in ends}
        return {partition: offset for partition, offset in offsets.items() if offset < ends[partition]}

    async def wait_for(self, ends: Mapping[int, int], timeout: float) -> dict[int, int]:
        """What is still behind after `timeout` seconds; empty as soon as nothing is."""
        deadline = time.monotonic() + timeout
        while (behind := self.behind(ends)) and time.monotonic() < deadline:
            self._sink.flush()
            # Positions are the consumer's own and announce nothing: they are looked at.
            await asyncio.sleep(POLL_S)
        return behind

    async def fresh(self) -> None:
        """Returns when what stood in the topic before is stored: whoever asks right after a job would miss its last half second. After
        `FRESH_S` the question is answered from what is there."""
        held = [tp for tp in self._app.lowest_unfinished() if tp.topic == self._topic]
        with contextlib.suppress(TimeoutError, KafkaError):
            async with asyncio.timeout(FRESH_S):
                ends = await self._app.consumer_of_records.highwaters(*held)
                await self.wait_for({tp.partition: end for tp, end in ends.items()}, FRESH_S)

    def health(self) -> dict[str, Any]:
        """Of `GET /health`."""
        return {
            "ready": self._app.ready.is_set(),
            "trouble": self._sink.trouble,
            "stored_rows": self._sink.stored_rows,
            "packets_in_flight": sum(self._app.in_flight().values()),
            "committed": {str(tp.partition): offset for tp, offset in self._app.committed().items()},
        }


class _LazyStore:
    """The store, opened on first use; where that fails, the next use tries again."""

    def __init__(self, options: SinkOptions) -> None:
        self._options = options
        self._lock = threading.Lock()
        self._store: ClickHouseStore | None = None

    def get(self) -> ClickHouseStore:
        """Raises `Unavailable` or `ConfigError`. Blocking."""
        with self._lock:
            if self._store is None:
                url = self._options.clickhouse_url
                self._store = open_server(url) if url else open_embedded(self._options.folder.costs)
            return self._store

    def insert(self, events: Sequence[CostEvent]) -> None:
        """As `CostStore.insert`."""
        self.get().insert(events)

    def close(self) -> None:
        with self._lock:
            if self._store is not None:
                self._store.close()
                self._store = None

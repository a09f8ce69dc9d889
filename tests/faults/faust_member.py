"""One agent twice, on Faust and on `agents/safe`, in a worker that is one of two in its group.

    python -m tests.faults.faust_member plain|safe BROKERS PREFIX FOLDER first|second start|long

The agent reads `NAME` (2 partitions) and writes what it read to `NAME-out`. Nothing is held in the `second` worker. In the first one:

`start`: where the group stands is told late. In the worker's first generation it is told when the second worker has already come
and, on Faust, just before the group goes on to the next one; in the second generation once the file `told` is there and, on Faust,
once the records have come. Nothing else is changed: each step is one that a slow broker or a full event loop can hold as long.
`long`: an event takes until the file `free` is there.

Files that tell the test how far the worker is: `asked`, `begun`, `rounds`.
"""

import asyncio
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import faust
from aiokafka import AIOKafkaConsumer
from faust.transport.drivers import aiokafka as driver

from inference_engine.agents.safe import DeadLetter, Delivered, SafeApp, consume, create_app, run_app

COMMITTED = 5
RECORDS = 35
"""On each partition of `start` when the workers start; the group has done the first `COMMITTED` of them."""
FaustConsumer: Any = driver.Consumer


async def appears(file: Path) -> None:
    await holds(file.exists)


async def holds(condition: Callable[[], bool]) -> None:
    while True:
        if condition():
            return
        await asyncio.sleep(0.02)


# --- as in Faust's guide ---------------------------------------------------------------------------------------------


def plain(brokers: str, prefix: str, folder: Path, held: bool, name: str) -> None:
    app = faust.App(
        f"{prefix}plain", broker=f"kafka://{brokers}", datadir=folder / "data", store="memory://", value_serializer="raw",
        key_serializer="raw", web_enabled=False, topic_disable_leader=True, topic_allow_declare=False, broker_commit_interval=0.2,
        broker_session_timeout=6, broker_heartbeat_interval=0.5,
    )  # fmt: skip
    topic, out = app.topic(f"{prefix}{name}", value_type=bytes), app.topic(f"{prefix}{name}-out", value_type=bytes)
    settled = told_late_to_plain(app, folder) if held and name == "start" else None
    if held and name == "long":
        count_rounds(app, folder)

    @app.agent(topic, name=name)
    async def agent(stream: Any) -> None:
        async for value in stream:
            if settled is not None:
                await settled.wait()
            if held and name == "long":
                (folder / "begun").touch()
                await appears(folder / "free")
            await out.send(value=value)

    faust.Worker(app, loglevel="WARNING").execute_from_commandline()


def told_late_to_plain(app: Any, folder: Path) -> asyncio.Event:
    """Returns what is set when the second generation is at work."""
    first, resumed, settled = set[int](), asyncio.Event(), asyncio.Event()
    really, really_end = FaustConsumer.seek_to_committed, app.on_rebalance_end

    async def seek_to_committed(self: Any) -> Any:
        found = await really(self)
        first.add(min(first, default=app.consumer_generation_id))
        if app.consumer_generation_id in first:
            (folder / "asked").touch()
            await self.suspend_flow.wait()  # the second worker came: this one's partitions are being revoked
        else:
            await appears(folder / "told")
            await holds(lambda: any(self._read_offset[tp] == RECORDS - 1 for tp in self.assignment()))
        return found

    async def on_partitions_revoked(*_: Any, **__: Any) -> None:
        if first:
            await resumed.wait()

    def on_rebalance_end() -> None:
        really_end()
        (resumed if app.consumer_generation_id in first else settled).set()

    FaustConsumer.seek_to_committed, app.on_rebalance_end = seek_to_committed, on_rebalance_end
    app.on_partitions_revoked.connect(on_partitions_revoked, weak=False)
    return settled


def count_rounds(app: Any, folder: Path) -> None:
    """How often it has looked in vain whether its event is done, while the group waits for it."""
    really, rounds = FaustConsumer._wait_for_ack, 0

    async def wait_for_ack(self: Any, timeout: float) -> None:
        nonlocal rounds
        await really(self, timeout)
        rounds += 1
        (folder / "rounds").write_text(str(rounds))

    FaustConsumer._wait_for_ack = wait_for_ack


# --- the same on ours ------------------------------------------------------------------------------------------------


async def safe(brokers: str, prefix: str, folder: Path, held: bool, name: str) -> None:
    app = create_app(
        f"{prefix}safe", [brokers], folder / "data", store="memory", session_timeout_s=6.0, heartbeat_s=0.5, commit_interval_s=0.2
    )
    if held and name == "start":
        told_late_to_ours(folder)

    async def handle(event: Delivered) -> None:
        if held and name == "long":
            (folder / "begun").touch()
            await appears(folder / "free")
        await app.append(f"{prefix}{name}-out", None, event.value)

    bind(app, f"{prefix}{name}", handle)
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await run_app(app, stop=stop)


def bind(app: SafeApp, topic: str, handle: Callable[[Delivered], Awaitable[None]]) -> None:
    async def never(event: Delivered, dead: DeadLetter) -> None:
        raise AssertionError(dead)

    async def body(stream: Any) -> None:
        await consume(app, stream, handle, limit=64, name="agent", on_dead=never)

    app.agent(app.topic(topic), name="agent")(body)


def told_late_to_ours(folder: Path) -> None:
    really, first = AIOKafkaConsumer.committed, set[int]()

    async def committed(self: Any, partition: Any) -> Any:
        generation, found = self._coordinator.generation, await really(self, partition)
        first.add(min(first, default=generation))
        if generation in first:
            (folder / "asked").touch()
            await asyncio.Event().wait()  # until the rebalance ends it
        await appears(folder / "told")
        return found

    AIOKafkaConsumer.committed = committed


if __name__ == "__main__":
    mode, brokers, prefix, folder, place, name = sys.argv[1:]
    if mode == "plain":
        plain(brokers, prefix, Path(folder), place == "first", name)
    else:
        asyncio.run(safe(brokers, prefix, Path(folder), place == "first", name))

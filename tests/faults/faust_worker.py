"""The same small agents twice: on Faust as its guide shows it, and on `agents/safe`.

    python -m tests.faults.faust_worker plain|safe BROKERS PREFIX FOLDER broken|well|large|late|web|transactions|transactions-well

Each agent reads a topic of its name and writes what it read to `NAME-out`. `broken`: something goes wrong in each of them
at some ids; `well`: nothing does, and a row is written outside of any event; `large`: one row of the table is larger than a
record can be; `late`: one more agent, whose topic may not be there yet; `web`: with the web server that Faust starts unless it
is told not to; `transactions` and `transactions-well`: with Faust's `exactly_once`, one event hangs, or does not.
"""

import asyncio
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import faust

from inference_engine.agents.safe import DeadLetter, Delivered, OversizedRow, consume, create_app, run_app

Emit = Callable[[str, bytes], Awaitable[Any]]
HUNG, RAISED, REFUSED, IN_A_BATCH = b"3", b"3", (b"3", b"4"), b"13"
BATCH = 10
TOO_LARGE = 5_000
LARGE_ROW = b"7"
OUTSIDE = b"outside"


def row_of(value: bytes, large: bool) -> bytes:
    return value * 2_000_000 if large and value == LARGE_ROW else value


async def hang(value: bytes, emit: Emit, broken: bool) -> None:
    """One event takes for ever; those behind it are quick."""
    if broken and value == HUNG:
        await asyncio.Event().wait()
    await emit("flight", value)


async def throw(value: bytes, emit: Emit, broken: bool) -> None:
    """A store is away for a moment."""
    if broken and value == RAISED:
        raise ConnectionError("a store is away")
    await emit("exception", value)


async def refuse(value: bytes, emit: Emit, broken: bool) -> None:
    """The broker refuses some records: here, because they are too large."""
    await emit("refused", value.ljust(TOO_LARGE) if broken and value in REFUSED else value)


# --- as in Faust's guide ---------------------------------------------------------------------------------------------


def others_of(state: str) -> dict[str, Any]:
    web: dict[str, Any] = {} if state == "web" else {"web_enabled": False}
    return {**web, "processing_guarantee": "exactly_once"} if state.startswith("transactions") else web


def plain(brokers: str, prefix: str, folder: Path, state: str) -> None:
    broken, large, hung = state == "broken", state == "large", state in ("broken", "transactions")
    app = faust.App(
        f"{prefix}plain", broker=f"kafka://{brokers}", datadir=folder, store="memory://", value_serializer="raw", key_serializer="raw",
        topic_disable_leader=True, broker_commit_interval=0.2, broker_session_timeout=6, broker_heartbeat_interval=0.5,
        topic_allow_declare=False, **others_of(state),
    )  # fmt: skip
    topics = {name: app.topic(f"{prefix}{name}", value_type=bytes) for name in ("flight", "exception", "batch", "refused", "rows", "late")}
    outs = {name: app.topic(f"{prefix}{name}-out", value_type=bytes) for name in (*topics, "outside")}
    table = app.Table("rows", partitions=1)

    async def emit(name: str, value: bytes) -> None:
        await outs[name].send(value=value)  # the guide's way: awaited, and only queued

    async def flight(stream: Any) -> None:
        async for value in stream:
            await hang(value, emit, hung)

    async def exception(stream: Any) -> None:
        async for value in stream:
            await throw(value, emit, broken)

    async def batch(stream: Any) -> None:
        async for values in stream.take(BATCH, within=1):
            if broken and IN_A_BATCH in values:
                raise ConnectionError("a store is away")
            for value in values:
                await emit("batch", value)

    async def refused(stream: Any) -> None:
        async for value in stream:
            await refuse(value, emit, broken)

    async def rows(stream: Any) -> None:
        async for value in stream:
            table[value.decode()] = row_of(value, large).decode()
            await emit("rows", value)

    async def late(stream: Any) -> None:
        async for value in stream:
            await emit("late", value)

    for agent, concurrency in ((flight, 4), (exception, 1), (batch, 1), (refused, 1), (rows, 1), (late, 1)):
        app.agent(topics[agent.__name__], name=agent.__name__, concurrency=concurrency)(agent)

    async def outside() -> None:
        try:
            table[OUTSIDE.decode()] = OUTSIDE.decode()
        except TypeError as error:
            await emit("outside", str(error).encode())
        else:
            await emit("outside", OUTSIDE)

    if broken:
        slow_changelog(app)
    if state == "well":
        app.task(outside)
    faust.Worker(app, loglevel="WARNING").execute_from_commandline()


def slow_changelog(app: Any) -> None:
    """The broker takes its time with the changelog: longer than this process lives."""
    really = type(app.producer).send

    async def send(self: Any, topic: str, *arguments: Any, **options: Any) -> Any:
        if topic.endswith("changelog"):
            await asyncio.Event().wait()
        return await really(self, topic, *arguments, **options)

    type(app.producer).send = send


# --- the same on ours ------------------------------------------------------------------------------------------------


async def safe(brokers: str, prefix: str, folder: Path, state: str) -> None:
    broken, large, hung = state == "broken", state == "large", state in ("broken", "transactions")
    app = create_app(
        f"{prefix}safe", [brokers], folder, topic_prefix="", store="memory", session_timeout_s=6.0, heartbeat_s=0.5, commit_interval_s=0.2
    )
    table = app.safe_table("rows", partitions=1)

    async def emit(name: str, value: bytes) -> None:
        await app.append(f"{prefix}{name}-out", None, value)

    async def flight(event: Delivered) -> None:
        await hang(event.value or b"", emit, hung)

    async def exception(event: Delivered) -> None:
        await throw(event.value or b"", emit, broken)

    async def batch(event: Delivered) -> None:
        if broken and event.value == IN_A_BATCH:
            raise ConnectionError("a store is away")
        await emit("batch", event.value or b"")

    async def refused(event: Delivered) -> None:
        await refuse(event.value or b"", emit, broken)

    async def rows(event: Delivered) -> None:
        try:
            await table.write(event.partition, {event.value or b"": row_of(event.value or b"", large)})
        except OversizedRow as error:
            raise DeadLetter(str(error)) from error
        await emit("rows", event.value or b"")

    async def never(event: Delivered, dead: DeadLetter) -> None:
        if event.value != LARGE_ROW:
            raise AssertionError(dead)

    def bind(handle: Callable[[Delivered], Awaitable[None]], name: str) -> None:
        async def body(stream: Any) -> None:
            await consume(app, stream, handle, limit=64, name=name, on_dead=never)

        app.agent(app.topic(f"{prefix}{name}"), name=name)(body)

    async def late(event: Delivered) -> None:
        await emit("late", event.value or b"")

    async def outside() -> None:
        await app.ready.wait()
        await table.write(0, {OUTSIDE: OUTSIDE})
        await emit("outside", OUTSIDE)

    for agent in (flight, exception, batch, refused, rows, *((late,) if state == "late" else ())):
        bind(agent, agent.__name__)
    if broken:
        await_for_ever(app)
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    writing = asyncio.create_task(outside()) if state == "well" else None
    await run_app(app, stop=stop)
    if writing is not None:
        await writing


def await_for_ever(app: Any) -> None:
    async def append_batch(*_: Any) -> tuple[int, int]:
        await asyncio.Event().wait()
        raise AssertionError

    app.append_batch = append_batch


if __name__ == "__main__":
    mode, brokers, prefix, folder, state = sys.argv[1:]
    if mode == "plain":
        plain(brokers, prefix, Path(folder), state)
    else:
        asyncio.run(safe(brokers, prefix, Path(folder), state))

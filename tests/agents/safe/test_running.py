"""How a worker ends: always, and with the reason."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from inference_engine.agents.safe import Delivered, SafeApp, running

from .conftest import Bench

Hanging = tuple[SafeApp, asyncio.Event, "asyncio.Task[None]"]


async def nothing(_event: Delivered) -> None:
    """A handler that has nothing to do."""


@asynccontextmanager
async def hangs_at_its_stop(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Hanging]:
    monkeypatch.setattr(running, "STOP_S", 0.5)
    bench.create("in")
    app, gate = bench.app(), asyncio.Event()
    bench.agent(app, "in", nothing)
    app.on_stopping(gate.wait)
    await bench.start(app)
    stop, task = bench._ends.pop(id(app))
    try:
        yield app, stop, task
    finally:
        gate.set()
        await asyncio.gather(*(task for task in asyncio.all_tasks() if task.get_name().endswith(" stop")))


async def test_a_crash_is_raised_even_where_the_stop_after_it_hangs(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    async with hangs_at_its_stop(bench, monkeypatch) as (app, _, task):
        await app.crash(RuntimeError("the consumer can't go on"))
        with pytest.raises(RuntimeError, match="can't go on"):
            await asyncio.wait_for(task, 20)


async def test_a_stop_that_hangs_is_an_error(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    async with hangs_at_its_stop(bench, monkeypatch) as (_, stop, task):
        stop.set()
        with pytest.raises(TimeoutError, match="did not stop"):
            await asyncio.wait_for(task, 20)

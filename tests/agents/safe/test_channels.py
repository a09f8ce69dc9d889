"""Edges within a worker: nothing put on a channel is lost, and the source waits for the last stage."""

import asyncio
from typing import Any

import pytest
from aiokafka import TopicPartition

from inference_engine.agents.safe import Delivered, hand_over, items, send_through, serve

from .conftest import Bench, fill, until


async def test_source_is_acknowledged_only_after_the_last_stage(bench: Bench) -> None:
    """Agents pass plain objects; a failure of the second stage retries the source's event."""
    bench.create("in")
    app, gate, attempts = bench.app(), asyncio.Event(), []
    edge = app.channel()

    async def source(event: Delivered) -> None:
        assert await hand_over(edge, {"n": event.value}) == b"done 1"

    async def second(packet: dict[str, bytes]) -> bytes:
        await gate.wait()
        attempts.append(packet)
        if len(attempts) == 1:
            raise ConnectionError("store away")
        return b"done " + packet["n"]

    async def body(stream: Any) -> None:
        await serve(stream, second, limit=4)

    bench.agent(app, "in", source)
    app.agent(edge, name="second")(body)
    tp = TopicPartition(bench.topic("in"), 0)
    async with bench.running(app):
        await fill(app, bench.topic("in"), [1], partition=0)
        await until(lambda: app.in_flight()["in"] == 1, "event in flight")
        await app.consumer_of_records.commit()
        assert app.lowest_unfinished()[tp] == 0
        gate.set()
        await until(lambda: app.committed()[tp] == 1, "commit after the second attempt")
    assert attempts == [{"n": b"1"}, {"n": b"1"}]


async def test_what_was_sent_before_the_agent_started_waits_for_it(bench: Bench) -> None:
    """Faust's own channel drops it without a word."""
    bench.create("in")
    app, got = bench.app(), set()
    edge = app.channel()

    async def body(stream: Any) -> None:
        async for item in items(stream):
            got.add(item)

    async def ignore(event: Delivered) -> None:
        pass

    bench.agent(app, "in", ignore)
    app.agent(edge, name="late")(body)
    await send_through(edge, "early")
    async with bench.running(app):
        await send_through(edge, "later")
        await until(lambda: len(got) == 2, "both")
    assert got == {"early", "later"}


async def test_several_actors_share_a_channel(bench: Bench) -> None:
    bench.create("in")
    app, got = bench.app(), []
    edge = app.channel(maxsize=10)

    async def body(stream: Any) -> None:
        async for item in stream:  # Faust's own iteration works as well
            got.append(item)
            await asyncio.sleep(0)

    async def ignore(event: Delivered) -> None:
        pass

    bench.agent(app, "in", ignore)
    app.agent(edge, name="shared", concurrency=3)(body)
    async with bench.running(app):
        for n in range(100):
            await send_through(edge, n)
        await until(lambda: len(got) == 100, "all")
    assert sorted(got) == list(range(100))


async def test_caller_that_gave_up_ends_the_work(bench: Bench) -> None:
    bench.create("in")
    app, ended = bench.app(), []
    edge = app.channel()

    async def endless(item: int) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            ended.append(item)
            raise

    async def body(stream: Any) -> None:
        await serve(stream, endless, limit=1)

    async def ignore(event: Delivered) -> None:
        pass

    bench.agent(app, "in", ignore)
    app.agent(edge, name="endless")(body)
    async with bench.running(app):
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(hand_over(edge, 1), 0.05)
        await until(lambda: ended == [1], "cancelled handler")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(hand_over(edge, 2), 0.05)
        await until(lambda: ended == [1, 2], "room again")

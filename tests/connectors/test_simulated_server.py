"""What the simulated server sees of its callers, beside what it bills them."""

import asyncio
from collections.abc import Callable

import aiohttp

from inference_engine.connectors.simulated_server import SimulatedServer
from inference_engine.connectors.simulation import FaultRule

BODY = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "hello"}]}


async def test_open_calls_are_counted_by_key_without_those_that_a_caller_gave_up() -> None:
    """Those go on at the provider: they are in flight, and nobody's permit is for them."""
    async with SimulatedServer() as server, aiohttp.ClientSession() as session:
        server.faults.add(FaultRule("hang"))

        async def call(key: str) -> None:
            async with session.post(f"{server.url}/v1/chat/completions", json=BODY, headers={"Authorization": key}) as reply:
                await reply.read()

        given_up = [asyncio.create_task(call("a")) for _ in range(3)]
        others = [asyncio.create_task(call("b")) for _ in range(2)]
        await become(lambda: server.in_flight == 5)
        assert server.most_open == 3
        for task in given_up:
            task.cancel()
        await become(lambda: all(caller.is_closing() for caller in server.callers["a"]))
        more = [asyncio.create_task(call("a")) for _ in range(3)]
        await become(lambda: server.in_flight == 8)
        assert server.most_open == 3
        for task in (*others, *more):
            task.cancel()
        await asyncio.gather(*given_up, *others, *more, return_exceptions=True)


async def become(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - the server announces neither a call nor a caller's going
            await asyncio.sleep(0.01)

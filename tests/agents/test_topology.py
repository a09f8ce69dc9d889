"""The edges within a worker: one lane's waiting is not another one's."""

import asyncio
from types import SimpleNamespace

from inference_engine.agents.topology import side_by_side


async def test_what_waits_for_the_broker_does_not_hold_up_what_comes_behind_it() -> None:
    """A batch lane's packet leaves after 100 ms; an express request on the same edge must not wait for it."""
    queue: asyncio.Queue[str] = asyncio.Queue()
    begun, done = [], asyncio.Event()

    async def handle(item: str) -> None:
        begun.append(item)
        if item == "batch":
            await asyncio.Event().wait()
        done.set()

    agent = asyncio.create_task(side_by_side(SimpleNamespace(channel=SimpleNamespace(queue=queue)), handle))
    for item in ("batch", "express"):
        await queue.put(item)
    async with asyncio.timeout(10):
        await done.wait()
    assert begun == ["batch", "express"]
    agent.cancel()
    await asyncio.gather(agent, return_exceptions=True)

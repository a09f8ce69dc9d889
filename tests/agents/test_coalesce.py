"""Windows close when they are full or old, or when nobody else is coming, and every miss goes on exactly once."""

import asyncio
from typing import Any

import numpy as np

from inference_engine.agents.coalesce import CoalesceSettings, CoalesceStage
from inference_engine.agents.pending import Group, Pending
from inference_engine.agents.sharing import StaticSharing
from inference_engine.pipeline.semantic import StaticPolicy
from inference_engine.pipeline.window import window_policies
from inference_engine.schemas.record import Lane
from inference_engine.schemas.requests import Miss

from ..pipeline.support import identity, request

SETTINGS = CoalesceSettings(windows=window_policies())
SHARING = StaticSharing(StaticPolicy(threshold=0.95))


def pending(number: int, lane: Lane) -> Pending:
    asked = request(f"question {number}", who=identity(f"r{number}")).model_copy(update={"lane": lane})
    vector = np.zeros(64, dtype=np.float32)
    vector[number % 64] = 1.0
    found = Pending(Miss(request=asked), 0, asyncio.get_running_loop().create_future())
    found.text, found.vector = f"question {number}", vector
    return found


async def closed(lane: Lane, count: int, **options: Any) -> tuple[list[int], list[int]]:
    """(sizes of the windows that stay open when so many misses came together, sizes of all windows when they were sent)"""
    done, sizes = asyncio.Event(), list[int]()

    async def forward(groups: list[Group]) -> None:
        sizes.append(len(groups))
        if sum(sizes) == count:
            done.set()

    stage = CoalesceStage(SETTINGS, SHARING, forward, **options)
    await stage.on_batch([pending(n, lane) for n in range(count)])
    left = [len(window.members) for window in stage._windows.values()]
    async with asyncio.timeout(20):
        await done.wait()
    return left, sorted(sizes, reverse=True)


async def test_an_express_request_is_not_held_where_nobody_else_is_coming() -> None:
    assert await closed(Lane.EXPRESS, 1, more=lambda _: False) == ([], [1])


async def test_a_full_window_does_not_wait_and_the_rest_is_sent_too() -> None:
    assert await closed(Lane.EXPRESS, 9, more=lambda _: False) == ([], [4, 4, 1])
    assert await closed(Lane.STANDARD, 40, more=lambda _: False) == ([], [32, 8])


async def test_a_window_below_its_least_size_waits_for_its_time() -> None:
    assert await closed(Lane.STANDARD, 3, more=lambda _: False) == ([3], [3])


async def test_while_others_are_on_their_way_a_window_stays_open() -> None:
    assert await closed(Lane.STANDARD, 8, more=lambda _: True) == ([8], [8])

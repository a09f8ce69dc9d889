"""Runs a call a second time where it was not answered for a while, and takes whichever answer is first."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from ..pipeline.call import Tried

Attempted = Tried | None


async def hedged(
    first: Awaitable[Attempted], wait_s: float | None, may_hedge: Callable[[], bool], second: Callable[[], Coroutine[Any, Any, Attempted]]
) -> Attempted:
    """What came of `first`; where it is not over after `wait_s` and `may_hedge`, of whichever of both is done first.

    `second` waits for a permit and writes an intent of its own: until that is on its way it is called off when the first one is done. What
    is sent runs to its end in any case, and books what it cost.
    """
    if wait_s is None:
        return await first
    one = asyncio.ensure_future(first)
    two: asyncio.Task[Attempted] | None = None
    try:
        await asyncio.wait({one}, timeout=wait_s)
        if one.done() or not may_hedge():
            return await one
        two = asyncio.create_task(second())
        await asyncio.wait({one, two}, return_when=asyncio.FIRST_COMPLETED)
        if not one.done() and _answered(two):
            one.add_done_callback(_seen)
            return two.result()
        tried = await one
        if tried is not None and tried.next == "done":
            return tried
        # The first one failed: the second one may still answer.
        await asyncio.wait({two})
        return two.result() if _answered(two) else tried
    finally:
        if two is not None:
            two.cancel()
            two.add_done_callback(_seen)


def _answered(task: "asyncio.Task[Attempted]") -> bool:
    if not task.done() or task.cancelled() or task.exception() is not None:
        return False
    tried = task.result()
    return tried is not None and tried.next == "done"


def _seen(task: "asyncio.Future[Attempted]") -> None:
    """Its failure is booked where it happened; nobody waits for it here."""
    if not task.cancelled():
        task.exception()

"""Runs a call a second time where it was not answered for a while. Whichever answer is durable first is the one that everybody gets."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from ..pipeline.call import Tried
from .limits import Permit

Attempted = Tried | None


async def hedged(
    first: Awaitable[Attempted],
    wait_s: float,
    may_hedge: Callable[[], bool],
    permit: Callable[[], Coroutine[Any, Any, Permit | None]],
    second: Callable[[Permit], Awaitable[Attempted]],
) -> Attempted:
    """What came of `first`; where it is not over after `wait_s` and `may_hedge`, of both.

    A hedge that still waits for its permit is called off when the first call is over. Otherwise this returns when both are over: the answer
    is given from the ledger and does not wait for that, and until then the source's event must not be released, since whoever takes over
    after a crash finds the open attempt by it.
    """
    one = asyncio.ensure_future(first)
    await asyncio.wait({one}, timeout=wait_s)
    if one.done() or not may_hedge():
        return await one
    granted = await _permit_before(one, permit)
    if granted is None:
        return await one
    two = asyncio.ensure_future(second(granted))
    await asyncio.wait({one, two})
    return two.result() if _answered(two) and not _answered(one) else one.result()


async def _permit_before(one: "asyncio.Future[Attempted]", permit: Callable[[], Coroutine[Any, Any, Permit | None]]) -> Permit | None:
    """None where the first call is over before there is one."""
    asking = asyncio.create_task(permit())
    try:
        both: set[asyncio.Future[Any]] = {one, asking}
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        if not asking.done():
            return None
        granted = asking.result()
        if granted is not None and one.done():
            granted.release()
            return None
        return granted
    finally:
        asking.cancel()


def _answered(task: "asyncio.Future[Attempted]") -> bool:
    if task.cancelled() or task.exception() is not None:
        return False
    tried = task.result()
    return tried is not None and tried.next == "done"

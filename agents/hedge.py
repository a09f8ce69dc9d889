"""Runs a call a second time where it was not answered for a while. Whichever answer is durable first is the one that everybody gets."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from ..pipeline.call import Tried
from .attempt import CallParts
from .limits import Permit

Attempted = Tried | None


class Hedging:
    """The calls of one request, as far as they may be made twice."""

    def __init__(self, parts: CallParts, tenant: str, *, allowed: bool = True) -> None:
        """`allowed`: somebody waits for the answer."""
        self._p = parts
        self._tenant = tenant
        self._allowed = allowed

    async def run(
        self,
        first: Awaitable[Attempted],
        permit: Permit,
        tier: Callable[[], str],
        *,
        ask: Callable[[], Coroutine[Any, Any, Permit | None]],
        again: Callable[[Permit], Awaitable[Attempted]],
    ) -> Attempted:
        """What came of `first`, which has `permit` and is sent at `tier`.

        Where that takes long and may be hedged, of it and of the same call once more: `again` makes it, with a permit that `ask` brings.
        """
        after_s = self._after_s(tier)
        if after_s is None:
            return await first

        async def second(granted: Permit) -> Attempted:
            if permit.well:
                granted.release()  # answered, and about to be written down
                return None
            return await again(granted)

        return await hedged(first, after_s, self._p.hedges.may_hedge, ask, second)

    def _after_s(self, tier: Callable[[], str]) -> float | None:
        """Seconds; None where the tenant does not allow to pay twice, or the call has time and is slow for being cheap."""
        if not self._allowed or self._p.hedge.after_s is None or self._p.on_ambiguous(self._tenant) == "fail" or tier() == "flex":
            return None
        self._p.hedges.called()
        return self._p.hedge.wait_s(self._tenant)


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

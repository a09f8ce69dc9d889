"""Opens packets of calls; their events are released when the outcome of every member is durable."""

import asyncio
from collections.abc import Callable

from ..schemas import packets
from ..schemas.requests import Call
from .call import CallStage
from .exact import decode
from .safe import Delivered

AT_ONCE = 8
"""Calls begun in one pass of the event loop beside somebody urgent."""


class CallAgent:
    """Runs the call stage for all members of a packet, a few at a time; the stage's permits bound what is sent."""

    def __init__(self, stage: CallStage, at_once: Callable[[int], int] = lambda few: few) -> None:
        """`at_once`: see `Throttle.at_once`."""
        self._stage = stage
        self._at_once = at_once

    async def on_calls(self, event: Delivered) -> None:
        members: list[Call] = self._stage.in_order(decode(packets.calls, event))
        runs: list[asyncio.Task[None]] = []
        step = self._at_once(AT_ONCE)
        try:
            for number, call in enumerate(members):
                if number and number % step == 0:
                    await asyncio.sleep(0)
                runs.append(asyncio.create_task(self._stage.run(event.partition, call, call.request.lane, lambda: event.current)))
        except asyncio.CancelledError:
            for run in runs:
                run.cancel()
            raise
        for result in await asyncio.gather(*runs, return_exceptions=True):
            if isinstance(result, BaseException):
                # The packet comes again; members whose outcome is durable are recognised by their flight.
                raise result

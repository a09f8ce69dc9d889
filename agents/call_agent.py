"""Opens packets of calls; their events are released when the outcome of every member is durable."""

import asyncio

from ..schemas import packets
from ..schemas.requests import Call
from .call import CallStage
from .exact import decode
from .safe import Delivered


class CallAgent:
    """Runs the call stage for all members of a packet at once; the stage's permits bound what is sent."""

    def __init__(self, stage: CallStage) -> None:
        self._stage = stage

    async def on_calls(self, event: Delivered) -> None:
        members: list[Call] = self._stage.in_order(decode(packets.calls, event))
        results = await asyncio.gather(
            *(self._stage.run(event.partition, call, call.request.lane, lambda: event.current) for call in members), return_exceptions=True
        )
        for result in results:
            if isinstance(result, BaseException):
                # The packet comes again; members whose outcome is durable are recognised by their flight.
                raise result

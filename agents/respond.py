"""Runs the respond stage: reads the ledger's records, writes `answers`, `vectors` and `costs`."""

from collections.abc import Awaitable, Callable, Sequence

from ..pipeline.respond import Clerk
from ..schemas import packets
from ..schemas.ledger import Ambiguous, Charged, Completion, Failure, LedgerRecord
from .exact import decode
from .outbox import Outbox
from .safe import Delivered

Learn = Callable[[int, int, Sequence[LedgerRecord]], Awaitable[list[bool]]]
"""(partition, offset, records) -> for each, False where it completes a flight that was answered before.

Also teaches the ledger what workers of other epochs wrote.
"""


class RespondStage:
    """A completion, once durable, becomes an answer for everyone who waits."""

    def __init__(self, outbox: Outbox, clerk: Clerk, learn: Learn) -> None:
        self._out = outbox
        self._clerk = clerk
        self._learn = learn

    async def on_ledger(self, event: Delivered) -> None:
        sends = self._out.batch()
        records: list[LedgerRecord] = decode(packets.ledger, event)
        firsts = await self._learn(event.partition, event.offset, records)
        for record, first in zip(records, firsts, strict=True):
            if not isinstance(record, Completion | Ambiguous | Charged | Failure):
                continue  # an intent, or an attempt that cost nothing
            lane = record.request.lane
            outcome = self._clerk.outcome(record, first=first)
            if outcome.answer is not None:
                sends.answer(outcome.answer, lane)
            if outcome.vector is not None:
                sends.vector(outcome.vector, lane)
            if outcome.cost is not None:
                sends.cost(outcome.cost, lane)
        await sends.settle()

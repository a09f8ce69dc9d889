"""Runs the respond stage: reads the ledger's records, writes `answers`, `vectors` and `costs`."""

from collections.abc import Callable
from typing import Protocol

from ..connectors.crash_points import crash_at
from ..pipeline.feedback import declined, graded, served
from ..pipeline.grade_question import score_of
from ..pipeline.respond import Clerk
from ..schemas import packets
from ..schemas.feedback import Rated, Served
from ..schemas.ledger import ASKING, Ambiguous, Charged, Completion, Failure, LedgerRecord
from ..schemas.requests import Call
from .exact import decode
from .outbox import Outbox
from .questions import reading
from .safe import Delivered


class Learner(Protocol):
    """The ledger of this worker: it learns from the topic what workers of other epochs wrote."""

    async def owned(self, partition: int) -> object:
        """Returns once the partition is replayed. Raises `Stale` where it is not ours."""
        ...

    def learn(self, partition: int, offset: int, record: LedgerRecord) -> bool:
        """False: this completes a flight that another attempt answered before. Raises `Stale`."""
        ...


class RespondStage:
    """A completion, once durable, becomes an answer for everyone who waits."""

    def __init__(
        self,
        outbox: Outbox,
        clerk: Clerk,
        ledger: Learner,
        judged: Callable[[int, Completion | Failure], None] = lambda _partition, _record: None,
        label: Callable[[Completion], Call | None] = lambda _record: None,
    ) -> None:
        """`judged` hears how questions end that somebody may wait for, by partition. `label` asks what a given answer is worth."""
        self._judged = judged
        self._label = label
        self._out = outbox
        self._clerk = clerk
        self._ledger = ledger

    async def on_ledger(self, event: Delivered) -> None:
        sends = self._out.batch()
        records: list[LedgerRecord] = decode(packets.ledger, event)
        await self._ledger.owned(event.partition)
        for record in records:
            first = self._ledger.learn(event.partition, event.offset, record)
            if not isinstance(record, Completion | Ambiguous | Charged | Failure):
                continue  # an intent, or an attempt that cost nothing
            if isinstance(record, Completion | Failure) and record.purpose in ASKING and record.purpose != "grade":
                self._judged(event.partition, record)
            lane = record.request.lane
            outcome = self._clerk.outcome(record, first=first)
            if outcome.answer is not None:
                sends.answer(outcome.answer, lane)
            if outcome.vector is not None:
                sends.vector(outcome.vector, lane)
            if outcome.cost is not None:
                sends.cost(outcome.cost, lane)
            if (lesson := _lesson(record, given=outcome.answer is not None)) is not None:
                sends.lesson(lesson, lane)
                if isinstance(record, Completion) and (question := self._label(record)) is not None:
                    sends.question(question, lane)
        await sends.settle()
        crash_at("after_outcome")


def _lesson(record: LedgerRecord, *, given: bool) -> Served | Rated | None:
    if isinstance(record, Charged):
        return declined(record)
    if isinstance(record, Completion | Failure) and record.purpose == "grade":
        said = reading(record, "grade", score_of)
        return None if said is None or isinstance(record, Failure) else graded(record)
    return served(record) if isinstance(record, Completion) and given else None

"""Questions to a model about answers, that somebody here waits for: calls like every other, each a flight of its own.

    ask -> Call (judge) -> calls.LANE, on the partition of the asker -> intent, provider, completion
    respond reads the completion -> heard -> ask returns

Intended before it is sent, paid at most as often as the ledger allows, a row of its own in the costs. Nobody is answered by it. A worker
that dies forgets who wanted to know: what was sent is settled by the next owner, and what was not is not paid any more.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import structlog

from ..schemas.ledger import Completion, Failure
from ..schemas.record import JsonObject
from ..schemas.requests import Asks, Call
from .metrics import JUDGED

log = structlog.get_logger(__name__)

T = TypeVar("T")
Send = Callable[[int, Call], Awaitable[None]]
"""Puts a call on a partition; returns when it is durable."""


@dataclass(frozen=True, slots=True)
class _Question:
    """One that is under way."""

    said: "asyncio.Future[Any]"
    read: Callable[[JsonObject], Any]
    asks: Asks


class Questions:
    """Of one worker."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._asked: dict[tuple[int, str], _Question] = {}
        """By partition and flight."""
        self._begun: set[asyncio.Task[None]] = set()

    async def ask(
        self,
        partition: int,
        call: Call,
        read: Callable[[JsonObject], T | None],
        wait_s: float,
        make: Callable[[], Coroutine[Any, Any, None]] | None = None,
    ) -> T | None:
        """What `read` makes of the reply's body; None: it was not asked, did not tell, or not in time. `make`: makes the call at once,
        where it can't wait behind all that lies on the topic."""
        place = partition, call.request.flight
        question = self._asked.get(place)
        try:
            async with asyncio.timeout(wait_s):
                if question is None:
                    question = self._asked[place] = _Question(asyncio.get_running_loop().create_future(), read, call.asks)
                    await self._send(partition, call)
                    if make is not None:
                        self._begin(place, make())
                said: T | None = await asyncio.shield(question.said)
                return said
        except TimeoutError:
            log.warning("a model that was asked about answers has not replied in time: it counts as not asked", asked=call.asks,
                        after_s=wait_s)  # fmt: skip
        except Exception as error:  # whatever the producer raises: nothing was sent
            log.warning("a model was not asked about answers", asked=call.asks, reason=repr(error))
        self._end(place, None)
        return None

    def _begin(self, place: tuple[int, str], work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work, name="ask a model at once")
        self._begun.add(task)
        task.add_done_callback(partial(self._over, place))

    def _over(self, place: tuple[int, str], task: "asyncio.Task[None]") -> None:
        self._begun.discard(task)
        if task.cancelled() or (error := task.exception()) is not None:
            # Mostly since the worker stops: nobody shall wait for what it does not ask any more.
            log.info("a question was not asked at once, and counts as not asked", reason="cancelled" if task.cancelled() else str(error))
            self._end(place, None)

    def _end(self, place: tuple[int, str], said: Any) -> None:
        question = self._asked.pop(place, None)
        if question is not None:
            question.said.set_result(said)

    def heard(self, partition: int, record: Completion | Failure) -> None:
        """The call of a question has ended; those that nobody here waits for, too."""
        place = partition, record.flight
        question = self._asked.get(place)
        if question is not None:
            self._end(place, reading(record, question.asks, question.read))

    def awaits(self, partition: int, flight: str) -> bool:
        """Does anyone here still want to know?"""
        return (partition, flight) in self._asked

    def forget(self, partitions: Iterable[int]) -> None:
        """They are another worker's now: replies come to nobody here."""
        gone = set(partitions)
        for place in [place for place in self._asked if place[0] in gone]:
            self._end(place, None)


def reading(record: Completion | Failure, asks: Asks, read: Callable[[JsonObject], T | None]) -> T | None:
    """What the reply says, counted and logged where that is nothing."""
    if isinstance(record, Failure):
        JUDGED.labels(asks, "failed").inc()
        log.warning("a model could not be asked about answers: nothing is learned of them", asked=asks, reason=record.error.message)
        return None
    said = read(record.answer.body)
    JUDGED.labels(asks, "unreadable" if said is None else "said").inc()
    if said is None:
        log.warning("a model that was asked about answers said nothing that can be read", asked=asks, model=record.answer.model_used)
    return said

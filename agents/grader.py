"""Lets a model grade answers: a share of those whose models the router chose, as labels for it to learn from beside what users say, and
the cheap ones of a cascade before they are given.

    COMPLETION of an answer -> label -> Call (judge, grade) -> calls.batch -> intent, provider, completion
    COMPLETION of a grade -> graded -> Rated (judge) -> lessons

    cheap answer -> check -> Call (judge, cascade) -> calls.LANE, and made at once -> intent, provider, completion -> heard -> score

Nobody waits for a label: the question is durable before the answer's ledger record is acknowledged, and follows from that record alone.
So a crash loses none, and a redelivery asks for nothing new. A check is waited for, and forgotten with its worker like the answer itself.
"""

from collections.abc import Callable, Coroutine
from typing import Any

from ..pipeline.asking import asking
from ..pipeline.grade_question import flight_of, is_due, question_of, score_of
from ..pipeline.models import Model
from ..pipeline.unwanted import refused
from ..schemas.ledger import Completion
from ..schemas.record import JsonObject, Lane
from ..schemas.requests import Call
from .attempt import IsCurrent
from .packer import Now
from .questions import Questions

Make = Callable[[int, Call, IsCurrent], Coroutine[Any, Any, None]]
"""Makes the call of a partition at once; returns when its outcome is durable."""


class Grader:
    """Asks for labels."""

    def __init__(self, model: Model, rate: float, may: Callable[[str], bool], now: Now) -> None:
        """`may`: whether a tenant's requests and answers may be shown to the model."""
        self._model = model
        self._rate = rate
        self._may = may
        self._now = now

    def label(self, record: Completion) -> Call | None:
        """The question what a given answer is worth. None where it is not asked: no router learns from it, it was graded before it was
        given, it is not due, the request says what it may cost, or there is nothing to show."""
        request, answer = record.request, record.answer
        flight = flight_of(self._model.name, request.flight)
        if record.chosen is None or record.judged is not None or not is_due(flight, self._rate):
            return None
        if request.max_cost_pico is not None or not self._may(request.identity.tenant) or refused(answer.body, answer.finish_reason):
            return None
        body = question_of(self._model.name, request.body, answer.body)
        if body is None:
            return None
        return asking("grade", self._model, body, flight, request, scope=request.scope, lane=Lane.BATCH, now_ms=self._now())


class Checker:
    """Implements `attempt.Check`."""

    def __init__(self, model: Model, questions: Questions, make: Make, may: Callable[[str], bool], now: Now) -> None:
        """`may`: whether a tenant's requests and answers may be shown to the model."""
        self._model = model
        self._questions = questions
        self._make = make
        self._may = may
        self._now = now

    async def __call__(
        self, partition: int, call: Call, attempt: str, answer: JsonObject, is_current: IsCurrent, wait_s: float
    ) -> float | None:
        request = call.request
        body = question_of(self._model.name, request.body, answer)
        if body is None or not self._may(request.identity.tenant):
            return None
        flight = flight_of(self._model.name, request.flight, attempt)
        asked = asking("cascade", self._model, body, flight, request, scope=request.scope, lane=request.lane, now_ms=self._now())
        # On the topic, too: should this worker die, the packet brings the attempt back to whoever is to settle it.
        return await self._questions.ask(partition, asked, score_of, wait_s, lambda: self._make(partition, asked, is_current))

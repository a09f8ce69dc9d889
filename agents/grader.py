"""Lets a model grade a share of the answers whose models the router chose: labels for it to learn from, beside what users say.

    COMPLETION of an answer -> label -> Call (judge, grade) -> calls.batch -> intent, provider, completion
    COMPLETION of a grade -> graded -> Rated (judge) -> lessons

Nobody waits for it: the question is durable before the answer's ledger record is acknowledged, and follows from that record alone. So a
crash loses none, and a redelivery asks for nothing new.
"""

from collections.abc import Callable

from ..pipeline.asking import asking
from ..pipeline.grade_question import flight_of, is_due, question_of
from ..pipeline.models import Model
from ..pipeline.unwanted import refused
from ..schemas.ledger import Completion
from ..schemas.record import Lane
from ..schemas.requests import Call
from .packer import Now


class Grader:
    """Asks one model."""

    def __init__(self, model: Model, rate: float, may: Callable[[str], bool], now: Now) -> None:
        """`may`: whether a tenant's requests and answers may be shown to the model."""
        self._model = model
        self._rate = rate
        self._may = may
        self._now = now

    def label(self, record: Completion) -> Call | None:
        """The question what a given answer is worth; None where it is not asked: no router learns from it, it is not due, the request says
        what it may cost, or there is nothing to show."""
        request, answer = record.request, record.answer
        flight = flight_of(self._model.name, request.flight)
        if record.chosen is None or not is_due(flight, self._rate):
            return None
        if request.max_cost_pico is not None or not self._may(request.identity.tenant) or refused(answer.body, answer.finish_reason):
            return None
        body = question_of(self._model.name, request.body, answer.body)
        if body is None:
            return None
        return asking("grade", self._model, body, flight, request, scope=request.scope, lane=Lane.BATCH, now_ms=self._now())

"""A cheap model as the judge of whether answers in free text agree: asked through `calls`, paid and booked like every other call.

No request waits for it or fails with it. What two answers were found to be is remembered, so that they are not compared twice.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence

from ..pipeline.asking import asking
from ..pipeline.fingerprint import digest
from ..pipeline.judge import by_value
from ..pipeline.judge_question import question_of, verdicts
from ..pipeline.models import Model
from ..pipeline.ports import Case, Judge
from ..schemas.answers import Told
from ..schemas.record import Lane
from ..schemas.requests import Call
from .packer import Now
from .questions import Questions

WAIT_S = 600.0
"""For a verdict. Whoever waited longer learns nothing, and a question that was not sent by then is not paid."""
AT_ONCE = 32
"""Questions of one worker that are under way: judging shall not fill the lane."""
KEPT = 20_000
"""Verdicts about two answers that are remembered."""


class ModelJudge:
    """Implements `pipeline.ports.Judge`."""

    at_once = AT_ONCE

    def __init__(
        self, model: Model, questions: Questions, otherwise: Judge, may: Callable[[str], bool], now: Now, *, wait_s: float = WAIT_S
    ) -> None:
        """`may`: whether a tenant's answers may be shown to the model. `otherwise` judges for those whose may not, and for requests that
        say what they may cost."""
        self._model = model
        self._questions = questions
        self._otherwise = otherwise
        self._may = may
        self._now = now
        self._wait_s = wait_s
        self._known: OrderedDict[tuple[str, str, str], bool] = OrderedDict()
        """By tenant and the digests of two answers."""

    async def agree(self, own: Told, others: Sequence[Told], case: Case) -> list[bool | None]:
        whose = case.whose
        if whose.max_cost_pico is not None or not self._may(whose.identity.tenant):
            return await self._otherwise.agree(own, others, case)
        values = [by_value(own, other) for other in others]
        tenant = whose.identity.tenant
        open_ = {other.digest: other for other, value in zip(others, values, strict=True) if value is None}
        unknown = [other for other in open_.values() if (tenant, own.digest, other.digest) not in self._known]
        if unknown:
            call, count = self._call(own, unknown, case), len(unknown)
            said = await self._questions.ask(case.partition, call, lambda body: verdicts(body, count), self._wait_s)
            for other, agrees in zip(unknown, said, strict=True) if said is not None else ():
                self._remember(tenant, own.digest, other.digest, agrees)
        return [
            self._known.get((tenant, own.digest, other.digest)) if value is None else value
            for other, value in zip(others, values, strict=True)
        ]

    def _remember(self, tenant: str, one: str, other: str, agrees: bool) -> None:
        self._known[tenant, one, other] = self._known[tenant, other, one] = agrees
        while len(self._known) > KEPT:
            self._known.popitem(last=False)

    def _call(self, own: Told, others: Sequence[Told], case: Case) -> Call:
        answers = (own.digest, *(other.digest for other in others))
        # The same question of the same scope is paid once, whoever brings it up.
        flight = digest([b"judge", self._model.name.encode(), case.scope.encode(), *(answer.encode() for answer in answers)])
        body = question_of(self._model.name, own, others)
        # Behind a batch job of a million rows the verdict would come when nobody waits for it.
        lane = Lane.STANDARD
        return asking("judge", self._model, body, flight, case.whose, scope=case.scope, lane=lane, now_ms=self._now())

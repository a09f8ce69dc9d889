"""A cheap model as the judge of answers in free text: asked through `calls`, paid and booked like every other call.

    agree -> Call (judge) -> calls.standard, on the partition of the lesson -> intent, provider, completion
    respond reads the completion -> heard -> agree returns

A question is a flight of its own, of the purpose `judge`: intended before it is sent, paid at most as often as the ledger allows, a row of
its own in the costs. Nobody is answered by it, and no request waits for it or fails with it. A worker that dies forgets who wanted to know:
what was sent is settled by the next owner, and what was not is not paid any more.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass

import structlog

from ..pipeline.fingerprint import digest
from ..pipeline.judge import by_value
from ..pipeline.judge_question import question_of, verdicts
from ..pipeline.ports import Case, Judge
from ..schemas.answers import Told
from ..schemas.ledger import Completion, Failure
from ..schemas.record import Lane
from ..schemas.requests import Call, Request, Route
from .metrics import JUDGED
from .packer import Now

log = structlog.get_logger(__name__)

WAIT_S = 600.0
"""For a verdict. Whoever waited longer learns nothing, and a question that was not sent by then is not paid."""
AT_ONCE = 32
"""Questions of one worker that are under way: judging shall not fill the lane."""
KEPT = 20_000
"""Verdicts about two answers that are remembered."""

Send = Callable[[int, Call], Awaitable[None]]
"""Puts a call on a partition; returns when it is durable."""


@dataclass(frozen=True, slots=True)
class _Question:
    """One that is under way."""

    verdict: "asyncio.Future[list[bool] | None]"
    answers: int


class ModelJudge:
    """Implements `pipeline.ports.Judge`."""

    at_once = AT_ONCE

    def __init__(self, model: str, send: Send, otherwise: Judge, may: Callable[[str], bool], now: Now, *, wait_s: float = WAIT_S) -> None:
        """`may`: whether a tenant's answers may be shown to the model. `otherwise` judges for those whose may not, and for requests that
        say what they may cost."""
        self._model = model
        self._send = send
        self._otherwise = otherwise
        self._may = may
        self._now = now
        self._wait_s = wait_s
        self._asked: dict[tuple[int, str], _Question] = {}
        """By partition and flight."""
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
            said = await self._ask(own, unknown, case)
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

    async def _ask(self, own: Told, others: Sequence[Told], case: Case) -> list[bool] | None:
        """None: it could not be asked, or did not tell."""
        request = self._request(own, others, case)
        place = case.partition, request.flight
        question = self._asked.get(place)
        try:
            async with asyncio.timeout(self._wait_s):
                if question is None:
                    question = self._asked[place] = _Question(asyncio.get_running_loop().create_future(), len(others))
                    await self._send(case.partition, Call(request=request, route=Route(models=(self._model,), reason="judge"), judge=True))
                return await asyncio.shield(question.verdict)
        except TimeoutError:
            log.warning("a model has not said in time whether answers agree: nothing is learned of them", after_s=self._wait_s)
        except Exception as error:  # whatever the producer raises: nothing was sent
            log.warning("a model was not asked whether answers agree: nothing is learned of them", reason=repr(error))
        self._end(place, None)
        return None

    def _end(self, place: tuple[int, str], said: list[bool] | None) -> None:
        question = self._asked.pop(place, None)
        if question is not None:
            question.verdict.set_result(said)

    def _request(self, own: Told, others: Sequence[Told], case: Case) -> Request:
        whose, body = case.whose, question_of(self._model, own, others)
        answers = (own.digest, *(other.digest for other in others))
        # The same question of the same scope is paid once, whoever brings it up.
        flight = digest([b"judge", self._model.encode(), case.scope.encode(), *(answer.encode() for answer in answers)])
        return Request(
            identity=whose.identity,
            body=body,
            model=self._model,
            fingerprint=flight,
            scope=case.scope,
            flight=flight,
            # Behind a batch job of a million rows the verdict would come when nobody waits for it.
            lane=Lane.STANDARD,
            dimensions=whose.dimensions,
            accepted_ms=self._now(),
            use_cache=False,
            shareable=False,
            cache_ttl_s=0,
        )

    def heard(self, partition: int, record: Completion | Failure) -> None:
        """A judge's call has ended; those that nobody here waits for, too."""
        place = partition, record.flight
        question = self._asked.get(place)
        if question is None:
            return
        if isinstance(record, Failure):
            JUDGED.labels("failed").inc()
            log.warning("a model could not be asked whether answers agree: nothing is learned of them", reason=record.error.message)
            self._end(place, None)
            return
        said = verdicts(record.answer.body, question.answers)
        JUDGED.labels("unreadable" if said is None else "said").inc()
        if said is None:
            log.warning("a model did not say whether answers agree: nothing is learned of them", model=record.answer.model_used)
        self._end(place, said)

    def awaits(self, partition: int, flight: str) -> bool:
        """Does anyone here still want to know?"""
        return (partition, flight) in self._asked

    def forget(self, partitions: Iterable[int]) -> None:
        """They are another worker's now: verdicts about their answers come to nobody here."""
        gone = set(partitions)
        for place in [place for place in self._asked if place[0] in gone]:
            self._end(place, None)

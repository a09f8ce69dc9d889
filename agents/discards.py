"""Paid answers of one request that are held back, because another model of its route may do better, or is to agree."""

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

import structlog

from ..pipeline.errors import EngineError
from ..pipeline.exact import waiter_of
from ..pipeline.judge import by_value, text_of, told_of
from ..pipeline.ledger import Policy
from ..pipeline.models import Model
from ..pipeline.ports import Case, ProviderReply
from ..pipeline.structure import violation
from ..pipeline.unwanted import Why, may_do_better, why_unwanted
from ..schemas.requests import Call
from .attempt import CallParts
from .choice import Choice
from .ledger import OwnedLedger

if TYPE_CHECKING:
    from .attempt import Attempt

log = structlog.get_logger(__name__)

JUDGE_S = 5.0
"""So long a judge may take before two answers are taken for different."""
CHECK_S = 30.0
"""So long a judge may take to grade a cheap answer, before the next model is asked."""
_BEST_FIRST: tuple[Why, ...] = ("agreement", "judge", "structure", "cut_off", "refusal")
"""Of what is given after all, where nothing better came."""


@dataclass(frozen=True, slots=True)
class Held:
    """An answer that is paid, and not given yet."""

    attempt: "Attempt"
    reply: ProviderReply
    paid_pico: int
    why: Why


class Discards:
    """In memory: after a crash they are only costs, and the request goes on with the attempts that are left to it."""

    def __init__(self, parts: CallParts, owned: OwnedLedger, call: Call, choice: Choice) -> None:
        self._p = parts
        self._owned = owned
        self._call = call
        self._choice = choice
        self._held: list[Held] = []
        self.scores: dict[str, float] = {}
        """What a judge found answers to be worth, by attempt."""

    @property
    def pico(self) -> int:
        """What they cost."""
        return sum(held.paid_pico for held in self._held)

    @property
    def best(self) -> Held | None:
        """What to give where the others failed."""
        return min(reversed(self._held), key=lambda held: _BEST_FIRST.index(held.why), default=None)

    async def hold(self, attempt: "Attempt", reply: ProviderReply, paid_pico: int) -> Why | None:
        """Why the answer is held back and the next model asked; None: it is given."""
        request = self._call.request
        if not attempt.ours:
            return None
        why = self._unwanted(reply) or await self._fails_check(attempt, reply)
        if why is None or not self._may_go_on(why, attempt):
            return None
        self._held.append(Held(attempt, reply, paid_pico, why))
        log.info("an answer is held back, and another model asked", flight=request.flight, model=attempt.model.name, reason=why)
        return why

    def _unwanted(self, reply: ProviderReply) -> Why | None:
        request, whom = self._call.request, self._p.settings.fall_back
        if self._call.judge or whom == "never" or (whom == "auto" and request.model != "auto"):
            return None
        return why_unwanted(request.body, reply.body, reply.finish_reason)

    async def _fails_check(self, attempt: "Attempt", reply: ProviderReply) -> Why | None:
        """Of an answer of a cascade's cheap models."""
        route = self._call.route
        if attempt.model.name not in route.models[: route.cheap]:
            return None
        if route.cascade == "structure":
            return "structure" if violation(self._call.request.body, text_of(reply.body)) is not None else None
        if route.cascade == "judge":
            # Where no more may be paid for, the answer is given whatever a judge would say.
            return "judge" if self._may_go_on("judge", attempt) and not await self._passes(attempt, reply) else None
        others = [held.reply for held in self._held if held.why == "agreement"]
        return None if others and await self._agree(reply, others[-1]) else "agreement"

    async def _passes(self, attempt: "Attempt", reply: ProviderReply) -> bool:
        intent, request, p = attempt.intent, self._call.request, self._p
        if p.check is None:
            return False
        # An attempt that has no outcome by then may be taken for lost, and paid for once more.
        ends = min(intent.at_ms + intent.timeout_ms, request.deadline_ms or intent.at_ms + intent.timeout_ms)
        wait_s = min(CHECK_S, (ends - p.now()) / 1000)
        score = await p.check(self._owned.partition, self._call, intent.attempt, reply.body, attempt.is_current, wait_s)
        if score is None:
            return False
        self.scores[intent.attempt] = score
        return score >= p.settings.cascade_score

    async def _agree(self, one: ProviderReply, other: ProviderReply) -> bool:
        own, known = told_of(one.body), told_of(other.body)
        if own is None or known is None:
            return False
        same = by_value(own, known)
        request, judge = self._call.request, self._p.judge()
        if same is None and judge is not None:
            try:
                async with asyncio.timeout(JUDGE_S):
                    [same] = await judge.agree(own, [known], Case(self._owned.partition, request.scope, waiter_of(request)))
            except (EngineError, TimeoutError) as error:
                log.warning("two cheap answers could not be compared: the next model is asked", reason=str(error))
        return bool(same)

    def _may_go_on(self, why: Why, attempt: "Attempt") -> bool:
        request, now = self._call.request, self._p.now()
        if self._p.cancelled(request) or (request.deadline_ms is not None and now >= request.deadline_ms):
            return False
        following = self._choice.next_that(lambda other: may_do_better(why, attempt.model, other))
        if following is None:
            return False
        policy = Policy(self._p.settings.max_attempts, self._p.on_ambiguous(request.identity.tenant), request.max_cost_pico)
        return self._owned.ledger.may_pay_more(request.flight, policy=policy, cap_pico=following[1])

    def go_on(self, model: Model, error: EngineError) -> None:
        """To the next model that may do better. `error`: as the attempt ended, with why the answer was held back as its code."""
        self._choice.go_to_next_that(lambda other: may_do_better(error.code, model, other), error)

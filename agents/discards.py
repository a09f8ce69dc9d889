"""Paid answers of one request that are held back, because another model of its route may do better, or is to agree."""

import asyncio
from typing import TYPE_CHECKING

import structlog

from ..pipeline.errors import EngineError, Rejected, Unavailable
from ..pipeline.exact import waiter_of
from ..pipeline.judge import by_value, text_of, told_of
from ..pipeline.ledger import Policy
from ..pipeline.ports import Case, ProviderReply
from ..pipeline.structure import violation
from ..pipeline.unwanted import SAID, Why, may_do_better, why_unwanted
from ..schemas.ledger import Charged, Completion
from ..schemas.record import JsonObject
from ..schemas.requests import Call
from .attempt import CallParts
from .choice import Choice
from .ledger import UNKNOWN, OwnedLedger

if TYPE_CHECKING:
    from .attempt import Attempt

log = structlog.get_logger(__name__)

JUDGE_S = 5.0
"""So long a judge may take before two answers are taken for different."""
CHECK_S = 30.0
"""So long a judge may take to grade a cheap answer, before the next model is asked."""
_BEST_FIRST: tuple[str, ...] = ("agreement", "judge", "structure", "cut_off", "refusal")
"""Of what is given after all, where nothing better came."""


class Discards:
    """Each is in the ledger before the next model is asked: who owns the flight after a crash takes them up, and goes on behind them."""

    def __init__(self, parts: CallParts, owned: OwnedLedger, call: Call, choice: Choice) -> None:
        self._p = parts
        self._owned = owned
        self._call = call
        self._choice = choice
        self._held: list[Charged] = []
        self._gone: set[str] = set()
        """Attempts whose answers the ledger does not keep any more: they are only costs."""
        self.scores: dict[str, float] = {}
        """What a judge found answers to be worth, by attempt."""

    @property
    def pico(self) -> int:
        """What they cost."""
        return sum(held.paid_pico for held in self._held)

    async def take_up(self) -> None:
        """Learns of those that are in the ledger, and leaves their models. Raises `Unavailable`: one can't be read yet."""
        known = {held.attempt for held in self._held} | self._gone
        flight, partition = self._call.request.flight, self._owned.partition
        for attempt, offset in self._owned.ledger.withheld(flight):
            if attempt in known:
                continue
            if offset == UNKNOWN:
                await self._owned.news(flight, 1.0, self._p.sleep)
                raise Unavailable("an answer that was held back is durable, and where is not known until it is read back")
            try:
                held = await self._p.ledger.withheld(partition, offset, attempt)
            except Rejected as error:
                log.error("an answer that was held back can't be given any more", flight=flight, reason=str(error))
                self._gone.add(attempt)
                continue
            self.keep(held)
            self.go_on(held.model, Rejected(f"{SAID[held.discarded]} ({held.model})", code=held.discarded))
            log.info("an answer that was held back before is taken up", flight=flight, model=held.model, reason=held.discarded)

    def keep(self, record: Charged) -> None:
        """It is durable, and may be given after all."""
        self._held.append(record)

    def given(self) -> Completion | None:
        """What to write down where the others failed; None where nothing is held."""
        kept = [held for held in self._held if held.answer is not None]
        best = min(reversed(kept), key=lambda held: _BEST_FIRST.index(held.discarded), default=None)
        if best is None or best.answer is None:
            return None
        others = self.pico - best.paid_pico
        return self._owned.ledger.completion(self._call, best, best.answer, self._p.now(), discarded_pico=others)

    async def why_hold(self, attempt: "Attempt", reply: ProviderReply) -> Why | None:
        """Why the answer is held back and the next model asked; None: it is given."""
        request = self._call.request
        if not attempt.ours:
            return None
        why = self._unwanted(reply) or await self._fails_check(attempt, reply)
        if why is None or not self._may_go_on(why, attempt):
            return None
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
        # Another model's: a call that hedged the first one says the same by no merit.
        cheap = (held for held in self._held if held.discarded == "agreement" and held.model != attempt.model.name)
        others = [held.answer for held in cheap if held.answer is not None]
        return None if others and await self._agree(reply.body, others[-1].body) else "agreement"

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

    async def _agree(self, one: JsonObject, other: JsonObject) -> bool:
        own, known = told_of(one), told_of(other)
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

    def go_on(self, name: str, error: EngineError) -> None:
        """Behind this model, to the next one that may do better. `error`: its code says why the answer was held back."""
        try:
            model = self._p.catalogue.get(name)
        except Rejected:
            self._choice.leave(name, lambda _: True, error)
        else:
            self._choice.leave(name, lambda other: may_do_better(error.code, model, other), error)

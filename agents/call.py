"""Runs the call stage: pays for an answer at most as often as the ledger allows, and writes down what it cost.

    decide -> permit -> decide again -> INTENT (fenced, committed) -> send -> COMPLETION (durable) -> return

Everything that can be lost by a crash is lost on the safe side: before the intent nothing was sent; after it the attempt is
open, and whoever owns the partition next waits for it, books it at its cap and only then pays again.
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from functools import partial
from typing import Any, Protocol

import structlog

from ..connectors.crash_points import crash_at
from ..pipeline.call import (
    MOST_REFUSALS,
    MOST_TRIES,
    Tried,
    backoff_s,
    estimate_output,
    estimate_tokens,
    exhausted,
    over_cap,
    purpose_of,
    why_stop,
)
from ..pipeline.errors import Rejected, Stale, Unavailable
from ..pipeline.ledger import BookAmbiguous, Completed, Decision, Exhausted, Failed, OverCap, Pay, Policy, WaitUntil
from ..pipeline.models import Model
from ..pipeline.unwanted import SAID
from ..schemas.answers import ErrorInfo
from ..schemas.ledger import Ambiguous, Intent, LedgerRecord, Purpose, Unpaid
from ..schemas.record import Lane
from ..schemas.requests import Call
from .attempt import Attempt, CallParts, IsCurrent
from .choice import Choice
from .discards import Discards
from .hedge import Hedging
from .ledger import UNKNOWN, OwnedLedger
from .limits import Permit
from .packer import WAIT_S
from .prefix import Seat
from .steps import Steps

log = structlog.get_logger(__name__)

STOPPING = "the worker stops: the next owner of the partition takes up the call"


class Batches(Protocol):
    """What the stage needs of `provider_batch`."""

    async def take(self, owned: OwnedLedger, call: Call) -> bool: ...


class CallStage:
    """Pays for the calls of the ledger partitions that this worker owns."""

    def __init__(self, parts: CallParts) -> None:
        self.parts = parts
        self._paying: set[asyncio.Task[Tried | None]] = set()
        self._waiting: set[asyncio.Task[Any]] = set()
        self._steps: set[Steps] = set()
        self._moves: Counter[int] = Counter()
        self._stopping = False
        self.batches: Batches | None = None
        """Where calls go that have time; None: every call is made at once."""

    def in_order(self, calls: Sequence[Call]) -> list[Call]:
        """Calls that share a prefix side by side: they are begun, and so are mostly sent, in this order."""
        return [calls[i] for i in self.parts.prefixes.in_order([call.request for call in calls], [call.group for call in calls])]

    def progress(self) -> dict[str, int]:
        """By flight, how many steps each call has made that is not waiting for its turn."""
        return {steps.flight: steps.count for steps in self._steps if not steps.queued}

    def moves(self, partition: int) -> int | None:
        """What has become durable for the partition's calls so far, counted; None while some of them wait for their turn."""
        return None if any(s.queued and s.partition == partition for s in self._steps) else self._moves[partition]

    async def run(self, partition: int, call: Call, lane: Lane, is_current: IsCurrent, *, held: bool = False) -> None:
        """Returns when the outcome of the call is durable, or the ledger owns it; of one that is `held` there only the outcome counts.

        Raises `Stale` where the partition is not ours any more, or the
        worker stops: the call must stay unacknowledged. `is_current`: is the event that brought the call still ours?"""
        if self._stopping:
            raise Stale(STOPPING)
        task = asyncio.current_task()
        assert task is not None
        self._waiting.add(task)
        steps = Steps(partition, call.request.flight, self._moves)
        self._steps.add(steps)
        try:
            owned = await self.parts.ledger.owned(partition)
            async with AsyncExitStack() as turn:
                with steps.in_queue():
                    await turn.enter_async_context(owned.one_at_a_time(call.request.flight))
                if self.batches is not None and not held and await self.batches.take(owned, call):
                    return
                await _Payment(self.parts, owned, call, lane, is_current, self._detached, steps).settle()
        except asyncio.CancelledError:
            if self._stopping:
                raise Stale(STOPPING) from None
            raise
        finally:
            self._waiting.discard(task)
            self._steps.discard(steps)
        crash_at("before_ack")

    async def drain(self, grace_s: float) -> int:
        """Begins no more payments, and waits for those under way to write what they cost: so the producer must still run.

        Returns how many were cut short and stay open in the ledger: the next owner settles them, and it answers from the ledger
        what was paid here.
        """
        self._stopping = True
        for waiting in self._waiting:
            waiting.cancel()
        if not self._paying:
            return 0
        _, late = await asyncio.wait(self._paying, timeout=grace_s)
        for task in late:
            task.cancel()
        await asyncio.gather(*late, return_exceptions=True)
        return len(late)

    async def _detached(self, work: Awaitable[Tried | None]) -> Tried | None:
        # A call that is sent is paid: losing the partition, or a stopping worker, must not lose its answer.
        task = asyncio.ensure_future(work)
        self._paying.add(task)
        task.add_done_callback(self._paying.discard)
        return await asyncio.shield(task)


class _Payment:
    """One call on its way to its outcome."""

    def __init__(
        self,
        parts: CallParts,
        owned: OwnedLedger,
        call: Call,
        lane: Lane,
        is_current: IsCurrent,
        detached: Callable[[Awaitable[Tried | None]], Awaitable[Tried | None]],
        steps: Steps,
    ) -> None:
        self._p = parts
        self._owned = owned
        self._call = call
        self._request = call.request
        self._lane = lane
        self._is_current = is_current
        self._detached = detached
        self._steps = steps
        self._since_ms = parts.now()
        self._choice = Choice(parts, call, lane)
        self._discards = Discards(parts, owned, call, self._choice)
        self._hedging = Hedging(parts, call.request.identity.tenant, allowed=not call.judge)

    async def settle(self) -> None:
        while True:
            self._steps.count += 1
            self._check()
            try:
                await self._discards.take_up()
            except Unavailable as error:
                log.warning("nothing is paid until all is known that was", flight=self._request.flight, reason=str(error))
                await self._rest(None)
                continue
            candidate = self._choice.candidate()
            if await self._follow(self._decide(candidate), candidate):
                return

    async def _follow(self, decision: Decision, candidate: tuple[Model, int] | None) -> bool:
        """Does what the ledger says. True: the outcome is durable."""
        match decision:
            case Completed(offset) | Failed(offset):
                if self._wanted() and not await self._answer_again(offset):
                    return False
                await self._settle_leftovers()
                return True
            case WaitUntil() | BookAmbiguous():
                await self._settle_open(decision)
            case Exhausted(attempts=n):
                return await self._fail(exhausted(n, self._choice.error))
            case OverCap(spent):
                self._choice.next_model(over_cap(self._request.max_cost_pico, spent))
            case Pay():
                stop = self._stop(candidate)
                if stop is not None:
                    return await self._fail(stop)
                assert candidate is not None
                return await self._pay(*candidate)
        return False

    async def _settle_open(self, decision: WaitUntil | BookAmbiguous) -> None:
        """Waits as long as an open attempt may be answered; then books it, once the log has been read that far."""
        if isinstance(decision, WaitUntil):
            wait_s = max(0, decision.ms - self._p.now()) / 1000
            await self._owned.news(self._request.flight, wait_s, self._p.sleep)
        elif self._owned.read_ms < decision.since_ms:
            await self._p.ledger.catch_up(self._owned, decision.since_ms)
        else:
            for a in decision.attempts:
                await self._book(
                    Ambiguous(
                        flight=self._request.flight,
                        attempt=a.attempt,
                        number=a.number,
                        model=a.model,
                        cap_pico=a.cap_pico,
                        reason="the worker that sent it stopped before it wrote an outcome",
                        request=self._request,
                        at_ms=self._p.now(),
                    )
                )

    async def _settle_leftovers(self) -> None:
        """The flight has ended, and everyone has its answer; another attempt of it may have been paid all the same."""
        flight, owner = self._request.flight, self._owned.owner
        while (open_ := self._owned.ledger.leftover(flight, now_ms=self._p.now(), owner=owner)) is not None:
            self._check()
            await self._settle_open(open_)

    # --- what may be done --------------------------------------------------------------------------------------------

    def _check(self) -> None:
        self._owned.check()
        if not self._is_current():
            raise Stale(f"the call of {self._request.identity.custom_id} belongs to another worker by now: it is not paid here")

    def _decide(self, candidate: tuple[Model, int] | None, *, hedge: bool = False) -> Decision:
        policy = Policy(
            self._p.settings.max_attempts,
            self._p.on_ambiguous(self._request.identity.tenant),
            self._request.max_cost_pico if candidate else None,
        )
        return self._owned.ledger.decide(
            self._request.flight,
            now_ms=self._p.now(),
            owner=self._owned.owner,
            policy=policy,
            cap_pico=candidate[1] if candidate else 0,
            asked_ms=self._request.accepted_ms,
            hedge=hedge,
        )

    def _wanted(self) -> bool:
        """Does anyone wait for what is said? Nobody does for labels, which are made all the same."""
        return not self._call.judge or self._p.awaited(self._owned.partition, self._request.flight)

    def _stop(self, candidate: tuple[Model, int] | None) -> ErrorInfo | None:
        if self._call.asks != "grade" and not self._wanted():
            return ErrorInfo(code="not_awaited", message="the worker that wanted to know whether answers agree is gone: it is not paid for")
        return why_stop(
            cancelled=self._p.cancelled(self._request),
            now_ms=self._p.now(),
            deadline_ms=self._request.deadline_ms,
            model_left=candidate is not None,
            error=self._choice.error,
            since_ms=self._since_ms,
            give_up_s=self._p.settings.give_up_s,
        )

    # --- one attempt -------------------------------------------------------------------------------------------------

    async def _pay(self, model: Model, cap_pico: int) -> bool:
        seat = self._p.prefixes.enter(model, self._request, self._lane)
        try:
            with self._steps.in_queue():
                await seat.ready(self._left_s())
            permit = await self._permit(model, first=seat.writes)
            if permit is None:
                return False
            # From the intent on it runs to its end: cut between intent and send, a call that cost nothing would look as if it had.
            first = self._detached(self._attempt(model, cap_pico, permit, seat))
            tried = await self._hedging.run(
                first,
                permit,
                partial(self._choice.tier, model),
                ask=partial(self._permit, model),
                again=lambda second: self._detached(self._attempt(model, cap_pico, second, seat, permit)),
            )
        except Unavailable as error:
            log.warning("an intent was not written, nothing was sent", flight=self._request.flight, reason=str(error))
            await self._rest(None)
            return False
        finally:
            seat.leave()
        if tried is None:
            return False
        self._steps.moved()
        return await self._after(tried, model)

    async def _attempt(self, model: Model, cap_pico: int, permit: Permit, seat: Seat, first: Permit | None = None) -> Tried | None:
        """None where nothing may be sent now: decide again. `first`: of the call that this one hedges.

        Raises `Unavailable` where the intent was rolled back.
        """
        intending, flight = self._owned.intending, self._request.flight
        try:
            if flight in intending:
                raise Unavailable("an intent of this flight is being written for a handler that was ended meanwhile")
            intending.add(flight)
            try:
                tier = "standard" if first is not None else self._choice.tier(model)
                intent = await self._intend(model, cap_pico, tier, purpose_of(self._call, model.name) if first is None else "hedge")
            finally:
                intending.discard(flight)
            if intent is None:
                return None
            attempt = Attempt(self._p, self._owned, self._call, self._lane, self._is_current, model, intent, permit, seat,
                              self._discards, first, tier)  # fmt: skip
            if tier == "standard":
                return await attempt.run()
            # It may take as long as it takes.
            with self._steps.in_queue():
                return replace(await attempt.run(), flex=True)
        finally:
            permit.release()

    def _left_s(self) -> float | None:
        """Until the deadline; None where there is none."""
        deadline = self._request.deadline_ms
        return None if deadline is None else max(0, deadline - self._p.now()) / 1000

    async def _permit(self, model: Model, *, first: bool = False) -> Permit | None:
        """None where the deadline passed while waiting, or a model that failed was waited for long enough."""
        now, body = self._p.now(), self._request.body
        ends = [] if self._request.deadline_ms is None else [self._request.deadline_ms]
        if self._choice.error is not None:
            ends.append(self._since_ms + int(self._p.settings.give_up_s * 1000) + 1)
        tokens, output = estimate_tokens(model, body), estimate_output(model, body)
        acquired = self._p.limits.acquire(
            model, self._lane, self._request.identity.tenant, tokens, output, failed=self._choice.failures > 0, first=first
        )
        try:
            with self._steps.in_queue():
                if not ends:
                    return await acquired
                async with asyncio.timeout(max(0, min(ends) - now) / 1000):
                    return await acquired
        except TimeoutError:
            return None

    async def _intend(self, model: Model, cap_pico: int, tier: str, purpose: Purpose) -> Intent | None:
        """None where nothing may be sent now: decide again."""
        # The wait for the permit was long, perhaps: everything is asked once more.
        self._check()
        decision = self._decide((model, cap_pico), hedge=purpose == "hedge")
        if not isinstance(decision, Pay) or self._stop((model, cap_pico)) is not None:
            return None
        settings, number = self._p.settings, decision.number
        flight, epoch = self._request.flight, self._owned.owner.epoch
        intent = Intent(
            flight=flight,
            attempt=f"{flight[:24]}-{number}-{epoch}",
            number=number,
            purpose=purpose,
            model=model.name,
            cap_pico=cap_pico,
            epoch=epoch,
            at_ms=self._p.now(),
            timeout_ms=int((self._p.timeout_s(tier) + settings.intent_slack_s) * 1000),
        )
        crash_at("before_intent")
        try:
            await self._p.ledger.intend(self._owned, intent, urgent=self._lane is Lane.EXPRESS)
        except Unavailable as error:
            # Rolled back, but who reads the log uncommitted sees it: without this it would be waited for, and count as an attempt.
            await self._book(Unpaid(flight=flight, attempt=intent.attempt, number=number, reason=str(error), at_ms=self._p.now()))
            raise
        crash_at("after_intent")
        return intent

    async def _after(self, tried: Tried, model: Model) -> bool:
        if tried.next == "done":
            return True
        if tried.flex:
            self._choice.flex_tries += 1
            if tried.rate_limited:
                # It says nothing about the model: the plain call that follows at last begins as if nothing had been.
                await self._p.sleep(backoff_s(self._choice.flex_tries - 1, self._p.random))
                return False
        if not tried.rate_limited or self._choice.tries >= MOST_REFUSALS:
            # Waiting for one's turn at a provider that is well is not failing, as long as it ends.
            self._choice.error = tried.error
        if tried.next == "give_up":
            error = tried.error or Rejected("the provider refused the request")
            return await self._fail(ErrorInfo(code=error.code, message=str(error)))
        if tried.next == "next_model":
            error = tried.error or Rejected("the model can't serve the request")
            if error.code in SAID:
                self._discards.go_on(model.name, error)
            else:
                self._choice.next_model(error)
            return False
        if not tried.rate_limited:
            self._choice.failures += 1
            if self._choice.failures >= MOST_TRIES and self._choice.to_one_that_is_well():
                return False
        await self._rest(tried.retry_after_s)
        return False

    async def _rest(self, retry_after_s: float | None) -> None:
        # A named time is waited for by the model's pace; calls that were told the same don't all come back at once.
        if retry_after_s is None:
            await self._p.sleep(backoff_s(self._choice.tries, self._p.random))
        self._choice.tries += 1

    # --- outcomes ----------------------------------------------------------------------------------------------------

    async def _answer_again(self, offset: int) -> bool:
        if offset == UNKNOWN:
            await self._owned.news(self._request.flight, 1.0, self._p.sleep)
            return False
        try:
            record = await self._p.ledger.fetch(self._owned.partition, offset, self._request.flight)
        except Unavailable as error:
            log.warning("a paid answer can't be read back yet", flight=self._request.flight, reason=str(error))
            await self._rest(None)
            return False
        except Rejected as error:
            return await self._fail(ErrorInfo(code=error.code, message=str(error)))
        await self._p.reemit(self._owned.partition, record)
        return True

    async def _fail(self, error: ErrorInfo) -> bool:
        given = self._discards.given()
        if given is not None:
            # It was paid for, and the others gave none.
            await self._book(given)
            return True
        purpose: Purpose = self._call.asks if self._call.judge else "answer"
        await self._book(self._owned.ledger.failure(self._request.flight, self._request, error, self._p.now(), purpose))
        return True

    async def _book(self, record: LedgerRecord) -> None:
        await self._p.ledger.book(self._owned.partition, record, WAIT_S[self._lane])
        self._steps.moved()

"""One attempt of a call: from the committed intent to the durable outcome."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import structlog

from ..connectors.crash_points import crash_at
from ..connectors.providers.accounts import Accounts
from ..pipeline.billing import billed_tier
from ..pipeline.breaker import verdict
from ..pipeline.call import OF_THE_KEY, Tried, after
from ..pipeline.errors import Ambiguous as AmbiguousError
from ..pipeline.errors import Charged as ChargedError
from ..pipeline.errors import EngineError, Rejected, Unavailable, Unpriced
from ..pipeline.hedge import HedgeBudget, HedgePolicy
from ..pipeline.ledger import OnAmbiguous
from ..pipeline.models import Catalogue, Model
from ..pipeline.ports import Judge, Provider, ProviderReply
from ..pipeline.provider_batch import FLEX_TIMEOUT_S, WayPrices
from ..pipeline.unwanted import SAID, FallBack, Why
from ..schemas import packets
from ..schemas.answers import Answer, Usage
from ..schemas.ledger import Ambiguous, Charged, Completion, Failure, Intent, LedgerRecord, Unpaid
from ..schemas.record import JsonObject, Lane
from ..schemas.requests import Call, Request
from .ledger import LedgerStage, OwnedLedger, Sleep
from .limits import Limits, Permit
from .packer import WAIT_S, Now
from .prefix import PrefixRoom, Seat

if TYPE_CHECKING:
    from .discards import Discards

log = structlog.get_logger(__name__)

IsCurrent = Callable[[], bool]
Cap = Callable[[Model, JsonObject], int]
"""The most that a call can cost now, in pico-dollars. Raises `Unpriced`."""
Price = Callable[[Model, Usage, str, int], int]
"""(model, usage, service tier, sent at ms) -> pico-dollars. Raises `Unpriced`."""
KEY_REST_S = 60.0
"""So long a key that was refused is not used, where there are others."""

Reemit = Callable[[int, Completion | Failure], Awaitable[None]]


class Check(Protocol):
    """Says what a cheap answer of a cascade is worth, before it is given."""

    async def __call__(
        self, partition: int, call: Call, attempt: str, answer: JsonObject, is_current: IsCurrent, wait_s: float
    ) -> float | None:
        """`answer`: the body of what `attempt` brought. 0 to 1; None where nobody told within `wait_s` seconds."""
        ...


@dataclass(frozen=True, slots=True)
class CallSettings:
    """Times in seconds."""

    max_attempts: int = 3
    call_timeout_s: float = 120.0
    intent_slack_s: float = 15.0
    """An intent that took longer to commit is not sent any more: its answer could come after its time."""
    give_up_s: float = 600.0
    """So long a request is tried again while its attempts cost nothing."""
    max_record_bytes: int = 900_000
    """A completion above this can't be written to the ledger."""
    stream: bool = False
    """Answers are asked for as streams."""
    fall_back: FallBack = "auto"
    """For whom another model is asked where one refuses, or is cut off."""
    cascade_score: float = 0.7
    """From which the check of a cascade accepts a cheap answer, 0 to 1."""


@dataclass(frozen=True, slots=True)
class CallParts:
    """What the stage works with."""

    catalogue: Catalogue
    providers: Mapping[str, Provider]
    ledger: LedgerStage
    limits: Limits
    prefixes: PrefixRoom
    cap: Cap
    price: Price
    reemit: Reemit
    """Answers again from a record of this partition of the ledger; returns when that is durable."""
    cancelled: Callable[[Request], bool]
    on_ambiguous: Callable[[str], OnAmbiguous]
    """By tenant."""
    now: Now
    sleep: Sleep
    random: Callable[[], float]
    settings: CallSettings = field(default_factory=CallSettings)
    prices: Callable[[Model, JsonObject], WayPrices] | None = None
    """What a call costs at each tier; None: only the plain one is asked for. Raises `Unpriced`."""
    awaited: Callable[[int, str], bool] = lambda _partition, _flight: True
    """Does anyone still wait for what this call of a judge says?"""
    hedge: HedgePolicy = field(default_factory=HedgePolicy)
    hedges: HedgeBudget = field(default_factory=HedgeBudget)
    judge: Callable[[], Judge | None] = lambda: None
    """Compares the answers of a cascade that are free text."""
    check: Check | None = None
    """None: nobody grades, and no cheap answer passes."""

    def timeout_s(self, tier: str) -> float:
        return max(FLEX_TIMEOUT_S, self.settings.call_timeout_s) if tier == "flex" else self.settings.call_timeout_s

    def account(self, provider: str, key: int) -> Provider:
        """The provider, with the key of this number."""
        found = self.providers[provider]
        return found.accounts[key] if isinstance(found, Accounts) else found


@dataclass(frozen=True, slots=True)
class Attempt:
    """From the committed intent to the durable outcome. Runs to its end even if the partition is lost meanwhile."""

    p: CallParts
    owned: OwnedLedger
    call: Call
    lane: Lane
    is_current: IsCurrent
    model: Model
    intent: Intent
    permit: Permit
    seat: Seat
    discards: "Discards"
    """Of its request."""
    first: Permit | None = None
    """Of the call that this one hedges."""
    tier: str = "standard"
    """How it is sent. A row of a batch is billed as such, though its line reports the plain tier."""

    @property
    def ours(self) -> bool:
        """Whether this worker may still pay for the request."""
        return self.owned.lost is None and self.is_current()

    async def run(self) -> Tried:
        try:
            return await self._send()
        finally:
            # Where nothing was sent, or it failed.
            self.permit.release()
            self.seat.land()

    async def _send(self) -> Tried:
        intent, settings = self.intent, self.p.settings
        # No await between this check and the send: a worker that stood still finds out here that its time is over.
        late_ms = self.p.now() - intent.at_ms
        if self.owned.lost is not None or not self.is_current() or not 0 <= late_ms <= settings.intent_slack_s * 1000:
            return await self._unpaid(Unavailable("it was not sent: the intent was committed too late, or the partition was lost"))
        if self.first is not None and self.first.well:
            return await self._unpaid(Unavailable("it was not sent: the first call was answered while this one was being written down"))
        try:
            reply = await self._complete()
        except EngineError as error:
            return await self.settle(error)
        except TimeoutError:
            return await self._ambiguous(AmbiguousError(f"no answer within {self.p.timeout_s(self.tier):.0f} s"))
        except Exception as error:
            log.exception("a provider raised what its port does not allow", provider=self.model.provider)
            return await self._ambiguous(AmbiguousError(f"the provider's client failed: {error!r}"))
        crash_at("after_send")
        return await self.settle(reply)

    async def settle(self, result: ProviderReply | EngineError) -> Tried:
        """Writes down what the attempt came to; returns when that is durable."""
        if isinstance(result, ProviderReply):
            return await self._completed(result)
        if isinstance(result, Rejected | Unavailable):
            return await self._unpaid(result)
        if isinstance(result, ChargedError):
            return await self._charged(result)
        if not isinstance(result, AmbiguousError):
            log.error("a provider raised what its port does not allow", provider=self.model.provider, error=repr(result))
            result = AmbiguousError(f"the provider's client failed: {result!r}")
        return await self._ambiguous(result)

    async def _complete(self) -> ProviderReply:
        """The call itself. Its permit is free as soon as it is over: what it came to is written down afterwards."""
        intent, timeout, permit = self.intent, self.p.timeout_s(self.tier), self.permit
        try:
            async with asyncio.timeout(timeout + 1):
                reply = await self.p.account(self.model.provider, permit.key).complete(
                    self.model,
                    self._body(),
                    timeout=timeout,
                    metadata={"flight": intent.flight, "attempt": intent.attempt},
                    begun=self.seat.begun,
                )
            self.seat.land(reply.usage)
            permit.used, permit.rates, permit.well = (reply.usage.input_tokens, reply.usage.output_tokens), reply.rates, True
            return reply
        except EngineError as error:
            self._failed(error)
            raise
        except Exception:
            permit.well = False
            raise
        finally:
            permit.release()

    def _body(self) -> JsonObject:
        body = self.seat.board(self.call.request.body)
        if self.p.settings.stream:
            body = {**body, "stream": True}
        return {**body, "service_tier": "flex"} if self.tier == "flex" else body

    def _failed(self, error: EngineError) -> None:
        """What a failed call says about its model and its key. Raises where another key may be tried."""
        permit, limits = self.permit, self.p.limits
        permit.well = verdict(error)
        if isinstance(error, Unavailable | Rejected):
            permit.used = (0, 0)
        if self.tier == "flex" and isinstance(error, Unavailable) and error.code not in OF_THE_KEY:
            # Only that tier is busy: it says nothing about the model, and other calls of it don't wait for it.
            permit.well = None
            raise Unavailable(str(error), code=error.code, rate_limited=True) from error
        if isinstance(error, Unavailable):
            permit.rates, permit.rate_limited = error.rates, error.rate_limited
            if error.retry_after is not None:
                # What one call was told holds for all calls of the model with this key.
                limits.pause(self.model, error.retry_after, permit.key)
        if error.code in OF_THE_KEY and limits.keys_of(self.model) > 1:
            permit.well = None
            limits.pause(self.model, KEY_REST_S, permit.key)
            raise Unavailable(f"{error} (key {permit.key + 1}; the others are used meanwhile)", code=error.code) from error

    async def _completed(self, reply: ProviderReply) -> Tried:
        try:
            paid = self._paid(reply.usage, reply.service_tier)
        except Unpriced as error:
            # Booked at its cap, since its price is not known; and no more money goes where we can't tell the price.
            await self._ambiguous(AmbiguousError(str(error)))
            return Tried("give_up", error)
        answer = Answer(body=reply.body, model_used=self.model.name, usage=reply.usage, paid_pico=paid, finish_reason=reply.finish_reason,
                        request_id=reply.request_id)  # fmt: skip
        why = await self.discards.why_hold(self, reply)
        if why is not None:
            return await self._held_back(answer, why)
        record = self.owned.ledger.completion(
            self.call, self.intent, answer, self.p.now(), discarded_pico=self.discards.pico, judged=self._judged
        )
        encoded = packets.ledger.encode_one(record)
        if len(encoded) > self.p.settings.max_record_bytes:
            said = "the answer is larger than a record of the ledger can be"
            too_large = ChargedError(said, usage=reply.usage, service_tier=reply.service_tier, code="answer_too_large")
            await self._charged(too_large)
            return Tried("give_up", too_large)
        await self._book(record, encoded)
        crash_at("after_completion")
        return Tried("done")

    @property
    def _judged(self) -> float | None:
        return self.discards.scores.get(self.intent.attempt)

    def _paid(self, usage: Usage, service_tier: str) -> int:
        """What the call was billed, in pico-dollars. Raises `Unpriced`."""
        return self.p.price(self.model, usage, billed_tier(service_tier, batch=self.tier == "batch"), self.intent.at_ms)

    async def _charged(self, error: ChargedError) -> Tried:
        try:
            paid = self._paid(error.usage, error.service_tier)
        except Unpriced as unpriced:
            await self._ambiguous(AmbiguousError(f"{error}; {unpriced}"))
            return Tried("give_up", unpriced)
        await self._book(self._charge(error.usage, paid, str(error)))
        return after(error)

    async def _held_back(self, answer: Answer, why: Why) -> Tried:
        """Its cost stands, and is the next answer's to bear. Whoever owns the flight then finds it in the ledger, to give it after all."""
        record = self._charge(answer.usage, answer.paid_pico, SAID[why]).model_copy(
            update={
                "discarded": why,
                "chosen": self.call.route.chosen,
                "embedding": self.call.embedding,
                "answer": answer,
                "judged": self._judged,
            }
        )
        encoded = packets.ledger.encode_one(record)
        if len(encoded) > self.p.settings.max_record_bytes:
            # It could not be given either: a completion would be as large.
            record = record.model_copy(update={"answer": None})
            encoded = packets.ledger.encode_one(record)
        await self._book(record, encoded)
        self.discards.keep(record)
        crash_at("after_held_back")
        return Tried("next_model", Rejected(f"{SAID[why]} ({self.model.name})", code=why))

    def _charge(self, usage: Usage, paid: int, reason: str) -> Charged:
        intent = self.intent
        return Charged(flight=intent.flight, attempt=intent.attempt, number=intent.number, model=self.model.name, paid_pico=paid,
                       usage=usage, reason=reason, request=self.call.request, purpose=intent.purpose, cap_pico=intent.cap_pico,
                       at_ms=self.p.now())  # fmt: skip

    async def _ambiguous(self, error: AmbiguousError) -> Tried:
        await self._book(
            Ambiguous(
                flight=self.intent.flight,
                attempt=self.intent.attempt,
                number=self.intent.number,
                model=self.model.name,
                cap_pico=self.intent.cap_pico,
                reason=str(error),
                request=self.call.request,
                at_ms=self.p.now(),
            )
        )
        return after(error)

    async def _unpaid(self, error: EngineError) -> Tried:
        await self._book(
            Unpaid(flight=self.intent.flight, attempt=self.intent.attempt, number=self.intent.number, reason=str(error), at_ms=self.p.now())
        )
        return after(error)

    async def _book(self, record: LedgerRecord, encoded: bytes | None = None) -> None:
        await self.p.ledger.book(self.owned.partition, record, WAIT_S[self.lane], encoded)

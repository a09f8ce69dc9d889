"""What becomes of a ledger record, and what a waiter is told: answers, responses, cost events."""

from dataclasses import dataclass
from decimal import Decimal
from typing import Literal

from ..schemas.answers import Answer, AnswerRecord, ErrorInfo, Source, Usage, VectorRecord
from ..schemas.costs import CostEvent
from ..schemas.ledger import ASKING, Ambiguous, Charged, Completion, Failure, LedgerRecord
from ..schemas.record import PICO_PER_USD, JsonObject
from ..schemas.requests import Identity, Lookup, Miss, Request, Waiter
from ..schemas.responses import CacheInfo, EngineInfo, ErrorPart, ResponseLine, ResponsePart, Savings
from .billing import SavingsSplit, split_paid
from .errors import Rejected, Unpriced
from .exact import alone, fresh, handed_on, shared, waiter_of
from .fingerprint import digest
from .grade_question import score_of
from .judge import told
from .models import Catalogue
from .prices import day_of
from .text import last_user_text
from .unwanted import OF_A_CASCADE

PERSONAL = frozenset({"over_budget", "cancelled", "deadline_passed"})
"""Errors that are the owner's alone: others who wait for the same answer go on without it."""

ANSWERING = frozenset({"answer", "hedge", "audit", "exploration"})
"""Purposes of calls whose completion answers the request that they were made for."""

ANSWERED = 2
"""Version of the row of a completed attempt. It takes the place of one that says only what was paid: an answer that was held back is given
after all, or two owners of a batch, one after the other, have judged its row differently."""

Tier = Literal["provider", "exact", "semantic", "coalesced"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """All that follows from one ledger record."""

    answer: AnswerRecord | None = None
    vector: VectorRecord | None = None
    cost: CostEvent | None = None


@dataclass(frozen=True, slots=True)
class Clerk:
    """Writes answers, responses and cost events; pure, given the catalogue and the prices."""

    catalogue: Catalogue

    def account(self, answer: Answer, requested: str, tier: Tier, at_ms: int) -> SavingsSplit:
        """What the answer cost beside what it would have cost, by cause."""
        found: Literal["none", "exact", "semantic", "coalesced"] = "none" if tier == "provider" else tier
        paid = answer.paid_pico if tier == "provider" else 0
        try:
            used = self.catalogue.priced(answer.model_used)
            usual = self.catalogue.counterfactual(requested)
            return split_paid(usual, used, answer.usage, answer.paid_pico, day_of(at_ms), found)
        except (Rejected, Unpriced):
            # The model left the catalogue since, or the table lost its price: what was paid stands, no saving is claimed.
            return SavingsSplit(counterfactual=paid, paid=paid)

    def outcome(self, record: LedgerRecord, *, first: bool = True) -> Outcome:
        """What the respond stage writes for a ledger record. `first`: no completion of this flight came before."""
        if isinstance(record, Completion):
            return self._completed(record) if first and record.purpose in ANSWERING else Outcome(cost=self._extra(record))
        if isinstance(record, Failure):
            return self._failed(record) if record.purpose not in ASKING else Outcome()
        if isinstance(record, Ambiguous):
            # Version 0: should it turn out what the attempt has cost, that row takes this one's place.
            return Outcome(cost=_event(record.request, record.at_ms, event_id=record.attempt, kind="ambiguous", attempt_id=record.attempt,
                                       model_used=record.model, provider=self._provider(record.model),
                                       ambiguous_cap_pico=record.cap_pico))  # fmt: skip
        if isinstance(record, Charged):
            # What was held back for another model's answer is that choice's cost: routing has saved so much less.
            held = _held_back(record) if record.discarded else {}
            return Outcome(cost=_event(record.request, record.at_ms, event_id=record.attempt, version=1, kind="charged",
                                       attempt_id=record.attempt, model_used=record.model, provider=self._provider(record.model),
                                       base_cost_pico=record.paid_pico, **held, **_tokens(record.usage)))  # fmt: skip
        return Outcome()

    def again(self, record: Completion | Failure, now_ms: int) -> AnswerRecord | None:
        """The answer of a flight that ended before, read back from the ledger.

        Past its time to live it is its owner's alone, who must not be paid for twice; others are flown for anew.
        """
        answer = self.outcome(record).answer
        if answer is None or answer.answer is None or fresh(answer, now_ms, answer.ttl_s):
            return answer
        return answer.model_copy(update={"cacheable": False, "request": record.request})

    def _provider(self, model: str) -> str:
        try:
            return self.catalogue.priced(model).provider
        except Rejected:
            return ""

    def _extra(self, record: Completion) -> CostEvent:
        kind = "duplicate" if record.purpose in ANSWERING else "judge" if record.purpose in ASKING else record.purpose
        answer = record.answer
        score = score_of(answer.body) if record.purpose in ("grade", "cascade") else None
        # A check of a cheap answer is what its choice costs: routing has saved so much less.
        checked = {"saved_routing_pico": -answer.paid_pico} if record.purpose == "cascade" else {}
        return _event(record.request, record.at_ms, event_id=record.attempt, version=ANSWERED, kind=kind, attempt_id=record.attempt,
                      model_used=answer.model_used, provider=self._provider(answer.model_used), base_cost_pico=answer.paid_pico,
                      purpose=record.purpose, score=score, **checked, **_tokens(answer.usage))  # fmt: skip

    def in_vain(self, owner: Waiter, record: AnswerRecord) -> CostEvent:
        """The row of a call whose request had been answered by then: it takes the place of the one that the ledger's completion gave."""
        answer = record.answer
        assert answer is not None
        attempt = record.source.attempt
        return _event(owner, record.created_ms, event_id=attempt, version=3, kind="duplicate", attempt_id=attempt,
                      model_used=answer.model_used, provider=self._provider(answer.model_used), base_cost_pico=answer.paid_pico,
                      **_tokens(answer.usage))  # fmt: skip

    def _completed(self, record: Completion) -> Outcome:
        request, answer = record.request, record.answer
        cacheable = request.use_cache and complete(answer)
        result = AnswerRecord(
            fingerprint=request.fingerprint,
            flight=record.flight,
            owner=request.identity,
            answer=answer,
            source=Source(tier="provider", fingerprint=request.fingerprint, flight=record.flight, attempt=record.attempt),
            cacheable=cacheable,
            created_ms=record.at_ms,
            ttl_s=request.cache_ttl_s,
            attempts=record.attempts,
            spent_pico=record.spent_pico,
            ambiguous_pico=record.ambiguous_pico,
            discarded_pico=record.discarded_pico,
            scope=request.scope,
        )
        vector = _vector(record) if cacheable and request.shareable and record.embedding else None
        return Outcome(result, vector, self._paid(record))

    def _paid(self, record: Completion) -> CostEvent:
        request, answer = record.request, record.answer
        account = self.account(answer, request.model, "provider", record.at_ms)
        return _event(request, record.at_ms, event_id=record.attempt, version=ANSWERED, kind="answer", purpose=record.purpose,
                      attempt_id=record.attempt,
                      model_used=answer.model_used, provider=self._provider(answer.model_used), source_id=request.fingerprint,
                      latency_ms=max(0, record.at_ms - request.accepted_ms), **_money(account), **_tokens(answer.usage))  # fmt: skip

    def _failed(self, record: Failure) -> Outcome:
        answer = failed(record.request, record.error, record.at_ms, attempts=record.attempts, spent_pico=record.spent_pico,
                        ambiguous_pico=record.ambiguous_pico)  # fmt: skip
        cost = _event(record.request, record.at_ms, event_id=error_id(record.request.identity, record.request.fingerprint), kind="error",
                      error_code=record.error.code, latency_ms=max(0, record.at_ms - record.request.accepted_ms))  # fmt: skip
        return Outcome(answer, None, cost)

    def respond(self, waiter: Waiter, record: AnswerRecord, now_ms: int) -> tuple[ResponseLine, CostEvent | None]:
        """The response of one waiter, and its cost row where the ledger has not written it already."""
        owner = waiter.identity == record.owner
        tier: Tier = record.source.tier if owner else "exact"
        if record.answer is None:
            return self._error_line(waiter, record, now_ms, owner)
        answer = record.answer
        account = self.account(answer, waiter.model, tier, record.created_ms)
        line = self._line(waiter, record, tier, account, now_ms)
        if tier == "provider":
            return line, None
        event = _event(waiter, now_ms, event_id=response_id(waiter.identity, "hit" + record.fingerprint), kind="answer",
                       model_used=answer.model_used, provider=self._provider(answer.model_used), cache_tier=tier,
                       similarity=record.source.similarity, source_id=record.source.fingerprint, latency_ms=line.engine.latency_ms,
                       **_money(account), **_tokens(answer.usage))  # fmt: skip
        return line, event

    def _line(self, waiter: Waiter, record: AnswerRecord, tier: Tier, account: SavingsSplit, now_ms: int) -> ResponseLine:
        answer = record.answer
        assert answer is not None
        provider = tier == "provider"
        discarded = record.discarded_pico if provider else 0
        return ResponseLine(
            id=response_id(waiter.identity, record.flight),
            custom_id=waiter.identity.custom_id,
            response=ResponsePart(status_code=200, request_id=answer.request_id, body=answer.body),
            engine=EngineInfo(
                tenant=waiter.identity.tenant,
                job=waiter.identity.job,
                model_used=answer.model_used,
                cost_usd=usd(record.spent_pico if provider else 0),
                ambiguous_cap_usd=usd(record.ambiguous_pico if provider else 0),
                counterfactual_usd=usd(account.counterfactual),
                savings=Savings(exact=usd(account.exact), semantic=usd(account.semantic), coalescing=usd(account.coalescing),
                                routing=usd(account.routing - discarded), prefix=usd(account.prefix), batch=usd(account.batch)),
                cache=CacheInfo(
                    tier="none" if tier == "provider" else tier,
                    similarity=None if tier == "exact" else record.source.similarity,
                    source_id=None if provider else record.source.fingerprint,
                ),
                lane=waiter.lane.value,
                latency_ms=max(0, now_ms - waiter.accepted_ms),
                attempts=record.attempts if provider else 0,
            ),
        )  # fmt: skip

    def _error_line(self, waiter: Waiter, record: AnswerRecord, now_ms: int, owner: bool) -> tuple[ResponseLine, CostEvent | None]:
        error = record.error or ErrorInfo(code="engine_error", message="the flight ended without an answer")
        line = error_line(waiter, error, now_ms, flight=record.flight, attempts=record.attempts if owner else 0,
                          spent_pico=record.spent_pico if owner else 0,
                          ambiguous_pico=record.ambiguous_pico if owner else 0, limit_pico=_limit(record, error))  # fmt: skip
        # An owner's failure has this row from the ledger already, under the same id; a refusal by the router has not.
        return line, error_event(waiter, error, now_ms, record.fingerprint)


def _limit(record: AnswerRecord, error: ErrorInfo) -> int | None:
    """Of the request that was refused: the waiter may have asked again with a higher one since."""
    return record.request.max_cost_pico if record.request is not None and error.code == "over_budget" else None


def error_line(
    waiter: Waiter,
    error: ErrorInfo,
    now_ms: int,
    *,
    flight: str = "",
    attempts: int = 0,
    spent_pico: int = 0,
    ambiguous_pico: int = 0,
    limit_pico: int | None = None,
) -> ResponseLine:
    """A response that says why there is no answer."""
    return ResponseLine(
        id=response_id(waiter.identity, flight + error.code),
        custom_id=waiter.identity.custom_id,
        error=ErrorPart(code=error.code, message=error.message),
        engine=EngineInfo(
            tenant=waiter.identity.tenant,
            job=waiter.identity.job,
            cost_usd=usd(spent_pico),
            ambiguous_cap_usd=usd(ambiguous_pico),
            max_cost_usd=None if limit_pico is None else usd(limit_pico),
            lane=waiter.lane.value,
            latency_ms=max(0, now_ms - waiter.accepted_ms),
            attempts=attempts,
        ),
    )


def error_id(identity: Identity, fingerprint: str) -> str:
    """Of the row of an error. With the fingerprint: a raw producer may have asked another body under the same identity."""
    return response_id(identity, "error" + fingerprint)


def error_event(waiter: Waiter | Request, error: ErrorInfo, now_ms: int, fingerprint: str = "") -> CostEvent:
    """The cost row of a request that ended in an error; without a fingerprint where it did not pass the door."""
    return _event(waiter, now_ms, event_id=error_id(waiter.identity, fingerprint), kind="error", error_code=error.code,
                  latency_ms=max(0, now_ms - waiter.accepted_ms))  # fmt: skip


def embedding_event(whose: Waiter, event_id: str, model: str, tokens: int, pico_per_token: int, now_ms: int) -> CostEvent:
    """The row of a text that an embeddings endpoint billed. `event_id` is of this payment alone: embedded again, it is paid again."""
    return _event(whose, now_ms, event_id=event_id, kind="embedding", attempt_id=event_id, model_used=model, tokens_input=tokens,
                  base_cost_pico=tokens * pico_per_token)  # fmt: skip


def failed(
    request: Request, error: ErrorInfo, now_ms: int, *, attempts: int = 0, spent_pico: int = 0, ambiguous_pico: int = 0
) -> AnswerRecord:
    """The outcome of a flight that ends without an answer; never cached."""
    return AnswerRecord(
        fingerprint=request.fingerprint,
        flight=request.flight,
        owner=request.identity,
        error=error,
        source=Source(tier="provider", fingerprint=request.fingerprint, flight=request.flight),
        created_ms=now_ms,
        attempts=attempts,
        spent_pico=spent_pico,
        ambiguous_pico=ambiguous_pico,
        scope=request.scope,
        request=request if error.code in PERSONAL else None,
        asker=waiter_of(request),
    )


def follower_outcome(record: AnswerRecord, lookup: Lookup, now_ms: int) -> AnswerRecord | Miss:
    """What a follower gets when the flight that it waits for ends: the answer, or another try."""
    if record.answer is None or record.source.tier != "provider":
        return handed_on(lookup, now_ms)
    if not record.cacheable:
        return alone(lookup.request)  # what cut this one off, or was refused to it, will mostly meet its like: they needn't queue for it
    return shared(record, lookup, now_ms)


def complete(answer: Answer) -> bool:
    """Only whole answers are kept: finished by themselves, no tool calls, no refusal."""
    if answer.finish_reason != "stop":
        return False
    choices = answer.body.get("choices")
    if not isinstance(choices, list) or len(choices) != 1 or not isinstance(choices[0], dict):
        return False
    message = choices[0].get("message")
    return isinstance(message, dict) and bool(message.get("content")) and not message.get("tool_calls") and not message.get("refusal")


def response_id(identity: Identity, what: str) -> str:
    """Stable per identity and outcome, so that a duplicate on the topic is recognised."""
    return "resp_" + digest([b"response", identity.key, what.encode()])[:32]


def usd(pico: int) -> str:
    """Pico-dollars as a decimal string of dollars, exact."""
    text = format(Decimal(pico) / PICO_PER_USD, "f")
    return text.rstrip("0").rstrip(".") if "." in text else text


def _vector(record: Completion) -> VectorRecord | None:
    request, text = record.request, last_user_text(record.request.body)
    if text is None or record.embedding is None:
        return None
    return VectorRecord(
        tenant=request.identity.tenant,
        scope=request.scope,
        fingerprint=request.fingerprint,
        text=text,
        vector=record.embedding,
        answer=told(record.answer),
        paid_pico=record.answer.paid_pico,
        created_ms=record.at_ms,
        expires_ms=record.at_ms + 1000 * request.cache_ttl_s,
    )


def _held_back(record: Charged) -> JsonObject:
    purpose = "cascade" if record.discarded in OF_A_CASCADE else "fallback"
    return {"purpose": purpose, "error_code": record.discarded, "saved_routing_pico": -record.paid_pico}


def _money(account: SavingsSplit) -> dict[str, int]:
    return {
        "base_cost_pico": account.paid,
        "counterfactual_pico": account.counterfactual,
        "saved_exact_pico": account.exact,
        "saved_semantic_pico": account.semantic,
        "saved_coalescing_pico": account.coalescing,
        "saved_routing_pico": account.routing,
        "saved_prefix_pico": account.prefix,
        "saved_batch_pico": account.batch,
    }


def _tokens(usage: Usage) -> dict[str, int]:
    return {
        "tokens_input": usage.input_tokens,
        "tokens_output": usage.output_tokens,
        "tokens_cached": usage.cache_read_tokens,
    }


def _event(who: Waiter | Request, at_ms: int, **fields: object) -> CostEvent:
    identity, dimensions = who.identity, who.dimensions
    base: JsonObject = {
        "timestamp_ms": at_ms,
        "request_id": identity.custom_id,
        "tenant_id": identity.tenant,
        "job": identity.job,
        "user_id": dimensions.user_id,
        "feature_name": dimensions.feature_name,
        "experiment_id": dimensions.experiment_id,
        "experiment_variant": dimensions.experiment_variant,
        "lane": who.lane.value,
        "model_requested": who.model,
    }
    return CostEvent.model_validate({**base, **fields})

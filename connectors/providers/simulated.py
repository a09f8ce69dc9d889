"""The simulated provider, in process: deterministic answers, real prices, faults on demand, a bill of its own."""

import asyncio
import itertools
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ...pipeline.errors import Ambiguous, Charged, Rejected
from ...pipeline.models import Model
from ...pipeline.ports import Begun, ProviderReply
from ...schemas.answers import Usage
from ...schemas.record import JsonObject
from ..simulated_bill import Bill, price
from ..simulated_cache import Rules, SimulatedCache, prompt_of_chat
from ..simulated_forms import completion
from ..simulation import UNBILLED_FAULTS, FaultRule, Faults, answer, asked_of_chat
from .failures import failed_midway, failure, unreadable


@dataclass(frozen=True, slots=True)
class SimulatedOptions:
    """How the simulated provider behaves."""

    latency_s: float = 0.0
    bill: Path | None = None
    """A file that gets one JSON line per billed call, on disk before the answer is given."""
    answers: Mapping[str, str] = field(default_factory=dict)
    """Known answers by last user message."""
    seed: int = 0


class SimulatedProvider:
    """Answers from `simulation`. `faults` and `bill` are open to tests and reports."""

    def __init__(self, options: SimulatedOptions | None = None) -> None:
        self._options = options or SimulatedOptions()
        self.faults = Faults(self._options.seed)
        self.bill = Bill(self._options.bill)
        self.cache = SimulatedCache()
        self._numbers = itertools.count(1)

    async def complete(
        self, model: Model, body: JsonObject, *, timeout: float, metadata: Mapping[str, str], begun: Begun | None = None
    ) -> ProviderReply:
        """See `Provider.complete`."""
        try:
            asked = asked_of_chat(model.provider_model, body)
            rules = Rules("automatic" if model.prompt_cache == "keyed" else model.prompt_cache, model.prompt_cache_min_tokens)
            served = self.cache.begin(rules, prompt_of_chat(model.provider_model, body), time.time())
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise Rejected(f"simulated refused the request (400: {error}); nothing was billed", code="provider_rejected") from None
        fault = self.faults.pick(asked.text)
        if self._options.latency_s:
            await asyncio.sleep(self._options.latency_s)
        if fault is not None and fault.kind in UNBILLED_FAULTS:
            await _unbilled(fault, timeout)
        self.cache.began(served, time.time())
        if begun is not None and body.get("stream"):
            begun()
        made = answer(asked, self._options.answers)
        usage = served.usage(asked.input_tokens, made.output_tokens)
        request_id = f"sim-{next(self._numbers):08d}"
        pico = price(model.provider_model, usage, asked.tier, model.prices)
        await self.bill.add(asked.model, asked.text, request_id, metadata.get("attempt", ""), usage, pico)
        if fault is not None:
            await _billed(fault, timeout, usage, asked.tier, request_id)
        reply = completion(asked, made, request_id, usage)
        return ProviderReply(reply, usage, made.finish, request_id, asked.tier)

    async def close(self) -> None:
        self.bill.close()


async def _unbilled(fault: FaultRule, timeout: float) -> None:
    if fault.kind == "hang":
        await asyncio.sleep(timeout)
        raise Ambiguous(f"simulated: no answer within {timeout:g} s after the call was sent; it may have been billed")
    status = int(fault.kind.partition("-")[0])
    headers = {"retry-after": str(fault.retry_after)} if fault.kind == "429" else {}
    raise failure("simulated", "the simulated provider's key", status, headers, b'{"error": {"message": "asked to fail"}}', 0.0)


async def _billed(fault: FaultRule, timeout: float, usage: Usage, tier: str, request_id: str) -> None:
    if fault.kind == "stream-error":
        raise failed_midway("simulated", b'{"error": {"message": "asked to fail"}}')
    if fault.kind == "drip":
        await asyncio.sleep(min(1.0, timeout / 2))
    elif fault.kind == "no-choices":
        said = "simulated billed an answer without a readable choice; ask again"
        raise Charged(said, usage=usage, service_tier=tier, request_id=request_id)
    elif fault.kind == "hang-billed":
        await asyncio.sleep(timeout)
        raise Ambiguous(f"simulated: no answer within {timeout:g} s after the call was sent; it may have been billed")
    elif fault.kind == "billed-500":
        raise failure("simulated", "", 500, {}, b"", 0.0)
    elif fault.kind in ("no-usage", "wrong-model", "truncated"):
        why = {"no-usage": "usage_missing", "wrong-model": "wrong_model", "truncated": "unreadable_reply"}[fault.kind]
        raise unreadable("simulated", "was asked to fail", why)
    else:
        raise Ambiguous("simulated: the connection broke after the call was sent; it may have been billed")

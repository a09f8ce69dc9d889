"""What a job did and cost, in one record, asked from the cost store; `run` sums its own from the responses."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

import orjson

from ..connectors.costs_access import CostReader
from ..connectors.sink_http import plain_decimal

CAUSES = ("exact", "semantic", "coalescing", "routing", "prefix", "batch")
"""Why a dollar was not spent, in the order in which the flow credits them."""
TIERS = ("exact", "semantic", "coalesced")


def _zero_by(names: tuple[str, ...]) -> Any:
    return field(default_factory=lambda: dict.fromkeys(names, Decimal(0)))


@dataclass(frozen=True, slots=True)
class JobSummary:
    """Dollars are exact decimals; `seconds` runs from the first request's arrival to the last response."""

    requests: int = 0
    answered: int = 0
    failed: int = 0
    cached: Mapping[str, int] = field(default_factory=lambda: dict.fromkeys(TIERS, 0))
    provider_calls: int = 0
    cost_usd: Decimal = Decimal(0)
    counterfactual_usd: Decimal = Decimal(0)
    saved_usd: Mapping[str, Decimal] = _zero_by(CAUSES)
    seconds: Decimal = Decimal(0)
    possibly_paid_usd: Decimal = Decimal(0)
    """At most this much may have been billed on top of the cost: calls whose answer never came, each at its cap."""

    @property
    def saved_total_usd(self) -> Decimal:
        return sum(self.saved_usd.values(), Decimal(0))

    def as_json(self) -> bytes:
        """The `--json-report`: dollars are JSON numbers with all their digits."""
        return orjson.dumps(
            {
                "requests": self.requests,
                "answered": self.answered,
                "failed": self.failed,
                "cached": dict(self.cached),
                "provider_calls": self.provider_calls,
                "cost_usd": _number(self.cost_usd),
                "possibly_paid_usd": _number(self.possibly_paid_usd),
                "counterfactual_usd": _number(self.counterfactual_usd),
                "saved_usd": {cause: _number(amount) for cause, amount in self.saved_usd.items()},
                "seconds": _number(self.seconds),
            },
            option=orjson.OPT_INDENT_2,
        )


ALL = """(job = {job:String} OR {job:String} = '') AND (tenant_id = {tenant:String} OR {tenant:String} = '')"""
"""The condition of every question here: one job or all, one tenant or all."""

REQUESTS = "uniqExactIf((tenant_id, job, request_id), kind IN ('answer', 'error'))"
"""Requests that ended; one that failed and was answered when asked again is one request."""
ANSWERED = "uniqExactIf((tenant_id, job, request_id), kind = 'answer')"

_TOTALS = f"""SELECT
  {REQUESTS} AS requests,
  {ANSWERED} AS answered,
  requests - answered AS failed,
  countIf(kind = 'answer' AND cache_tier = 'exact') AS exact,
  countIf(kind = 'answer' AND cache_tier = 'semantic') AS semantic,
  countIf(kind = 'answer' AND cache_tier = 'coalesced') AS coalesced,
  countIf(kind = 'answer' AND cache_tier = 'none') + countIf(kind NOT IN ('answer', 'error', 'embedding')) AS provider_calls,
  sum(base_cost) AS cost, sum(ambiguous_cap) AS possibly_paid, sum(counterfactual_cost) AS counterfactual,
  sum(exact_savings) AS saved_exact, sum(semantic_savings) AS saved_semantic, sum(coalescing_savings) AS saved_coalescing,
  sum(routing_savings) AS saved_routing, sum(prefix_savings) AS saved_prefix, sum(batching_savings) AS saved_batch,
  maxOrNull(toUnixTimestamp64Milli(timestamp))
    - minOrNull(toUnixTimestamp64Milli(timestamp) - toInt64(ifNull(latency_ms, 0))) AS milliseconds
FROM cost_events WHERE {ALL}"""


def job_summary(costs: CostReader, job: str | None, *, tenant: str | None = None) -> JobSummary:
    """The summary of a job (None: of all jobs) by SQL: also what answered no request (audits, doubles) is in its cost."""
    names, rows = costs.query(_TOTALS, {"job": job or "", "tenant": tenant or ""})
    found = dict(zip(names, rows[0], strict=True))
    return JobSummary(
        requests=found["requests"],
        answered=found["answered"],
        failed=found["failed"],
        cached={tier: found[tier] for tier in TIERS},
        provider_calls=found["provider_calls"],
        cost_usd=found["cost"],
        possibly_paid_usd=found["possibly_paid"],
        counterfactual_usd=found["counterfactual"],
        saved_usd={cause: found[f"saved_{cause}"] for cause in CAUSES},
        seconds=Decimal(found["milliseconds"] or 0).scaleb(-3),
    )


def _number(value: Decimal) -> orjson.Fragment:
    text = plain_decimal(value)
    return orjson.Fragment((text.rstrip("0").rstrip(".") if "." in text else text) or "0")

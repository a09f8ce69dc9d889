"""The numbers of a report, each by SQL on `cost_events`: what the page shows, anyone can ask again."""

from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any

from ..connectors.costs_access import CostReader
from ..pipeline.errors import Rejected
from .accounts import ALL, REQUESTS, JobSummary, job_summary

BUCKETS = 48


@dataclass(frozen=True, slots=True)
class Section:
    """One table: column names tell the unit (`*_usd` Decimal dollars, `*_percent`, `*_ms`, else text or counts)."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]


@dataclass(frozen=True, slots=True)
class Bucket:
    """A stretch of time: what was paid in it, and what its requests would have cost alone."""

    paid_usd: Decimal
    counterfactual_usd: Decimal


@dataclass(frozen=True, slots=True)
class Report:
    """All that a report shows; times are naive UTC."""

    job: str | None
    tenant: str | None
    summary: JobSummary
    first: datetime
    last: datetime
    infrastructure_usd: Decimal
    ambiguous: int
    ambiguous_cap_usd: Decimal
    """At most this much may have been billed on top of the cost: calls whose answer never came."""
    sections: tuple[Section, ...]
    timeline: tuple[Bucket, ...]

    @property
    def net_saved_usd(self) -> Decimal:
        """Counterfactual less everything paid, audits and our own computing included; below 0 where the engine cost more.

        What may have been billed on top is not subtracted: see `net_saved_at_least_usd`.
        """
        return self.summary.counterfactual_usd - self.summary.cost_usd - self.infrastructure_usd

    @property
    def net_saved_at_least_usd(self) -> Decimal:
        """Should every call whose answer never came have been billed at its cap."""
        return self.net_saved_usd - self.ambiguous_cap_usd

    @property
    def net_saved_percent(self) -> float | None:
        if not self.summary.counterfactual_usd:
            return None
        return float(100 * self.net_saved_usd / self.summary.counterfactual_usd)

    @property
    def from_provider(self) -> int:
        """Answered requests that no cache had."""
        return max(0, self.summary.answered - sum(self.summary.cached.values()))


_HITS = "if(countIf(kind = 'answer') = 0, 0, round(100 * countIf(kind = 'answer' AND cache_hit) / countIf(kind = 'answer'), 1))"


def _by(dimension: str, limit: int) -> str:
    return f"""SELECT {dimension} AS name, {REQUESTS} AS requests, {_HITS} AS hit_percent,
      sum(tokens_input) AS tokens_in, sum(tokens_output) AS tokens_out, sum(base_cost) AS cost_usd, sum(total_savings) AS saved_usd
    FROM cost_events WHERE {ALL} GROUP BY name ORDER BY cost_usd DESC, saved_usd DESC, name LIMIT {limit}"""


_SECTIONS: tuple[tuple[str, str], ...] = (
    ("By model", _by("model_used", 30)),
    ("By feature", _by("feature_name", 30)),
    ("By user, top 10 by cost", _by("user_id", 10)),
    ("By tenant", _by("tenant_id", 30)),
    (
        "By experiment",
        f"""SELECT experiment_id AS experiment, experiment_variant AS variant, {REQUESTS} AS requests, {_HITS} AS hit_percent,
              sum(base_cost) AS cost_usd, sum(base_cost) / nullIf({REQUESTS}, 0) AS cost_per_request_usd,
              quantileExact(0.5)(latency_ms) AS p50_ms
            FROM cost_events WHERE {ALL} AND experiment_id != ''
            GROUP BY experiment, variant ORDER BY experiment, variant LIMIT 50""",
    ),
    (
        "Latency by lane",
        f"""SELECT lane AS name, {REQUESTS} AS requests, quantileExact(0.5)(latency_ms) AS p50_ms,
              quantileExact(0.95)(latency_ms) AS p95_ms
            FROM cost_events WHERE {ALL} AND kind IN ('answer', 'error') GROUP BY name ORDER BY name""",
    ),
    (
        "Errors",
        f"""SELECT error_code AS name, count() AS requests, sum(base_cost) AS cost_usd
            FROM cost_events WHERE {ALL} AND kind = 'error' GROUP BY name ORDER BY requests DESC, name LIMIT 30""",
    ),
    (
        "Explored: answered by another model than the best known choice, to learn",
        f"""SELECT model_used AS name, count() AS requests, sum(base_cost) AS cost_usd, sum(total_savings) AS saved_usd
            FROM cost_events WHERE {ALL} AND purpose = 'exploration' GROUP BY name ORDER BY cost_usd DESC, name LIMIT 30""",
    ),
    (
        "Paid for more than answers",
        f"""SELECT kind AS name, count() AS payments, sum(base_cost) AS cost_usd, sum(ambiguous_cap) AS ambiguous_cap_usd
            FROM cost_events WHERE {ALL} AND kind NOT IN ('answer', 'error') GROUP BY name ORDER BY cost_usd DESC, name""",
    ),
)

_SPAN = f"""SELECT count(), min(timestamp), max(timestamp), sum(infrastructure_cost), countIf(kind = 'ambiguous'), sum(ambiguous_cap)
  FROM cost_events WHERE {ALL}"""

_TIMELINE = f"""WITH
    (SELECT min(toUnixTimestamp64Milli(timestamp)) FROM cost_events WHERE {ALL}) AS low,
    (SELECT max(toUnixTimestamp64Milli(timestamp)) FROM cost_events WHERE {ALL}) AS high
  SELECT intDiv({BUCKETS} * (toUnixTimestamp64Milli(timestamp) - low), high - low + 1) AS bucket,
    sum(base_cost), sum(counterfactual_cost)
  FROM cost_events WHERE {ALL} GROUP BY bucket"""

_JOBS = "SELECT job FROM cost_events GROUP BY job ORDER BY max(timestamp) DESC LIMIT 10"


def gather(costs: CostReader, *, job: str | None = None, tenant: str | None = None) -> Report:
    """Raises `Rejected` where there is nothing to report on."""
    chosen = {"job": job or "", "tenant": tenant or ""}
    rows, first, last, infrastructure, ambiguous, cap = costs.query(_SPAN, chosen)[1][0]
    if not rows:
        raise _nothing(costs, job, tenant)
    sections = (Section(title, *_table(costs, sql, chosen)) for title, sql in _SECTIONS)
    return Report(
        job=job,
        tenant=tenant,
        summary=job_summary(costs, job, tenant=tenant),
        first=first,
        last=last,
        infrastructure_usd=infrastructure,
        ambiguous=ambiguous,
        ambiguous_cap_usd=cap,
        sections=tuple(section for section in sections if section.rows),
        timeline=_timeline(costs, chosen),
    )


def _table(costs: CostReader, sql: str, chosen: dict[str, str]) -> tuple[tuple[str, ...], tuple[tuple[Any, ...], ...]]:
    columns, rows = costs.query(sql, chosen)
    return tuple(columns), tuple(rows)


def _timeline(costs: CostReader, chosen: dict[str, str]) -> tuple[Bucket, ...]:
    found = {int(bucket): Bucket(paid, alone) for bucket, paid, alone in costs.query(_TIMELINE, chosen)[1]}
    empty = Bucket(Decimal(0), Decimal(0))
    return tuple(found.get(index, empty) for index in range(BUCKETS))


def _nothing(costs: CostReader, job: str | None, tenant: str | None) -> Rejected:
    if job is None and tenant is None:
        return Rejected("No costs are recorded yet: run a job first, e.g. `inference-engine run prompts.jsonl -o answers.jsonl`.")
    jobs = ", ".join(str(row[0]) for row in costs.query(_JOBS)[1]) or "none"
    asked = " and ".join(f"{name} {value!r}" for name, value in (("job", job), ("tenant", tenant)) if value)
    return Rejected(f"No costs are recorded for {asked}. The latest jobs: {jobs}.")

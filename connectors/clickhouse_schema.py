"""The tables of the cost store, as numbered migrations, and how a cost event becomes a row.

`cost_events_raw` keeps every delivery of every event; `cost_events` shows each event once, under the names that people query by, `feedback`
the last word about each answer, `experiment_requests` one row a request of an experiment.

Money arrives as Int128 pico-dollars in columns that exist only during the insert (EPHEMERAL) and is stored
as Decimal(38, 12): the engine divides by a power of ten, so no digit passes through a float, and Python never builds a
Decimal per cell.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

from ..schemas.costs import CostEvent

MONEY = {
    "base_cost": "base_cost_pico",
    "ambiguous_cap": "ambiguous_cap_pico",
    "infrastructure_cost": "infrastructure_cost_pico",
    "counterfactual_cost": "counterfactual_pico",
    "exact_savings": "saved_exact_pico",
    "semantic_savings": "saved_semantic_pico",
    "coalescing_savings": "saved_coalescing_pico",
    "routing_savings": "saved_routing_pico",
    "prefix_savings": "saved_prefix_pico",
    "batching_savings": "saved_batch_pico",
}
"""Column of dollars -> field of `CostEvent` in pico-dollars."""

_PLAIN = {
    "event_id": "String",
    "version": "UInt32",
    "kind": "LowCardinality(String)",
    "request_id": "String",
    "tenant_id": "LowCardinality(String)",
    "job": "LowCardinality(String)",
    "user_id": "String",
    "feature_name": "LowCardinality(String)",
    "experiment_id": "LowCardinality(String)",
    "experiment_variant": "LowCardinality(String)",
    "lane": "LowCardinality(String)",
    "model_requested": "LowCardinality(String)",
    "model_used": "LowCardinality(String)",
    "provider": "LowCardinality(String)",
    "cache_tier": "LowCardinality(String)",
    "similarity": "Nullable(Float64)",
    "source_id": "String",
    "attempt_id": "String",
    "tokens_input": "UInt64",
    "tokens_output": "UInt64",
    "tokens_cached": "UInt64",
    "latency_ms": "UInt64",
    "error_code": "LowCardinality(String)",
}
"""Column -> type, where the column is the field of `CostEvent` of the same name. The first table has these; later ones are `_ADDED`."""

_ADDED = {"purpose": "LowCardinality(String)", "score": "Nullable(Float64)"}


@dataclass(frozen=True, slots=True)
class Column:
    """A column of an insert and the field of `CostEvent` that fills it."""

    name: str
    value: Callable[[CostEvent], Any]


COLUMNS: tuple[Column, ...] = (
    *(Column(name, attrgetter(name)) for name in (*_PLAIN, *_ADDED)),
    Column("timestamp", attrgetter("timestamp_ms")),
    *(Column(f"{name}_pico", attrgetter(field)) for name, field in MONEY.items()),
)


def columns_of(events: Sequence[CostEvent]) -> list[list[Any]]:
    """One list per entry of `COLUMNS`, each as long as `events`."""
    return [list(map(column.value, events)) for column in COLUMNS]


def _raw_table() -> str:
    plain = [f"{name} {kind}" for name, kind in _PLAIN.items()]
    money = [
        f"{name}_pico Int128 EPHEMERAL, {name} Decimal(38, 12) DEFAULT toDecimal128({name}_pico, 12) / 1000000000000" for name in MONEY
    ]
    columns = ",\n  ".join([*plain, "timestamp DateTime64(3, 'UTC')", *money])
    # fsync: the consumer's offset moves past an event on the word of this table alone.
    return (
        f"CREATE TABLE IF NOT EXISTS cost_events_raw (\n  {columns}\n) ENGINE = ReplacingMergeTree(version) "
        "PARTITION BY toYYYYMM(timestamp) ORDER BY (tenant_id, event_id) "
        "SETTINGS fsync_after_insert = 1, fsync_part_directory = 1"
    )


_EVENTS_VIEW = """CREATE OR REPLACE VIEW cost_events AS SELECT
  timestamp, toDate(timestamp) AS date, event_id, request_id, user_id, tenant_id, job, feature_name,
  experiment_id, experiment_variant, model_used, model_requested, provider,
  base_cost, infrastructure_cost,
  exact_savings + semantic_savings + coalescing_savings AS cache_savings,
  exact_savings, semantic_savings, coalescing_savings, routing_savings, prefix_savings, batching_savings,
  exact_savings + semantic_savings + coalescing_savings + routing_savings + prefix_savings + batching_savings
    AS total_savings,
  counterfactual_cost, ambiguous_cap, tokens_input, tokens_output, tokens_cached,
  if(kind IN ('answer', 'error'), latency_ms, NULL) AS latency_ms,
  cache_tier != 'none' AS cache_hit, cache_tier, similarity, source_id, attempt_id, kind, lane, error_code
FROM cost_events_raw FINAL"""
"""One row per event. Payments that answered no request have no latency, so that averages are over requests."""

_WITH_PURPOSE = _EVENTS_VIEW.replace("kind, lane, error_code", "kind, purpose, lane, error_code")

_FEEDBACK_VIEW = """CREATE OR REPLACE VIEW feedback AS SELECT timestamp, tenant_id, job, request_id, score
FROM cost_events_raw FINAL WHERE kind = 'feedback'"""

_EXPERIMENTS_VIEW = """CREATE OR REPLACE VIEW experiment_requests AS
SELECT requests.*, feedback.score AS score FROM (
  SELECT experiment_id, experiment_variant, tenant_id, job, request_id, any(user_id) AS user_id, min(timestamp) AS timestamp,
    sum(base_cost) AS cost, sum(ambiguous_cap) AS ambiguous_cap, minOrNullIf(latency_ms, kind = 'answer') AS latency_ms,
    countIf(kind = 'answer') = 0 AS failed, countIf(cache_hit) > 0 AS cached, anyIf(model_used, kind = 'answer') AS model_used
  FROM cost_events WHERE experiment_id != ''
  GROUP BY experiment_id, experiment_variant, tenant_id, job, request_id HAVING countIf(kind IN ('answer', 'error')) > 0
) AS requests LEFT JOIN feedback USING (tenant_id, job, request_id)"""
"""Requests that ended. The cost is that of all payments for the request, whatever came of them."""

MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (_raw_table(), _EVENTS_VIEW),
    (
        f"ALTER TABLE cost_events_raw ADD COLUMN IF NOT EXISTS purpose {_ADDED['purpose']}",
        _WITH_PURPOSE,
    ),
    (
        f"ALTER TABLE cost_events_raw ADD COLUMN IF NOT EXISTS score {_ADDED['score']}",
        # Feedback is no cost: whoever counts rows or kinds of costs does not meet it.
        f"{_WITH_PURPOSE} WHERE kind != 'feedback'",
        _FEEDBACK_VIEW,
        _EXPERIMENTS_VIEW,
    ),
)
"""Migration n (counted from 1) is MIGRATIONS[n - 1]; each statement may be run again. Never edit one: append."""

VERSION_TABLE = (
    "CREATE TABLE IF NOT EXISTS schema_versions (version UInt32, applied_at DateTime64(3, 'UTC') DEFAULT now64(3)) "
    "ENGINE = MergeTree ORDER BY version"
)

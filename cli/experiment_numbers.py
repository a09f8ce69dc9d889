"""The numbers of an experiment, by SQL on `experiment_requests`: sums by variant, from which intervals follow."""

from dataclasses import dataclass
from decimal import Decimal

from ..connectors.costs_access import CostReader
from ..pipeline.errors import Rejected
from ..pipeline.experiments import Unit
from ..pipeline.sequential import Interval, Sums, difference, mean_of

_MEASURES = (
    ("cost_usd", "Cost of a request", "toFloat64(cost)"),
    ("latency_ms", "Latency of an answer", "toFloat64(latency_ms)"),
    ("score", "Feedback, 0 to 1", "score"),
    ("failed", "Share of requests that failed", "toFloat64(failed)"),
)
_UNITS = {"user": "(tenant_id, user_id)", "request": "(tenant_id, job, request_id)"}
_CHOSEN = "experiment_id = {name:String} AND (tenant_id = {tenant:String} OR {tenant:String} = '')"

_VARIANTS = f"""SELECT experiment_variant, count(), countIf(cached), countIf(failed), sum(cost), sum(ambiguous_cap), count(score)
  FROM experiment_requests WHERE {_CHOSEN} GROUP BY experiment_variant ORDER BY experiment_variant"""
_EXPERIMENTS = "SELECT experiment_id FROM experiment_requests GROUP BY experiment_id ORDER BY max(timestamp) DESC LIMIT 10"


@dataclass(frozen=True, slots=True)
class VariantTotals:
    """Of all its requests; dollars are exact."""

    name: str
    requests: int
    cached: int
    failed: int
    paid_usd: Decimal
    possibly_usd: Decimal
    """At most this much may have been paid on top: calls whose answer never came."""
    judged: int


@dataclass(frozen=True, slots=True)
class Row:
    """One variant under one measure; None where nothing was measured, or nothing is compared with itself."""

    variant: str
    units: int
    own: Interval | None
    difference: Interval | None


@dataclass(frozen=True, slots=True)
class Measure:
    """What is compared."""

    name: str
    title: str
    rows: tuple[Row, ...]


@dataclass(frozen=True, slots=True)
class Compared:
    """All that is known of an experiment."""

    name: str
    unit: Unit
    control: str
    alpha: float
    planned: int
    variants: tuple[VariantTotals, ...]
    measures: tuple[Measure, ...]


def compare(costs: CostReader, name: str, *, unit: Unit, control: str | None, tenant: str | None, alpha: float, planned: int) -> Compared:
    """`alpha` is shared by the variants that are compared with the control (Bonferroni). Raises `Rejected` where there is nothing."""
    chosen = {"name": name, "tenant": tenant or ""}
    variants = tuple(VariantTotals(*row) for row in costs.query(_VARIANTS, chosen)[1])
    names = [variant.name for variant in variants]
    if not names:
        known = ", ".join(str(row[0]) for row in costs.query(_EXPERIMENTS)[1]) or "none"
        raise Rejected(f"No request of an experiment {name!r} has ended yet. The latest experiments: {known}.")
    first = control if control is not None else names[0]
    if first not in names:
        raise Rejected(f"No request of the variant {first!r} of {name!r} has ended yet; there are: {', '.join(names)}.")
    each = alpha / max(1, len(names) - 1)
    ordered = [first, *(n for n in names if n != first)]
    measures = []
    for key, title, value in _MEASURES:
        sums = _sums(costs, value, unit, chosen)
        rows = tuple(_row(variant, first, sums, alpha, each, planned) for variant in ordered)
        measures.append(Measure(key, title, rows))
    return Compared(name, unit, first, alpha, planned, variants, tuple(measures))


def _row(variant: str, control: str, sums: dict[str, Sums], alpha: float, each: float, planned: int) -> Row:
    own, other = sums.get(variant, Sums()), sums.get(control, Sums())
    compared = None if variant == control else difference(other, own, each, planned)
    return Row(variant, own.units, mean_of(own, alpha, planned), compared)


def _sums(costs: CostReader, value: str, unit: Unit, chosen: dict[str, str]) -> dict[str, Sums]:
    """By variant. What a cache answered says nothing about the variant's model: misses are as random in all variants alike."""
    named = " AND user_id != ''" if unit == "user" else ""
    sql = f"""SELECT variant, count(), sum(n), sum(y), sum(y * y), sum(y * n), sum(n * n) FROM (
        SELECT experiment_variant AS variant, {_UNITS[unit]} AS unit, toFloat64(count({value})) AS n, sum({value}) AS y
        FROM experiment_requests WHERE {_CHOSEN} AND NOT cached{named} GROUP BY variant, unit HAVING n > 0
      ) GROUP BY variant"""
    return {str(variant): Sums(units, *map(float, rest)) for variant, units, *rest in costs.query(sql, chosen)[1]}

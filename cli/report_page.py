"""The report as one self-contained HTML page: no scripts, no fonts, nothing fetched."""

from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from importlib.resources import files

from jinja2 import Environment, StrictUndefined

from .accounts import CAUSES
from .display import dollars, exact, heading, shown
from .report_numbers import Bucket, Report, Section


@dataclass(frozen=True, slots=True)
class Part:
    """A segment of a bar: `percent` of its width, from `offset` percent on."""

    name: str
    kind: str
    label: str
    exact: str
    percent: float
    offset: float


@dataclass(frozen=True, slots=True)
class Column:
    """A column of the timeline, heights in percent of the tallest."""

    paid: float
    alone: float
    label: str


_CAUSE_NAMES = {
    "exact": "exact cache",
    "semantic": "semantic cache",
    "coalescing": "coalescing",
    "routing": "routing",
    "prefix": "prompt cache",
    "batch": "batch tier",
}


def render(report: Report, *, made_at: datetime) -> str:
    """The page; `made_at` in UTC is printed on it."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(dollars=dollars, exact=exact, heading=heading)
    template = environment.from_string((files("inference_engine.cli") / "report.html.jinja").read_text("utf-8"))
    return template.render(
        report=report,
        summary=report.summary,
        made_at=made_at,
        money=_money_parts(report),
        answers=_answer_parts(report),
        columns=_columns(report.timeline),
        share=_share,
        shown=shown,
    )


def _parts(amounts: list[tuple[str, str, Decimal | int]], label: bool) -> list[Part]:
    """Segments of one bar, without the empty ones; amounts below zero have no width and are left to the tables."""
    total = sum((Decimal(amount) for _, _, amount in amounts if amount > 0), Decimal(0))
    parts, offset = [], Decimal(0)
    for name, kind, amount in amounts:
        if amount <= 0:
            continue
        percent = 100 * Decimal(amount) / total
        text = dollars(Decimal(amount)) if label else f"{amount:,}"
        parts.append(Part(name, kind, text, exact(amount), float(percent), float(offset)))
        offset += percent
    return parts


def _money_parts(report: Report) -> list[Part]:
    saved = report.summary.saved_usd
    amounts: list[tuple[str, str, Decimal | int]] = [("paid", "paid", report.summary.cost_usd)]
    return _parts(amounts + [(_CAUSE_NAMES[cause], cause, saved[cause]) for cause in CAUSES], label=True)


def _answer_parts(report: Report) -> list[Part]:
    cached = report.summary.cached
    amounts: list[tuple[str, str, Decimal | int]] = [
        ("provider", "paid", report.from_provider),
        ("exact cache", "exact", cached["exact"]),
        ("semantic cache", "semantic", cached["semantic"]),
        ("coalesced", "coalescing", cached["coalesced"]),
        ("failed", "failed", report.summary.failed),
    ]
    return _parts(amounts, label=False)


def _columns(timeline: tuple[Bucket, ...]) -> list[Column]:
    tallest = max((max(b.paid_usd, b.counterfactual_usd) for b in timeline), default=Decimal(0))
    if not tallest:
        return []
    return [
        Column(
            paid=float(100 * b.paid_usd / tallest),
            alone=float(100 * b.counterfactual_usd / tallest),
            label=f"paid {dollars(b.paid_usd)}, alone it would have been {dollars(b.counterfactual_usd)}",
        )
        for b in timeline
    ]


def _share(section: Section, row: int) -> float | None:
    """A row's part of the largest cost in its section, in percent; None where the section has no cost."""
    if "cost_usd" not in section.columns:
        return None
    index = section.columns.index("cost_usd")
    largest = max(line[index] for line in section.rows)
    return float(100 * section.rows[row][index] / largest) if largest > 0 else 0.0

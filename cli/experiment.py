"""`inference-engine experiment`: cost, latency and feedback of each variant, and whether they differ, however often one looks."""

from collections.abc import Mapping
from decimal import Decimal
from typing import Annotated, Any

import orjson
import typer
from rich.markup import escape
from rich.table import Table

from ..agents.compose import catalogue_of
from ..connectors.costs_access import open_costs
from ..connectors.experiments_toml import load_experiments
from ..pipeline.errors import EngineError
from ..pipeline.experiments import Unit
from ..pipeline.sequential import LEAST_UNITS, PLANNED_UNITS, Interval
from .command_settings import load_settings
from .display import console_of_output, dollars
from .experiment_numbers import Compared, Measure, compare
from .where import costs_location


def experiment_command(
    name: Annotated[str, typer.Argument(help="Of the experiment: a table of EXPERIMENTS_FILE, or the experiment_id that requests carry.")],
    control: Annotated[
        str | None, typer.Option(help="The variant that others are compared with; default: the file's first.", show_default=False)
    ] = None,
    unit: Annotated[
        str | None, typer.Option(help="user or request: what was drawn into variants; default: as the file says, else request.")
    ] = None,
    tenant: Annotated[str | None, typer.Option(help="One tenant; default: all.", show_default=False)] = None,
    alpha: Annotated[
        float, typer.Option(help="Share of experiments without a difference that may seem to have one.", min=1e-6, max=0.5)
    ] = 0.05,
    planned: Annotated[
        int, typer.Option(help="Units in two variants at which intervals are to be narrowest; choose before looking.", min=1)
    ] = PLANNED_UNITS,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Compare the variants of an experiment. Looking early, and again, does not make differences out of nothing."""
    settings = load_settings()
    known = load_experiments(settings.routing.experiments_file, catalogue_of(settings)).get(name)
    by: Unit = "user" if (unit or (known.unit if known else "request")) == "user" else "request"
    if unit not in (None, "user", "request"):
        raise typer.BadParameter("user or request", param_hint="--unit")
    first = control or (known.variants[0].name if known else None)
    try:
        with open_costs(costs_location()) as costs:
            found = compare(costs, name, unit=by, control=first, tenant=tenant, alpha=alpha, planned=planned)
    except EngineError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(1) from error
    if as_json:
        typer.echo(orjson.dumps(as_object(found), option=orjson.OPT_INDENT_2).decode())
    else:
        _print(found)


def _print(found: Compared) -> None:
    console = console_of_output()
    overview = Table(title=f"Experiment {escape(found.name)}, by {found.unit}", title_justify="left")
    for heading in ("variant", "requests", "from a cache", "failed", "paid", "possibly on top", "feedback"):
        overview.add_column(heading, justify="left" if heading == "variant" else "right")
    for v in found.variants:
        overview.add_row(escape(v.name), f"{v.requests:,}", f"{v.cached:,}", f"{v.failed:,}", dollars(v.paid_usd), dollars(v.possibly_usd),
                         f"{v.judged:,}")  # fmt: skip
    console.print(overview)
    for measure in found.measures:
        console.print(_table(found, measure))
    for line in notes(found):
        console.print(line)


def _table(found: Compared, measure: Measure) -> Table:
    table = Table(title=measure.title, title_justify="left")
    for heading in ("variant", found.unit + "s", "mean", f"{1 - found.alpha:.3g} interval", f"less {found.control}", "interval", "p"):
        table.add_column(escape(heading), justify="left" if heading == "variant" else "right")
    for row in measure.rows:
        own, other = row.own, row.difference
        table.add_row(
            escape(row.variant),
            f"{row.units:,}",
            _number(measure, None if own is None else own.value),
            _bounds(measure, own),
            _number(measure, None if other is None else other.value),
            _bounds(measure, other),
            "" if other is None else "too early" if other.p is None else f"{other.p:.3g}",
        )
    return table


def notes(found: Compared) -> list[str]:
    """What the tables mean, in words."""
    lines = [
        "Requests that a cache answered are left out: no variant's model answered them. What is said of a measure holds with "
        f"{1 - found.alpha:.3g}, however often one looks; nothing is said below {LEAST_UNITS} {found.unit}s a variant."
    ]
    for measure in found.measures:
        for row in measure.rows:
            if row.difference is not None and row.difference.differs:
                more = "more" if row.difference.value > 0 else "less"
                lines.append(f"{measure.title}: {row.variant} has {more} than {found.control}.")
    return lines


def as_object(found: Compared) -> dict[str, Any]:
    """For programs: money of sums as text with all its digits, estimates as numbers."""
    return {
        "experiment": found.name, "unit": found.unit, "control": found.control, "alpha": found.alpha, "planned": found.planned,
        "variants": [
            {"variant": v.name, "requests": v.requests, "cached": v.cached, "failed": v.failed, "paid_usd": str(v.paid_usd),
             "possibly_paid_usd": str(v.possibly_usd), "judged": v.judged} for v in found.variants
        ],
        "measures": {
            measure.name: [
                {"variant": row.variant, "units": row.units, "mean": _object(row.own), "difference": _object(row.difference)}
                for row in measure.rows
            ]
            for measure in found.measures
        },
    }  # fmt: skip


def _object(interval: Interval | None) -> Mapping[str, float | None] | None:
    if interval is None:
        return None
    return {"value": interval.value, "low": interval.low, "high": interval.high, "p": interval.p}


def _number(measure: Measure, value: float | None) -> str:
    if value is None:
        return "–"
    if measure.name == "cost_usd":
        # An estimate, not a bill: four digits.
        return dollars(Decimal(f"{value:.3e}"))
    return f"{value:,.0f} ms" if measure.name == "latency_ms" else f"{value:.4f}"


def _bounds(measure: Measure, interval: Interval | None) -> str:
    if interval is None or interval.p is None:
        return ""
    return f"{_number(measure, interval.low)} to {_number(measure, interval.high)}"

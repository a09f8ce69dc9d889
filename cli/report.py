"""`inference-engine report`: where the money went and where it stayed, on the terminal or as a page."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from ..connectors.costs_access import open_costs
from ..connectors.state_file import write_atomically
from ..pipeline.errors import EngineError
from .accounts import CAUSES, TIERS
from .display import console_of_output, dollars, heading, shown
from .report_numbers import Report, Section, gather
from .report_page import render
from .where import costs_location


def report_command(
    job: Annotated[str | None, typer.Option(help="One job; default: all.", show_default=False)] = None,
    tenant: Annotated[str | None, typer.Option(help="One tenant; default: all.", show_default=False)] = None,
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Write a self-contained page instead.", show_default=False)
    ] = None,
) -> None:
    """What was paid, what was saved and why: by model, feature, user, experiment and lane."""
    try:
        with open_costs(costs_location()) as costs:
            report = gather(costs, job=job, tenant=tenant)
    except EngineError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(1) from error
    if html is None:
        print_report(report, console_of_output())
        return
    try:
        write_atomically(html.absolute(), render(report, made_at=datetime.now(UTC)), private=False)
    except OSError as error:
        typer.echo(f"The report could not be written to {html}: {error}. Nothing was changed; choose another file.", err=True)
        raise typer.Exit(1) from error
    typer.echo(f"Wrote {html}")


def print_report(report: Report, console: Console) -> None:
    """The whole report as tables."""
    console.print(_overview(report))
    if report.ambiguous:
        console.print(
            f"{report.ambiguous:,} call{'' if report.ambiguous == 1 else 's'} may or may not have been billed: "
            f"at most {dollars(report.ambiguous_cap_usd)} on top of what was paid. "
            f"Net saved does not count that; if all of it was billed, it is {dollars(report.net_saved_at_least_usd)}."
        )
    for section in report.sections:
        console.print(_section(section))


def _overview(report: Report) -> Table:
    summary = report.summary
    of_job = f" of job {escape(report.job)}" if report.job else ""
    of_tenant = f" of tenant {escape(report.tenant)}" if report.tenant else ""
    table = Table("", Column(justify="right"), "", title=f"Costs{of_job}{of_tenant}", title_justify="left", show_header=False)
    table.add_row("requests", f"{summary.requests:,}", f"{summary.answered:,} answered, {summary.failed:,} failed")
    hits = sum(summary.cached.values())
    table.add_row("from a cache", f"{hits:,}", ", ".join(f"{tier} {_rate(summary.cached[tier], summary.answered)}" for tier in TIERS))
    table.add_row("provider calls", f"{summary.provider_calls:,}", "")
    table.add_section()
    table.add_row("paid", dollars(summary.cost_usd), "")
    table.add_row("without the engine", dollars(summary.counterfactual_usd), "each request alone, on the model it asked for")
    percent = "" if report.net_saved_percent is None else f"{report.net_saved_percent:.1f} %"
    table.add_row("[bold]net saved[/bold]", f"[bold]{dollars(report.net_saved_usd)}[/bold]", percent)
    table.add_section()
    for cause in CAUSES:
        if summary.saved_usd[cause]:
            table.add_row(f"saved by {cause}", dollars(summary.saved_usd[cause]), "")
    if report.infrastructure_usd:
        table.add_row("our own computing", dollars(report.infrastructure_usd), "")
    return table


def _section(section: Section) -> Table:
    table = Table(title=section.title, title_justify="left")
    for index, column in enumerate(section.columns):
        text = isinstance(section.rows[0][index], str)
        table.add_column("" if column == "name" else heading(column), justify="left" if text else "right", overflow="fold")
    for row in section.rows:
        table.add_row(*(escape(shown(column, value)) for column, value in zip(section.columns, row, strict=True)))
    return table


def _rate(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "–"

"""`inference-engine sql`: ask the costs in SQL, read only."""

import csv
import io
import sys
from collections.abc import Sequence
from enum import StrEnum
from typing import Annotated, Any

import orjson
import typer
from rich.markup import escape
from rich.table import Table

from ..connectors.costs_access import open_costs
from ..connectors.sink_http import encode_result
from ..pipeline.errors import EngineError
from .display import console_of_output, exact
from .where import costs_location


class Format(StrEnum):
    """How a result is printed."""

    TABLE = "table"
    TSV = "tsv"
    CSV = "csv"
    JSON = "json"


def sql_command(
    query: Annotated[str, typer.Argument(help="SQL on the view cost_events; `-` reads it from standard input.")],
    output: Annotated[
        Format | None, typer.Option("--format", "-f", help="Default: a table on a terminal, TSV when piped.", show_default=False)
    ] = None,
) -> None:
    """Ask the costs in SQL, read only. `DESCRIBE cost_events` lists the columns."""
    text = sys.stdin.read() if query == "-" else query
    try:
        with open_costs(costs_location()) as costs:
            columns, rows = costs.query(text)
    except EngineError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(1) from error
    print_result(columns, rows, output or (Format.TABLE if sys.stdout.isatty() else Format.TSV))


def print_result(columns: Sequence[str], rows: list[tuple[Any, ...]], output: Format) -> None:
    """To standard output; decimals with all their digits."""
    if output is Format.TABLE:
        console_of_output().print(as_table(columns, rows))
    elif output is Format.JSON:
        result = orjson.loads(encode_result(columns, rows))
        objects = [dict(zip(columns, row, strict=True)) for row in result["rows"]]
        typer.echo(orjson.dumps(objects, option=orjson.OPT_INDENT_2).decode())
    else:
        typer.echo(as_lines(columns, rows, tabs=output is Format.TSV), nl=False)


def as_table(columns: Sequence[str], rows: list[tuple[Any, ...]]) -> Table:
    """A Rich table, numbers to the right."""
    table = Table(caption=f"{len(rows):,} row{'' if len(rows) == 1 else 's'}", caption_justify="left")
    for index, column in enumerate(columns):
        texts = any(isinstance(row[index], str) for row in rows)
        table.add_column(escape(column), justify="left" if texts else "right", overflow="fold")
    for row in rows:
        table.add_row(*(escape(exact(value)) for value in row))
    return table


def as_lines(columns: Sequence[str], rows: list[tuple[Any, ...]], *, tabs: bool) -> str:
    """CSV, or TSV with tabs and line breaks inside values escaped by a backslash; the first line has the columns."""
    if tabs:
        lines = [columns, *([exact(value) for value in row] for row in rows)]
        return "".join("\t".join(_escaped(cell) for cell in line) + "\n" for line in lines)
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([exact(value) for value in row] for row in rows)
    return out.getvalue()


def _escaped(cell: str) -> str:
    return cell.replace("\\", "\\\\").replace("\t", "\\t").replace("\n", "\\n").replace("\r", "\\r")

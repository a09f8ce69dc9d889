"""`inference-engine config`: what is in force, and where it was said."""

from typing import Annotated, Any

import orjson
import typer
from rich.console import Console
from rich.table import Table

from ..agents.settings_shown import effective
from ..pipeline.errors import ConfigError
from .command_settings import load_settings


def config_command(
    as_json: Annotated[bool, typer.Option("--json", help="For programs: name -> value and source.")] = False,
) -> None:
    """Show all settings in force and where each comes from. Secrets are masked."""
    try:
        settings = load_settings()
    except ConfigError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(2) from error
    rows = list(effective(settings))
    if as_json:
        typer.echo(orjson.dumps({r.name: {"value": r.value, "source": r.source} for r in rows}, option=orjson.OPT_INDENT_2).decode())
        return
    console = Console()
    if not console.is_terminal:
        for row in rows:
            typer.echo(f"{row.name}={_text(row.value)}  # {row.source}")
        return
    table = Table("setting", "value", "from", box=None, pad_edge=False)
    for row in rows:
        table.add_row(row.name, _text(row.value), row.source, style="" if row.source != "default" else "dim")
    console.print(table)


def _text(value: Any) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else orjson.dumps(value).decode()

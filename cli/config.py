"""`inference-engine config`: what is in force, and where it was said."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer
from dotenv import dotenv_values
from rich.console import Console
from rich.table import Table

from ..agents.settings import Settings, env_names, load_settings, redacted
from ..pipeline.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Effective:
    """One setting as it is in force; secrets are masked."""

    name: str
    value: Any
    source: str
    """`environment`, `.env` or `default`."""


def config_command(
    as_json: Annotated[bool, typer.Option("--json", help="For programs: name -> value and source.")] = False,
) -> None:
    """Show all settings in force and where each comes from. Secrets are masked."""
    try:
        settings = load_settings()
    except ConfigError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(1) from error
    rows = list(effective(settings, os.environ, _dotenv()))
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


def effective(settings: Settings, environ: Mapping[str, str], dotenv: Mapping[str, str | None]) -> Iterator[Effective]:
    """Every setting by its environment name, in the order of the settings' own page."""
    names = env_names()
    for name, path in names.items():
        value: Any = settings
        for part in path:
            value = getattr(value, part)
        yield Effective(name, _jsonable(redacted(value)), _source(name, environ, dotenv))
    for switch, enabled in settings.models_enabled.items():
        name = f"MODELS_{switch.upper()}_ENABLED"
        yield Effective(name, enabled, _source(name, environ, dotenv))


def _source(name: str, environ: Mapping[str, str], dotenv: Mapping[str, str | None]) -> str:
    return "environment" if environ.get(name) else ".env" if dotenv.get(name) else "default"


def _dotenv() -> dict[str, str | None]:
    path = Path(".env")
    return dotenv_values(path, encoding="utf-8") if path.is_file() else {}


def _jsonable(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value


def _text(value: Any) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else orjson.dumps(value).decode()

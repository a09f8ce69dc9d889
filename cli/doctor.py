"""`inference-engine doctor`: is this machine fit, does the engine run, and what to do where not."""

import os
from collections.abc import Iterator, Sequence
from typing import Annotated

import orjson
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ..agents.names import specs
from ..agents.settings import Settings
from ..connectors.data_folder import DataFolder, data_folder
from ..pipeline.errors import ConfigError
from . import examinations as look
from .command_settings import load_settings
from .examinations import Check, Verdict
from .stack import status

_SIGNS: dict[Verdict, str] = {"ok": "[green]ok[/]", "warn": "[yellow]warn[/]", "fail": "[red]fail[/]"}


def doctor_command(as_json: Annotated[bool, typer.Option("--json", help="For programs: a list of checks.")] = False) -> None:
    """Check this machine and the engine, and say what to do. Ends with 1 where something fails."""
    checks = list(examine())
    if as_json:
        typer.echo(orjson.dumps(checks, option=orjson.OPT_INDENT_2).decode())
    else:
        print_checks(checks, Console())
    raise typer.Exit(exit_code(checks))


def examine() -> Iterator[Check]:
    """All checks by the environment and `.env`. Settings that can't be read are a check of their own, not the end of the others."""
    try:
        settings = load_settings()
    except ConfigError as error:
        yield Check("settings", "fail", str(error), "put it right, then ask again; `inference-engine config` shows what is in force")
        yield from _machine(data_folder(), external=bool(os.environ.get("KAFKA_BROKERS")))
        return
    yield Check("settings", "ok", f"read; data folder {settings.data_dir}")
    folder = DataFolder(settings.data_dir)
    yield from _machine(folder, external=bool(settings.kafka_brokers))
    yield from _engine(settings, folder)
    yield from _services(settings)


def _machine(folder: DataFolder, *, external: bool) -> Iterator[Check]:
    yield look.python()
    yield look.faust()
    yield look.java(needed=not external)
    yield look.jars(needed=not external)
    yield look.disk(folder)
    yield look.memory()
    yield look.writable(folder)


def _engine(settings: Settings, folder: DataFolder) -> Iterator[Check]:
    running = status(folder)
    brokers = settings.kafka_brokers or running.brokers
    wanted = specs(settings)
    yield look.broker(brokers)
    yield look.topics(brokers, wanted)
    yield from look.children(folder, running.children, settings.workers)
    if (found := look.models(running.children)) is not None:
        yield found


def _services(settings: Settings) -> Iterator[Check]:
    enabled = settings.caching.semantic_enabled
    yield look.embedder(settings.embedding_base_url, enabled=enabled, backend=settings.embedding_backend)
    yield look.providers(settings.providers)
    if settings.clickhouse_url:
        yield look.reachable("clickhouse", "CLICKHOUSE_URL", settings.clickhouse_url, "/ping")
    if settings.qdrant_url:
        yield look.reachable("qdrant", "QDRANT_URL", settings.qdrant_url, "/readyz")


def print_checks(checks: Sequence[Check], console: Console) -> None:
    """A table on a terminal, one line a check where the output is piped."""
    if not console.is_terminal:
        for check in checks:
            console.print(f"{check.verdict}\t{check.name}\t{check.message}{_then(check)}", markup=False, highlight=False, soft_wrap=True)
        return
    table = Table("", "check", "found", "what to do", box=None, pad_edge=False)
    for check in checks:
        table.add_row(_SIGNS[check.verdict], *map(escape, (check.name, check.message, check.remedy)))
    console.print(table)


def exit_code(checks: Sequence[Check]) -> int:
    """1 where a check failed; a warning is no failure."""
    return int(any(check.verdict == "fail" for check in checks))


def _then(check: Check) -> str:
    return f"; {check.remedy}" if check.remedy else ""

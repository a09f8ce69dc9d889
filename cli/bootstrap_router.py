"""`inference-engine bootstrap-router`: the learned routing policy learns from scored answers, of a table or asked for now."""

from pathlib import Path
from typing import Annotated

import numpy as np
import orjson
import typer

from ..agents.compose import catalogue_of
from ..connectors.data_folder import DataFolder
from ..connectors.router_file import ROUTER_FILE, save_router
from ..connectors.state_file import write_atomically
from ..pipeline.errors import ConfigError, Rejected
from ..pipeline.models import Catalogue
from ..pipeline.router_state import FLOORS, RouterState, learn_state
from ..pipeline.routing_table import Table, comparable
from .command_settings import load_settings
from .evaluate_routing import read_table, rows_seen
from .input_file import open_input, read_lines


def bootstrap_command(
    file: Annotated[
        Path,
        typer.Argument(
            help="A table as for `evaluate routing`, of which nothing is asked; or prompts, as for `run`, that models are asked."
        ),
    ],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Pay the price that is told, without being asked.")] = False,
    max_cost: Annotated[str | None, typer.Option(metavar="USD", help="Hard stop for the prompts: never more.", show_default=False)] = None,
    models: Annotated[str, typer.Option(help="a,b: whom the prompts are asked; default: the best of each tier.", show_default=False)] = "",
    most: Annotated[int, typer.Option(help="Of the prompts, so many at most.", min=10)] = 500,
    embeddings: Annotated[bool, typer.Option("--embeddings/--no-embeddings", help="Learn from embeddings beside features.")] = True,
    output: Annotated[Path | None, typer.Option(metavar="FILE", help="Default: router.npz in the data folder.", show_default=False)] = None,
) -> None:
    """Learn which model is enough for which prompt. Workers with ROUTING_POLICY=learned use it from their next start.

    200 prompts scored on every model teach much, 1,000 most. Of prompts the price is told first, and nothing is paid before you agree;
    answers are scored by a line's "expected", or by agreement with the best model's.
    """
    settings = load_settings()
    table = file if is_table(file) else asked_table(file, yes=yes, max_cost=max_cost, models=models, most=most)
    if table is None:
        typer.echo("Nothing was asked, nothing was paid.", err=True)
        raise typer.Exit(1)
    parsed, notes = read_table(table)
    made, more = comparable(_in_catalogue(parsed, catalogue_of(settings)), table.name)
    for note in (*notes, *more):
        typer.echo(note, err=True)
    state = learn_state(rows_seen(made, by_group=made.groups is not None, embedded=embeddings), np.random.default_rng(0))
    path = output or DataFolder(settings.data_dir).root / ROUTER_FILE
    try:
        save_router(path, state)
    except OSError as error:
        raise ConfigError(f"{path} can't be written: {error.strerror or error}; nothing was changed. Name another file") from error
    for line in told(state, settings.routing.min_quality):
        typer.echo(line)
    typer.echo(f"Wrote {path}" + ("" if settings.routing.policy == "learned" else "; set ROUTING_POLICY=learned to route by it"))


def is_table(path: Path) -> bool:
    """Whether the first line that can be read has scores. Raises `ConfigError`."""
    try:
        with open_input(path) as lines:
            for line in read_lines(lines):
                try:
                    data = orjson.loads(line.data)
                except orjson.JSONDecodeError:
                    continue
                return isinstance(data, dict) and "scores" in data
    except OSError as error:
        raise ConfigError(f"{path} can't be read: {error.strerror or error}; nothing was learned") from error
    return False


def asked_table(path: Path, *, yes: bool, max_cost: str | None, models: str, most: int) -> Path | None:
    """A table of what models answered to these prompts; None where the price was not agreed to. Raises `ConfigError`."""
    from ..agents.embedders import embedder_of
    from .bootstrap_prompts import ask, consented, plan, table_lines
    from .engine import engine

    found, folder = engine(), path.with_name(path.stem + ".bootstrap")
    wanted = plan(found, path, folder, [name.strip() for name in models.split(",") if name.strip()], most)
    if not consented(wanted, yes=yes, max_cost=max_cost):
        return None
    answers = ask(wanted, folder, max_cost)
    embedder = embedder_of(found.settings).embedder
    table = folder / "table.jsonl"
    write_atomically(table, b"".join(line + b"\n" for line in table_lines(wanted, answers, embedder.embed if embedder else None)))
    typer.echo(f"Wrote {table}, for `evaluate routing`", err=True)
    return table


def _in_catalogue(table: Table, catalogue: Catalogue) -> Table:
    """Columns under the canonical names of models.toml; others are left out. Raises `ConfigError`."""
    names: dict[str, str] = {}
    for model in table.models:
        try:
            names.setdefault(catalogue.priced(model).name, model)
        except Rejected:
            continue
    if len(names) < 2:
        raise ConfigError(
            f"of the models {', '.join(table.models)} models.toml has {', '.join(names) or 'none'}: a router chooses among two at least. "
            "Name them as models.toml does, or add them there"
        )
    kept = table.only(list(names.values()))
    return Table(kept.prompts, tuple(names), kept.scores, kept.costs, kept.groups)


def told(state: RouterState, floor: float) -> list[str]:
    """For people: what was learned, and what a floor means."""
    lines = [f"Learned from {state.rows:,} prompts to choose among {', '.join(state.models)}"]
    if state.static:
        lines.append(f"{state.note}: it looks at no prompt. More scored prompts may change that")
    price = state.price(floor)
    reached = [known for known, found in zip(FLOORS, state.prices, strict=True) if found is not None]
    if price is None:
        most = f"{max(reached):.0%} can be validated" if reached else "no floor can be validated"
        lines.append(f"ROUTING_MIN_QUALITY={floor:g} can't be promised for less than the best model: {most} on these prompts")
    else:
        lines.append(f"At ROUTING_MIN_QUALITY={floor:g} a dollar is spent where it buys {price:.4g} of expected score at least")
    return lines

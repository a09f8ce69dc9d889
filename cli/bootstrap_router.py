"""`inference-engine bootstrap-router`: the learned routing policy learns from a table of scored answers."""

from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from ..agents.compose import catalogue_of
from ..agents.settings import load_settings
from ..connectors.data_folder import DataFolder
from ..connectors.router_file import ROUTER_FILE, save_router
from ..pipeline.errors import ConfigError, Rejected
from ..pipeline.models import Catalogue
from ..pipeline.router_state import FLOORS, RouterState, learn_state
from ..pipeline.routing_table import Table, comparable
from .evaluate_routing import read_table, rows_seen


def bootstrap_command(
    table: Annotated[
        Path, typer.Argument(help="As for `evaluate routing`: prompts that models of models.toml answered, scored and priced.")
    ],
    embeddings: Annotated[bool, typer.Option("--embeddings/--no-embeddings", help="Learn from embeddings beside features.")] = True,
    output: Annotated[Path | None, typer.Option(metavar="FILE", help="Default: router.npz in the data folder.", show_default=False)] = None,
) -> None:
    """Learn which model is enough for which prompt. Workers with ROUTING_POLICY=learned use it from their next start.

    Nothing is asked of a provider. 200 prompts scored on every model teach much, 1,000 most.
    """
    settings = load_settings()
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

"""`inference-engine evaluate routing`: what each routing policy would save on a table of scored answers, and at what quality."""

import gzip
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import orjson
import typer

from ..pipeline.complexity import estimate
from ..pipeline.errors import ConfigError
from ..pipeline.prompt_features import feature_rows
from ..pipeline.routing_evaluation import MARGIN, Result, Split, cross_splits, evaluate, one_split
from ..pipeline.routing_table import Table, comparable, parse_table
from ..pipeline.table_policies import POLICIES, REFERENCES, Rows, rows_of
from .prompt_embeddings import embeddings_of


class Policy(StrEnum):
    """As in `pipeline.table_policies`: policies, and what always stands beside them."""

    HEURISTIC = "heuristic"
    QUANTILE = "quantile"
    LEARNED = "learned"
    RANDOM = "random"
    PROMPT_LENGTH = "prompt_length"
    BEST_SINGLE = "best_single"
    STATIC_MIX = "static_mix"
    ORACLE = "oracle"


def routing_command(
    table: Annotated[
        Path,
        typer.Argument(help='JSONL, or .gz of it: {"prompt": "...", "scores": {model: 0..1}, "costs": {model: usd}, "group": optional}.'),
    ],
    policy: Annotated[
        list[Policy] | None, typer.Option(help="One or more; default: all. random to oracle always stand beside them.", show_default=False)
    ] = None,
    train: Annotated[
        Path | None,
        typer.Option(metavar="TABLE", help="Learn from this table and measure on the other; default: 5 folds.", show_default=False),
    ] = None,
    split: Annotated[
        Literal["auto", "rows", "groups"], typer.Option(help="What folds are made of; auto: groups where the table has them.")
    ] = "auto",
    margin: Annotated[float, typer.Option(help="Standard errors that a validated threshold stays above its target.", min=0)] = MARGIN,
    embeddings: Annotated[bool, typer.Option("--embeddings/--no-embeddings", help="Learn from embeddings beside features.")] = True,
    seed: Annotated[int, typer.Option(help="Of folds and resamples.", min=0)] = 0,
    json_output: Annotated[bool, typer.Option("--json", help="For programs: one object by policy.")] = False,
    plot: Annotated[Path | None, typer.Option(metavar="PNG", help="Draw cost against quality.", show_default=False)] = None,
) -> None:
    """Measure routing policies on prompts whose answers by several models are scored and priced.

    Nothing is learned from what it is measured on. Dollars saved are those of the single best model.
    """
    measured, learned_from, notes = _tables(table, train)
    for note in notes:
        _say(note)
    by_group = split == "groups" or (split == "auto" and measured.groups is not None)
    by_group = by_group and _grouped(measured if learned_from is None else learned_from, wanted=split == "groups")
    random = np.random.default_rng(seed)
    splits = _splits(measured, learned_from, random, by_group=by_group, embedded=embeddings)
    names = (*REFERENCES, *(p for p in POLICIES if not policy or p in policy))
    results = evaluate(splits, names, random, margin=margin, progress=_say)
    if plot is not None:
        from .routing_plot import draw

        draw(plot, _points(measured), results)
        _say(f"wrote {plot}")
    if json_output:
        typer.echo(orjson.dumps({name: _fields(result) for name, result in results.items()}, option=orjson.OPT_INDENT_2).decode())
        return
    from .routing_report import print_results

    print_results(measured, learned_from, results, by_group=by_group, margin=margin)


def _tables(table: Path, train: Path | None) -> tuple[Table, Table | None, list[str]]:
    """The table, and the one to learn from, of the same models. Raises `ConfigError`."""
    parsed = read_table(table)
    notes = [*parsed[1]]
    if train is None:
        made, more = comparable(parsed[0], table.name)
        _differing(made, table.name)
        return made, None, [*notes, *more]
    other = read_table(train)
    notes += other[1]
    both = [model for model in parsed[0].models if model in other[0].models]
    if len(both) < 2:
        raise ConfigError(
            f"{table.name} has the models {', '.join(parsed[0].models)}, {train.name} has {', '.join(other[0].models)}; "
            "what is learned of one model says nothing about another: give tables with two models in common"
        )
    if len(both) < len(parsed[0].models) or len(both) < len(other[0].models):
        notes.append(f"only models of both tables are compared: {', '.join(both)}")
    learned_from, more = comparable(other[0].only(both), train.name)
    made, again = comparable(parsed[0].only(learned_from.models), table.name)
    seen = {prompt.strip() for prompt in made.prompts}
    fresh = np.array([prompt.strip() not in seen for prompt in learned_from.prompts])
    if not fresh.all():
        notes.append(f"{train.name}: {(~fresh).sum():,} prompts are in {table.name} too; nothing is learned from them")
    learned_from = learned_from.rows(fresh).only(made.models)
    if learned_from.complete.sum() < 10:
        raise ConfigError(f"{train.name} has {learned_from.complete.sum():,} prompts to learn from; give 10 at least, 200 to learn much")
    _differing(learned_from, train.name)
    return made, learned_from, [*notes, *more, *again]


def _differing(table: Table, name: str) -> None:
    """Raises `ConfigError` where there is nothing to learn from one prompt for another."""
    if len({prompt.strip() for prompt in table.prompts}) < 2:
        raise ConfigError(
            f"{name} has one prompt only, {len(table):,} times: what is learned from it can't be measured on another, and a router has "
            "nothing to tell apart. Give a table of different prompts"
        )


def read_table(path: Path) -> tuple[Table, Sequence[str]]:
    """The table of a file, and what is to be said of it. Raises `ConfigError`."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            parsed = parse_table(file, path.name)
    except (OSError, EOFError, zlib.error) as error:
        why = getattr(error, "strerror", None) or error
        raise ConfigError(f"{path} can't be read: {why}. Nothing was evaluated; name a JSONL file") from error
    return parsed.table, parsed.notes


def _grouped(table: Table, *, wanted: bool) -> bool:
    """Whether the table has two groups at least. Raises `ConfigError` where groups were asked for and there are none."""
    enough = table.groups is not None and len(set(table.groups)) > 1
    if wanted and not enough:
        raise ConfigError('--split groups needs two groups at least; give lines a "group", or use --split rows')
    return enough


def _splits(table: Table, train: Table | None, random: np.random.Generator, *, by_group: bool, embedded: bool) -> list[Split]:
    rows = rows_seen(table, by_group=by_group, embedded=embedded)
    if train is None:
        return cross_splits(rows, random)
    return [one_split(rows_seen(train, by_group=by_group, embedded=rows.embeddings is not None), rows, random)]


def rows_seen(table: Table, *, by_group: bool, embedded: bool) -> Rows:
    """A table with all that policies see of its prompts."""
    vectors = embeddings_of(table.prompts, _say) if embedded else None
    scores = np.array([estimate(p, input_tokens=len(p) // 4, turns=1, max_tokens=None).score for p in table.prompts])
    return rows_of(table, feature_rows(table.prompts), vectors, scores, by_group=by_group)


def _points(table: Table) -> Mapping[str, tuple[float, float]]:
    """(cost, quality) of each single model, relative to the best."""
    from ..pipeline.routing_curve import Ends

    known = table.rows(table.complete)
    ends = Ends.of(known.scores, known.costs)
    cost, quality = known.costs.mean(axis=0), known.scores.mean(axis=0)
    dearest, greatest = cost[ends.best] or 1.0, quality[ends.best] or 1.0
    return {model: (float(cost[i] / dearest), float(quality[i] / greatest)) for i, model in enumerate(table.models)}


def _fields(result: Result) -> dict[str, object]:
    fields = asdict(replace(result, curve=()))
    del fields["curve"]
    return fields


def _say(line: str) -> None:
    typer.echo(line, err=True)

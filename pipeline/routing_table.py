"""A table of prompts that several models answered: what each answer was worth and what it cost.

    {"prompt": "...", "scores": {"small": 0, "large": 1}, "costs": {"small": 0.0001, "large": 0.01}, "group": "maths"}

`scores` lie between 0 and 1, `costs` are USD; null or a missing name: that model was not asked. `group` is optional: prompts of a group are
of one kind, and a router that has seen some of them knows something about the others.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import orjson
from numpy.typing import NDArray

from .errors import ConfigError

_RARE = 0.2
_MANY_COMPLETE = 200
"""So many prompts that every model answered are enough to compare them all."""


@dataclass(frozen=True, slots=True)
class Table:
    """Shapes: `scores` and `costs` (prompts, models), NaN where unknown."""

    prompts: tuple[str, ...]
    models: tuple[str, ...]
    scores: NDArray[np.float64]
    costs: NDArray[np.float64]
    groups: tuple[str, ...] | None

    def __len__(self) -> int:
        return len(self.prompts)

    estimated: bool = False
    """Too few prompts were answered by every model: what is missing is estimated where policies are measured."""

    @property
    def _missing(self) -> NDArray[np.bool_]:
        return np.asarray(np.isnan(self.scores) | np.isnan(self.costs))

    @property
    def complete(self) -> NDArray[np.bool_]:
        """Shape (prompts,): whether a policy can be measured on it: every score and cost is known, or two are and others are estimated."""
        return np.asarray((~self._missing).sum(axis=1) >= (2 if self.estimated else len(self.models)))

    def measured(self) -> Self:
        """Its complete rows; a missing score is the model's mean, moved as far as the other models on that prompt are from theirs."""
        made = self.rows(self.complete)
        missing = made._missing
        if not missing.any():
            return made
        scores, costs = np.where(missing, np.nan, made.scores), np.where(missing, np.nan, made.costs)
        score, cost = np.nanmean(scores, axis=0), np.maximum(np.nanmean(costs, axis=0), 1e-300)
        better = np.nanmean(scores - score, axis=1, keepdims=True)
        dearer = np.nanmean(costs / cost, axis=1, keepdims=True)
        filled = np.where(missing, np.clip(score + better, 0.0, 1.0), made.scores), np.where(missing, cost * dearer, made.costs)
        return replace(made, scores=filled[0], costs=filled[1])

    def rows(self, chosen: NDArray[np.intp] | NDArray[np.bool_]) -> Self:
        index = np.arange(len(self))[chosen]
        groups = None if self.groups is None else tuple(self.groups[i] for i in index)
        prompts = tuple(self.prompts[i] for i in index)
        return replace(self, prompts=prompts, scores=self.scores[index], costs=self.costs[index], groups=groups)

    def only(self, models: Sequence[str]) -> Self:
        index = [self.models.index(name) for name in models]
        return replace(self, models=tuple(models), scores=self.scores[:, index], costs=self.costs[:, index])


@dataclass(frozen=True, slots=True)
class Parsed:
    """A table, and what of the file is not in it."""

    table: Table
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Row:
    prompt: str
    scores: Mapping[str, float]
    costs: Mapping[str, float]
    group: str | None


def parse_table(lines: Iterable[bytes], name: str) -> Parsed:
    """Reads a table; bad lines are left out and noted. Raises `ConfigError` where nothing can be compared with what is left."""
    rows: list[_Row] = []
    bad: list[str] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            rows.append(_row(line.removeprefix(b"\xef\xbb\xbf")))
        except ValueError as error:
            bad.append(f"line {number} {error}")
    notes = []
    if bad:
        more = f"; and {len(bad) - 5:,} more" if len(bad) > 5 else ""
        notes.append(f"{name}: {len(bad):,} lines are left out: {'; '.join(bad[:5])}{more}")
    if not rows:
        what = notes[0] if notes else f"{name} is empty"
        raise ConfigError(f'{what}. There is nothing to evaluate; a line is {{"prompt": "...", "scores": {{...}}, "costs": {{...}}}}')
    return Parsed(_table(rows), tuple(notes))


def _row(line: bytes) -> _Row:
    try:
        value = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise ValueError(f"is not JSON ({error})") from None
    if not isinstance(value, dict):
        raise ValueError("is not an object")
    prompt = value.get("prompt")
    if not isinstance(prompt, str) or not prompt.strip():
        raise ValueError('has no "prompt", a text')
    scores, costs = _numbers(value, "scores"), _numbers(value, "costs")
    outside = [model for model, score in scores.items() if not 0.0 <= score <= 1.0]
    if outside:
        raise ValueError(f'has a score of {scores[outside[0]]:g} for {outside[0]!r}; "scores" lie between 0 and 1')
    negative = [model for model, cost in costs.items() if cost < 0]
    if negative:
        raise ValueError(f"has a cost of {costs[negative[0]]:g} for {negative[0]!r}; a cost is 0 or more")
    if not scores:
        raise ValueError('has no number in "scores"')
    group = value.get("group")
    if group is not None and not isinstance(group, (str, int, float)):
        raise ValueError('has a "group" that is neither a text nor a number')
    return _Row(prompt, scores, costs, None if group is None else str(group))


def _numbers(value: Mapping[str, Any], key: str) -> dict[str, float]:
    """The numbers of an object by model; null is left out, true is 1."""
    given = value.get(key)
    if not isinstance(given, dict):
        raise ValueError(f'has no "{key}", an object of numbers by model')
    found: dict[str, float] = {}
    for model, number in given.items():
        if number is None:
            continue
        if not isinstance(number, (int, float)) or not math.isfinite(number):
            raise ValueError(f'has {number!r} for {model!r} in "{key}", which is not a number')
        found[model] = float(number)
    return found


def _table(rows: Sequence[_Row]) -> Table:
    models = tuple(sorted({model for row in rows for model in row.scores} | {model for row in rows for model in row.costs}))
    column = {model: i for i, model in enumerate(models)}
    scores = np.full((len(rows), len(models)), np.nan)
    costs = np.full_like(scores, np.nan)
    for i, row in enumerate(rows):
        for into, given in ((scores, row.scores), (costs, row.costs)):
            for model, number in given.items():
                into[i, column[model]] = number
    grouped = [row.group for row in rows]
    # A prompt without a group in a table with groups is a kind of its own.
    groups = None if all(g is None for g in grouped) else tuple(g if g is not None else f"line {i}" for i, g in enumerate(grouped))
    return Table(tuple(row.prompt for row in rows), models, scores, costs, groups)


def comparable(table: Table, name: str) -> tuple[Table, tuple[str, ...]]:
    """Only models that can be compared: with known costs, on enough prompts that all of them answered. Raises `ConfigError` below two."""
    known = ~(np.isnan(table.scores) | np.isnan(table.costs))
    notes: list[str] = []
    kept = [model for i, model in enumerate(table.models) if known[:, i].any()]
    if len(kept) < len(table.models):
        without = ", ".join(sorted(set(table.models) - set(kept)))
        notes.append(f"{name}: {without} left out: a model whose score or price is unknown is never chosen")
    made = table.only(kept)
    known = (~made._missing).sum(axis=0)
    rare = [model for i, model in enumerate(made.models) if known[i] < max(10, _RARE * len(made))]
    if rare and len(made.models) - len(rare) >= 2:
        notes.append(f"{name}: {', '.join(rare)} left out: too few prompts have its score and cost")
        made = made.only([model for model in made.models if model not in rare])
    incomplete = int((~made.complete).sum())
    if made.complete.sum() < min(_MANY_COMPLETE, 0.5 * len(made)):
        made = replace(made, estimated=True)
        share = made._missing.mean()
        notes.append(
            f"{name}: {incomplete:,} of {len(made):,} prompts lack a score or a cost of some model: policies learn from what is there, and "
            f"{share:.0%} of the values that they are measured on are estimated from the others"
        )
    elif incomplete:
        notes.append(
            f"{name}: {incomplete:,} of {len(made):,} prompts lack a score or a cost of some model: policies learn from them, "
            "and are measured on the others"
        )
    if len(made.models) < 2 or made.complete.sum() < 10:
        raise ConfigError(
            f"{name} has {len(made.models)} models with scores and costs and {made.complete.sum():,} prompts that all of them answered; "
            "routing is measured with 2 models and 10 prompts at least"
        )
    return made, tuple(notes)

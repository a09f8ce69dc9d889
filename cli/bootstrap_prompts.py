"""`bootstrap-router` on prompts: every model is asked, at a price told first, and the answers become a table of scores and costs."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import typer

from ..agents.routing import route_with
from ..connectors.state_file import write_atomically
from ..pipeline.answer_scores import score_of
from ..pipeline.errors import ConfigError, Rejected
from ..pipeline.judge import text_of
from ..pipeline.models import Catalogue, Model
from ..pipeline.text import last_user_text
from ..schemas.answers import Answer, Usage
from ..schemas.record import PICO_PER_USD
from .engine import Engine
from .estimate import Embed, Estimator
from .input_file import open_input, read_lines
from .outcome import pico
from .progress import money
from .rows import Row, RowDefaults, parse_row
from .run_command import RunArguments, pico_limit
from .run_command import run as run_file

INTERRUPTED = 130


@dataclass(frozen=True, slots=True)
class Prompt:
    """One that every model is asked."""

    custom_id: str
    text: str
    line: bytes
    """As it goes into the file of prompts."""
    expected: str | None
    """What a good answer says, where somebody knows."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What is going to be asked, and what that costs; pico-dollars: low, expected, high."""

    prompts: tuple[Prompt, ...]
    file: Path
    models: tuple[Model, ...]
    """The reference first."""
    costs: Mapping[str, tuple[int, int, int]]

    def told(self) -> list[str]:
        """For people, before anything is paid."""
        lines = [f"{len(self.prompts):,} prompts are asked of {len(self.models)} models, each answer once and from no cache:"]
        lines += [
            f"  {m.name}: about {money(self.costs[m.name][1])}, with long answers {money(self.costs[m.name][2])}" for m in self.models
        ]
        total = [sum(cost[i] for cost in self.costs.values()) for i in (1, 2)]
        known = sum(prompt.expected is not None for prompt in self.prompts)
        beside = f"{known:,} answers are scored by `expected`" + (
            "" if known == len(self.prompts) else f", the others by agreement with {self.models[0].name}, which is no measure of truth"
        )
        return [*lines, f"Together about {money(total[0])}, with long answers {money(total[1])}. {beside}."]


def read_prompts(path: Path, most: int) -> tuple[Prompt, ...]:
    """At most so many, drawn evenly; lines of `run`, which may say `expected`. Raises `ConfigError`."""
    found: list[Prompt] = []
    with open_input(path) as file:
        for line in read_lines(file):
            prompt = None if line.oversized else _prompt(line.data, line.row + 1)
            if prompt is not None:
                found.append(prompt)
    unique = list({prompt.custom_id: prompt for prompt in found}.values())
    if len(unique) < 10:
        raise ConfigError(f"{path} has {len(unique)} prompts that can be asked; 200 teach much, 1,000 most, and fewer than 10 nothing")
    if len(unique) <= most:
        return tuple(unique)
    chosen = np.sort(np.random.default_rng(0).choice(len(unique), most, replace=False))
    return tuple(unique[i] for i in chosen)


def _prompt(raw: bytes, number: int) -> Prompt | None:
    try:
        data = orjson.loads(raw)
    except orjson.JSONDecodeError:
        return None
    expected = data.pop("expected", None) if isinstance(data, dict) else None
    row = parse_row(orjson.dumps(data), number, RowDefaults("bootstrap"))
    text = last_user_text(row.body) if isinstance(row, Row) else None
    if not isinstance(row, Row) or text is None:
        return None
    line = orjson.dumps({k: row.record[k] for k in ("custom_id", "method", "url", "body")})
    return Prompt(row.custom_id, text, line, expected if isinstance(expected, str) and expected.strip() else None)


def models_to_ask(catalogue: Catalogue, names: Sequence[str]) -> tuple[Model, ...]:
    """The named ones, or one of each tier, the reference (the greatest `quality`) first. Raises `ConfigError`."""
    try:
        chosen = [catalogue.get(name) for name in names]
    except Rejected as error:
        raise ConfigError(f"--models: {error}") from error
    if not names:
        able = [model for model in catalogue.models if model.enabled and model.auto]
        tiers = ([model for model in able if model.tier == tier] for tier in ("premium", "standard", "economy"))
        chosen = [max(models, key=lambda model: model.quality) for models in tiers if models]
    unique = list({model.name: model for model in chosen}.values())
    if len(unique) < 2:
        raise ConfigError("a router chooses among two models at least; enable more in models.toml, or name them with --models a,b")
    return tuple(sorted(unique, key=lambda model: -model.quality))


def plan(found: Engine, path: Path, folder: Path, names: Sequence[str], most: int) -> Plan:
    """Sends nothing. Raises `ConfigError`."""
    prompts = read_prompts(path, most)
    file = folder / "prompts.jsonl"
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(file, b"".join(prompt.line + b"\n" for prompt in prompts))
    catalogue = found.catalogue()
    models, decide = models_to_ask(catalogue, names), route_with(found.settings, catalogue)
    costs = {}
    for model in models:
        defaults = RowDefaults("bootstrap", model.name, None, None, use_cache=False)
        estimated = Estimator(catalogue, datetime.now(UTC).date(), found.settings.default_tenant, defaults, 1.0, decide).estimate(file)
        if estimated.unknown:
            raise ConfigError(f"{model.name} has no known price, so it can't be asked; give its prices in models.toml, or leave it out")
        costs[model.name] = estimated.cost
    return Plan(prompts, file, models, costs)


def consented(plan_: Plan, *, yes: bool, max_cost: str | None) -> bool:
    """Whether to go on, once the price was told. Raises `ConfigError` where nobody can be asked."""
    for line in plan_.told():
        typer.echo(line, err=True)
    if yes or max_cost is not None:
        return True
    if not sys.stdin.isatty():
        raise ConfigError("nobody is there to be asked: say --yes, or how much it may cost with --max-cost USD; nothing was sent")
    return typer.confirm("Pay for it?", err=True)


def ask(plan_: Plan, folder: Path, max_cost: str | None) -> dict[str, dict[str, Answer]]:
    """Answers by model and custom_id. Asked again, it goes on where it was, and pays nothing twice. Raises `ConfigError`."""
    limit, answers = pico_limit(max_cost), {}
    for model in plan_.models:
        output = folder / f"{_file_name(model.name)}.answers.jsonl"
        spent = sum(_spent(folder / f"{_file_name(m.name)}.answers.jsonl") for m in plan_.models if m is not model)
        left = None if limit is None else f"{Decimal(max(0, limit - spent)) / PICO_PER_USD:.12f}"
        typer.echo(f"asking {model.name}", err=True)
        arguments = RunArguments(
            input=plan_.file, output=output, tenant=None, job=None, model=model.name, priority=None, deadline=None, use_cache=False,
            max_cost=left, window=5_000, retry_failed=False, quiet=True, start=True, json_report=None,
        )  # fmt: skip
        if run_file(arguments) == INTERRUPTED:
            raise KeyboardInterrupt
        answers[model.name] = {custom_id: answer for custom_id, answer in _answers(output) if answer.model_used == model.name}
    return answers


def _file_name(name: str) -> str:
    return "".join(c if c.isalnum() or c in "-." else "_" for c in name)


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    if path.exists():
        yield from (orjson.loads(line) for line in path.read_bytes().splitlines() if line.strip())


def _spent(path: Path) -> int:
    return sum(pico(e["cost_usd"]) + pico(e.get("ambiguous_cap_usd", "0")) for line in _lines(path) if (e := line.get("engine")))


def _answers(path: Path) -> Iterator[tuple[str, Answer]]:
    for line in _lines(path):
        response, engine = line.get("response"), line["engine"]
        if response is None or engine.get("model_used") is None:
            continue
        choices = response["body"].get("choices") or [{}]
        yield line["custom_id"], Answer(
            body=response["body"], model_used=engine["model_used"], usage=Usage(input_tokens=0, output_tokens=0),
            paid_pico=pico(engine["cost_usd"]), finish_reason=str(choices[0].get("finish_reason")),
        )  # fmt: skip


def table_lines(plan_: Plan, answers: Mapping[str, Mapping[str, Answer]], embed: Embed | None) -> Iterator[bytes]:
    """Lines of a table as `evaluate routing` and this command read it. A model that gave no answer to a prompt is left out of its line."""
    nearness = None if embed is None else _Near(embed)
    reference = plan_.models[0].name
    for prompt in plan_.prompts:
        given = {model.name: answers[model.name][prompt.custom_id] for model in plan_.models if prompt.custom_id in answers[model.name]}
        best = given.get(reference)
        scores = {
            name: 1.0
            if prompt.expected is None and name == reference and text_of(answer.body)
            else score_of(answer, prompt.expected, best, nearness)
            for name, answer in given.items()
        }
        known = {name: score for name, score in scores.items() if score is not None}
        if len(known) >= 2:
            costs = {name: float(f"{given[name].paid_pico / 10**12:.12g}") for name in known}
            yield orjson.dumps({"prompt": prompt.text, "scores": known, "costs": costs})


class _Near:
    """Cosines of answers, each text embedded once."""

    def __init__(self, embed: Embed) -> None:
        self._embed = embed
        self._known: dict[str, Any] = {}

    def __call__(self, one: str, other: str) -> float:
        missing = [text for text in dict.fromkeys((one, other)) if text not in self._known]
        if missing:
            self._known.update(zip(missing, self._embed(missing), strict=True))
        return float(self._known[one] @ self._known[other])

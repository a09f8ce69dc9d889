"""`run --estimate`: what a file would cost, without paying anything or sending anything.

Exact repeats are counted over the whole file, by the engine's own fingerprints. Likeness is measured on a sample, where an embedder
is installed: a lower bound, since a larger crowd has nearer neighbours. Input tokens are bytes / 4, output tokens are assumed.
"""

import random
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..pipeline.billing import output_bound
from ..pipeline.errors import Rejected, Unpriced
from ..pipeline.fingerprint import fingerprint_and_scope
from ..pipeline.models import Catalogue, Model
from ..pipeline.ports import Vectors
from ..pipeline.prices import rates
from ..pipeline.text import last_user_text
from ..schemas.requests import Identity, Request
from .input_file import Line, open_input, read_lines
from .rows import Row, RowDefaults, parse_row

if TYPE_CHECKING:
    from ..agents.route import Decide

BYTES_PER_TOKEN = 4
OUTPUT_TOKENS = (16, 256, 1024)
"""Assumed of an answer: low, expected, high; never more than the row allows."""
SAMPLE = 512
ROUTED = 1_000
"""So many rows for `auto` are routed one by one; of those behind them every fiftieth, and the others as these were."""
ROUTED_LATER = 1 / 50

Embed = Callable[[Sequence[str]], Vectors]


@dataclass(frozen=True, slots=True)
class Estimate:
    """Money in pico-dollars: low, expected, high."""

    rows: int
    bad: int
    unknown: int
    """Rows whose model is not known or has no price: they will be errors."""
    exact_hits: int
    semantic_rate: float | None
    """Share of the distinct prompts in the sample that are near another one; None where it was not measured."""
    sampled: int
    input_tokens: int
    cost: tuple[int, int, int]
    without_engine: int
    """Every row alone, on the model it asks for (`auto`: the premium one), at the expected length."""
    models: dict[str, int]
    routes: dict[str, int]
    """Rows for `auto` that were routed, by the model that they would go to first."""
    low_near: float = 0.0
    """The share of the distinct prompts that the low cost takes for near repeats."""


@dataclass(slots=True)
class _Sums:
    prints: "array[int]" = field(default_factory=lambda: array("Q"))
    costs: "tuple[array[int], array[int], array[int]]" = field(default_factory=lambda: (array("Q"), array("Q"), array("Q")))
    rows: int = 0
    bad: int = 0
    unknown: int = 0
    input_tokens: int = 0
    without_engine: int = 0
    models: dict[str, int] = field(default_factory=dict)
    sample: list[tuple[str, str]] = field(default_factory=list)
    """(scope, text)."""


@dataclass(slots=True)
class Estimator:
    """Reads a file once; 32 bytes of memory a row."""

    catalogue: Catalogue
    day: date
    tenant: str
    defaults: RowDefaults
    similarity_threshold: float
    decide: "Decide"
    """The engine's router."""
    embed: Embed | None = None
    """None: likeness is not measured."""
    assumed_near: float = 0.0
    """What the low cost takes for near repeats where likeness is not measured."""
    _sums: _Sums = field(default_factory=_Sums)
    _chance: random.Random = field(default_factory=lambda: random.Random(0))
    _sampled_from: int = 0
    _choices: tuple[Model, Model] | None = None
    _routes: Counter[str] = field(default_factory=Counter)

    def estimate(self, path: Path) -> Estimate:
        """Raises `ConfigError` where the file can't be read."""
        with open_input(path) as file:
            for line in read_lines(file):
                self._sums.rows += 1
                self._take(line)
        return self._result()

    def _take(self, line: Line) -> None:
        sums = self._sums
        parsed = None if line.oversized else parse_row(line.data, line.row + 1, self.defaults)
        if not isinstance(parsed, Row):
            sums.bad += 1
            return
        try:
            self._price(parsed)
        except (Rejected, Unpriced):
            sums.unknown += 1
        except (AttributeError, TypeError):
            sums.bad += 1  # the engine's door refuses such messages

    def _price(self, row: Row) -> None:
        sums, body = self._sums, row.body
        name = self.catalogue.resolve(str(body["model"]))
        index = row.engine.get("sample_index")
        fingerprint, scope = fingerprint_and_scope(self.tenant, name, body, index if isinstance(index, int) else None)
        tokens = prompt_bytes(body) // BYTES_PER_TOKEN + 1
        usual = self.catalogue.counterfactual(name)
        short, middling, long = OUTPUT_TOKENS
        cheapest, dearest = self._auto() if name == "auto" else (usual, usual)
        routed = self._routed(row, fingerprint, scope, tokens) if name == "auto" else self._cost(usual, body, tokens, middling)
        # A router may also choose what is else for asking by name only, where nothing else takes a row.
        chosen = [self.catalogue.get(model) for model in self._routes] if name == "auto" else []
        low = min(self._cost(model, body, tokens, short) for model in (cheapest, *chosen))
        # Time halves the price, where a provider's batch takes the row.
        costs = (low // 2 if row.engine.get("deadline") else low, routed, self._cost(dearest, body, tokens, long))
        sums.without_engine += self._cost(usual, body, tokens, OUTPUT_TOKENS[1])
        for column, cost in zip(sums.costs, costs, strict=True):
            column.append(cost)
        unshared = row.engine.get("use_cache") is False
        sums.prints.append((1 << 63) + sums.rows if unshared else int(fingerprint[:15], 16))
        sums.input_tokens += tokens
        sums.models[name] = sums.models.get(name, 0) + 1
        text = last_user_text(body)
        if text and not unshared and self.embed is not None:
            self._sample(scope, text)

    def _cost(self, model: Model, body: dict[str, Any], tokens: int, out: int) -> int:
        rate = rates(model, "standard", self.day).at(tokens)
        return tokens * rate.input + min(out, output_bound(model, body)) * rate.output

    def _routed(self, row: Row, fingerprint: str, scope: str, tokens: int) -> int:
        """What a middling answer costs on the model that the router chooses, or on average on those that it chose."""
        body, out = row.body, OUTPUT_TOKENS[1]
        done = self._routes.total()
        if done < ROUTED or self._chance.random() < ROUTED_LATER:
            name = self.decide(self._request(row, fingerprint, scope)).models[0]
            self._routes[name] += 1
            return self._cost(self.catalogue.get(name), body, tokens, out)
        return sum(count * self._cost(self.catalogue.get(name), body, tokens, out) for name, count in self._routes.items()) // done

    def _request(self, row: Row, fingerprint: str, scope: str) -> Request:
        preferred, language = row.engine.get("preferred_model"), row.engine.get("language")
        return Request.model_construct(
            identity=Identity.model_construct(tenant=self.tenant, job=self.defaults.job, custom_id=row.custom_id),
            body=row.body,
            model="auto",
            fingerprint=fingerprint,
            scope=scope,
            flight=fingerprint,
            preferred_model=self.catalogue.get(preferred).name if isinstance(preferred, str) else None,
            cascade=row.engine.get("cascade"),
            language=language if isinstance(language, str) else None,
        )

    def _auto(self) -> tuple[Model, Model]:
        """The cheapest, the premium default."""
        if self._choices is None:
            self._choices = self._find_choices()
        return self._choices

    def _find_choices(self) -> tuple[Model, Model]:
        priced = sorted(self._priced(), key=lambda pair: pair[0])
        if not priced:
            raise Unpriced("no enabled model has a price")
        return priced[0][1], self.catalogue.counterfactual("auto")

    def _priced(self) -> Iterator[tuple[int, Model]]:
        for model in self.catalogue.models:
            if model.enabled and model.auto:
                try:
                    yield rates(model, "standard", self.day).at(1000).output, model
                except Unpriced:
                    continue

    def _sample(self, scope: str, text: str) -> None:
        self._sampled_from += 1
        sample = self._sums.sample
        if len(sample) < SAMPLE:
            sample.append((scope, text))
        elif (at := self._chance.randrange(self._sampled_from)) < SAMPLE:
            sample[at] = (scope, text)

    def _result(self) -> Estimate:
        sums = self._sums
        distinct = (
            np.unique(np.frombuffer(sums.prints, dtype=np.uint64), return_index=True)[1] if sums.prints else np.array([], dtype=np.intp)
        )
        once = [_sum(column, distinct) for column in sums.costs]
        rate, sampled = self._likeness()
        near = (rate, rate) if rate is not None else (self.assumed_near, 0.0)
        low, expected = (once[n] * round((1 - near[n]) * 10_000) // 10_000 for n in (0, 1))
        return Estimate(
            rows=sums.rows,
            bad=sums.bad,
            unknown=sums.unknown,
            exact_hits=len(sums.prints) - len(distinct),
            semantic_rate=rate,
            sampled=sampled,
            input_tokens=sums.input_tokens,
            cost=(low, expected, once[2]),
            without_engine=sums.without_engine,
            models=sums.models,
            routes=dict(self._routes),
            low_near=near[0],
        )

    def _likeness(self) -> tuple[float | None, int]:
        distinct = sorted(set(self._sums.sample))
        if self.embed is None or len(distinct) < 2:
            return None, 0
        vectors = self.embed([text for _, text in distinct])
        cosines = vectors @ vectors.T
        scopes = np.array([scope for scope, _ in distinct])
        same = scopes[:, None] == scopes[None, :]
        before = np.tri(len(distinct), k=-1, dtype=bool)
        hits = ((cosines >= self.similarity_threshold) & same & before).any(axis=1)
        return float(hits.mean()), len(distinct)


def _sum(column: "array[int]", rows: Any) -> int:
    picked = np.frombuffer(column, dtype=np.uint64)[rows] if len(column) else []
    return sum(int(cost) for cost in picked)


def prompt_bytes(body: dict[str, Any]) -> int:
    """UTF-8 bytes of all texts of a prompt; messages that are none count nothing."""
    total = 0
    for message in body["messages"]:
        content = message.get("content")
        if isinstance(content, str):
            total += len(content.encode())
        elif isinstance(content, list):
            total += sum(len(str(p.get("text", "")).encode()) for p in content if isinstance(p, dict))
    return total

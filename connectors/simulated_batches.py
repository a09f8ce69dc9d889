"""Batches of the simulated provider: rows that are done one after the other over the turnaround, at the batch price, on its bill.

Marks in a row's last user message steer it: `[[batch:expired]]`, `[[batch:canceled]]`, `[[batch:errored]]`, and the marks and
rules of `simulation`, as far as they are a status or a broken answer. Whether a row is done depends on the clock alone, so a
batch that is kept in a folder goes on while no process looks at it.
"""

import asyncio
import itertools
import os
import re
import secrets
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import orjson

from ..pipeline.models import Prices
from ..schemas.answers import Usage
from ..schemas.record import JsonObject
from .simulated_bill import Bill, known, price
from .simulated_cache import Served, SimulatedCache, prompt_of_chat, prompt_of_messages, rules_of
from .simulated_forms import completion, message
from .simulated_responses import chat_of_responses, response
from .simulation import STATUS_FAULTS, Asked, Faults, answer, asked_of_chat, asked_of_messages

Protocol = Literal["openai", "anthropic"]
End = Literal["succeeded", "errored", "canceled", "expired"]

_MARK = re.compile(r"\[\[batch:(expired|canceled|errored)\]\]")


@dataclass(slots=True)
class BatchOptions:
    """How batches behave. Times in seconds."""

    turnaround_s: float = 0.0
    """Rows are done evenly over this time."""
    window_s: float = 86_400.0
    """Rows that are not done by then expire."""
    queue_rows: int | None = None
    """So many rows may be worked on at once: a batch of OpenAI's that exceeds them fails as a whole."""
    folder: Path | None = None
    """Where batches outlive the process; None: in memory."""


@dataclass(slots=True)
class Result:
    """Of one row. `reply` is the answer or the error, in the protocol's own form."""

    custom_id: str
    end: End
    status: int
    reply: JsonObject | None
    request_id: str


@dataclass(slots=True)
class SimulatedBatch:
    """One batch; `rows` are (custom_id, body)."""

    id: str
    protocol: Protocol
    rows: list[tuple[str, JsonObject]]
    created_s: float
    metadata: dict[str, str] = field(default_factory=dict)
    file_id: str = ""
    canceled_s: float | None = None
    results: list[Result] | None = None
    """Set once it has ended."""
    ended_s: float | None = None
    output_file_id: str = ""
    error_file_id: str = ""
    crowded: bool = False
    """It failed, for there was no room in the queue."""


class SimulatedBatches:
    """All batches of one provider. Use it from one event loop."""

    def __init__(
        self,
        bill: Bill,
        faults: Faults,
        options: BatchOptions,
        clock: Callable[[], float],
        answers: Mapping[str, str] | None = None,
        prices: Callable[[str], Prices | None] = lambda _: None,
        cache: SimulatedCache | None = None,
    ) -> None:
        """`clock`: seconds since the epoch. `prices`: given prices by the provider's name of a model. `cache`: the prompt cache, on the
        same clock; None: there is none."""
        self.options = options
        self._bill, self._faults, self._clock = bill, faults, clock
        self._answers = answers or {}
        self._prices = prices
        self._cache = cache
        self._batches: dict[str, SimulatedBatch] = {}
        self._numbers = itertools.count(1)
        self._advancing = asyncio.Lock()

    def create(self, protocol: Protocol, rows: list[tuple[str, JsonObject]], metadata: dict[str, str], file_id: str = "") -> SimulatedBatch:
        """Raises ValueError with what is wrong with the rows."""
        if not rows:
            raise ValueError("a batch needs at least one request")
        if len({custom_id for custom_id, _ in rows}) < len(rows):
            raise ValueError("custom_ids must be unique")
        for _, body in rows:
            self._asked(protocol, body)
        batch = SimulatedBatch(f"{'msgbatch' if protocol == 'anthropic' else 'batch'}_{secrets.token_hex(12)}", protocol, rows,
                               self._clock(), metadata, file_id)  # fmt: skip
        if self.options.queue_rows is not None and len(rows) + self._worked_on(protocol) > self.options.queue_rows:
            batch.crowded, batch.results, batch.ended_s = True, [], self._clock()
        self._batches[batch.id] = batch
        self._save(batch)
        return batch

    def _worked_on(self, protocol: Protocol) -> int:
        now = (b for b in self.list(protocol) if b.results is None and b.canceled_s is None)
        return sum(len(b.rows) for b in now if self.done(b) < len(b.rows))

    def list(self, protocol: Protocol) -> list[SimulatedBatch]:
        """The latest first."""
        folder = self.options.folder
        if folder is not None and folder.is_dir():
            for path in folder.glob("*batch_*.json"):
                self.get(path.stem)
        return sorted((b for b in self._batches.values() if b.protocol == protocol), key=lambda b: -b.created_s)

    def get(self, batch_id: str) -> SimulatedBatch | None:
        found = self._batches.get(batch_id)
        if found is None and (path := self._path(batch_id)) is not None and path.is_file():
            fields = orjson.loads(path.read_bytes())
            results = fields.pop("results")
            found = SimulatedBatch(**{**fields, "rows": [tuple(row) for row in fields["rows"]]})
            found.results = None if results is None else [Result(**r) for r in results]
            self._batches[batch_id] = found
        return found

    def cancel(self, batch: SimulatedBatch) -> None:
        if batch.results is None and batch.canceled_s is None:
            batch.canceled_s = self._clock()
            self._save(batch)

    def delete(self, batch: SimulatedBatch) -> None:
        self._batches.pop(batch.id, None)
        path = self._path(batch.id)
        if path is not None:
            path.unlink(missing_ok=True)

    def done(self, batch: SimulatedBatch) -> int:
        """Rows that are done by now."""
        until = min(self._clock(), batch.created_s + self.options.window_s)
        if batch.canceled_s is not None:
            until = min(until, batch.canceled_s)
        passed, whole = until - batch.created_s, self.options.turnaround_s
        return len(batch.rows) if passed >= whole else int(len(batch.rows) * passed / whole)

    async def advance(self, batch: SimulatedBatch) -> None:
        """Ends the batch where its time has come: its rows are answered, and billed."""
        # Two who look at once must not have its rows billed twice.
        async with self._advancing:
            await self._advance(batch)

    async def _advance(self, batch: SimulatedBatch) -> None:
        if batch.results is not None:
            return
        done, expired = self.done(batch), self._clock() >= batch.created_s + self.options.window_s
        if done < len(batch.rows) and batch.canceled_s is None and not expired:
            return
        rest: End = "canceled" if batch.canceled_s is not None else "expired"
        each_s = self.options.turnaround_s / len(batch.rows)
        results = [
            await self._row(batch, custom_id, body, batch.created_s + place * each_s)
            for place, (custom_id, body) in enumerate(batch.rows[:done])
        ]
        results += [Result(custom_id, rest, 0, None, "") for custom_id, _ in batch.rows[done:]]
        batch.results, batch.ended_s = results, self._clock()
        self._save(batch)

    async def _row(self, batch: SimulatedBatch, custom_id: str, body: JsonObject, at_s: float) -> Result:
        asked = self._asked(batch.protocol, body)
        request_id = f"req_{batch.id[-6:]}_{next(self._numbers):06d}"
        mark = _MARK.search(asked.text)
        if mark is not None and mark[1] != "errored":
            return Result(custom_id, mark[1], 0, None, request_id)  # type: ignore[arg-type]
        fault = self._faults.pick(asked.text)
        status = 400 if mark is not None else int(fault.kind[:3]) if fault is not None and fault.kind[:3] in STATUS_FAULTS else 0
        if status:
            return Result(custom_id, "errored", status, _error(batch.protocol, status), request_id)
        made = answer(asked, self._answers)
        try:
            usage = self._served(batch.protocol, asked.model, body, at_s).usage(asked.input_tokens, made.output_tokens)
        except ValueError:
            return Result(custom_id, "errored", 400, _error(batch.protocol, 400), request_id)
        pico = price(asked.model, usage, "batch", self._prices(asked.model))
        await self._bill.add(asked.model, asked.text, request_id, custom_id, usage, pico)
        writer = message if batch.protocol == "anthropic" else response if "input" in body else completion
        reply = writer(asked, made, request_id, usage)
        kind = fault.kind if fault is not None else ""
        if kind == "no-usage":
            del reply["usage"]
        elif kind == "wrong-model":
            reply["model"] = "another-model"
        elif kind == "no-choices":
            reply["content" if batch.protocol == "anthropic" else "output" if "input" in body else "choices"] = None
        if batch.protocol == "anthropic" and "usage" in reply:
            reply["usage"]["service_tier"] = "batch"
        return Result(custom_id, "succeeded", 200, reply, request_id)

    def _served(self, protocol: Protocol, model: str, body: JsonObject, at_s: float) -> Served:
        """Raises ValueError where its marks are not allowed."""
        if self._cache is None or not self._sells_reads(model):
            return Served()
        prompt = prompt_of_messages(model, body) if protocol == "anthropic" else prompt_of_chat(model, _chat_of(body))
        served = self._cache.begin(rules_of(model, protocol), prompt, at_s)
        self._cache.began(served, at_s)
        return served

    def _sells_reads(self, model: str) -> bool:
        """Older models have no price of their own for cached tokens in a batch: nothing is cached there."""
        given = self._prices(model)
        plain = price(model, Usage(input_tokens=1, output_tokens=0), "batch", given)
        return 0 < price(model, Usage(input_tokens=1, output_tokens=0, cache_read_tokens=1), "batch", given) < plain

    def _asked(self, protocol: Protocol, body: JsonObject) -> Asked:
        try:
            model = body["model"]
            if not isinstance(model, str) or not (known(model) or self._prices(model) is not None):
                raise ValueError(f"the model {str(model)[:80]!r} does not exist")
            return asked_of_messages(model, body) if protocol == "anthropic" else asked_of_chat(model, _chat_of(body))
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"a request of the batch can't be read: {error!r}") from None

    def _path(self, batch_id: str) -> Path | None:
        folder = self.options.folder
        return None if folder is None or not re.fullmatch(r"[a-z]*batch_[0-9a-f]+", batch_id) else folder / f"{batch_id}.json"

    def _save(self, batch: SimulatedBatch) -> None:
        path = self._path(batch.id)
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            new = path.with_suffix(".new")
            new.write_bytes(orjson.dumps(asdict(batch)))
            os.replace(new, path)


def _chat_of(body: JsonObject) -> JsonObject:
    return chat_of_responses(body) if "input" in body else body


def _error(protocol: Protocol, status: int) -> JsonObject:
    if protocol == "openai":
        return {"error": {"message": "asked to fail", "type": "asked_to_fail", "param": None, "code": "asked_to_fail"}}
    kind = "invalid_request_error" if status < 429 else "overloaded_error" if status == 529 else "api_error"
    error: dict[str, Any] = {"type": kind, "message": "asked to fail"}
    return {"type": "error", "error": error}

"""What the prefix planner reaches of the ceiling, and what it costs beside first in, first out: under the cache rules of each provider.

    python benchmarks/prefix_cache.py [--per-second 10] [--latency-s 2] [--in-flight 64] [--groups 50] [--rows 200]

The planner is the engine's own (pipeline/prefix.py, pipeline/prefix_tree.py), the rules are those of the simulated server
(connectors/simulated_cache.py), the prices those of the bill; only the clock is made up, so that a job of minutes takes seconds.
Ceiling: the tokens of all prompts that a prefix of an earlier prompt covers, what a cache without limits or losses would read.
"""

import argparse
import gzip
import json
import random
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from functools import lru_cache
from pathlib import Path as FilePath
from typing import Any

from support import print_table, say

from inference_engine.agents.entrance import MOST_READY
from inference_engine.connectors.models_toml import load_catalogue
from inference_engine.connectors.providers.anthropic_form import to_messages
from inference_engine.connectors.simulated_cache import Prompt, SimulatedCache, prompt_of_chat, prompt_of_messages, rules_of
from inference_engine.pipeline.billing import bill
from inference_engine.pipeline.models import Model
from inference_engine.pipeline.prefix import Mark, Marks, Path, marked, path_of, send_order, shared_tokens, terms_of
from inference_engine.pipeline.prefix_keys import Claim
from inference_engine.pipeline.prefix_tree import PrefixTree, Ticket, Wait
from inference_engine.pipeline.prices import rates
from inference_engine.schemas.record import JsonObject

DATA = FilePath(__file__).parent / "data" / "mooncake_synthetic_trace.jsonl.gz"
PART_TOKENS = 4
"""The simulated server's own overhead of a content part: left out of each text, so that a block of 512 tokens counts 512."""
PACKET = 256
"""Calls that the engine puts in order at once."""
KNOWN = 8192
"""Calls that one worker holds, and so knows of, ahead of sending."""

TICK_S = 0.05
"""How often the engine looks whether calls that were held may go."""


@dataclass(frozen=True, slots=True)
class Row:
    """One request of a job."""

    body: JsonObject
    output_tokens: int


def grouped(groups: int, rows: int, seed: int = 1) -> list[Row]:
    """`groups` system prompts of 2,000 tokens, each with `rows` questions of 300; shuffled."""
    made = []
    for g in range(groups):
        system = _text(f"group {g}", 2000)
        for r in range(rows):
            messages = [{"role": "system", "content": system}, {"role": "user", "content": _text(f"row {g}/{r}", 300)}]
            made.append(Row({"messages": messages}, 200))
    random.Random(seed).shuffle(made)
    return made


def mooncake() -> list[Row]:
    """The trace as prompts, in the order of arrival: a hash id is a content part of 512 tokens, the last one holds what is left."""
    with gzip.open(DATA, "rt") as lines:
        trace = sorted(map(json.loads, lines), key=lambda line: line["timestamp"])
    made = []
    for line in trace:
        ids = line["hash_ids"]
        last = line["input_length"] - 512 * (len(ids) - 1)
        parts = [{"type": "text", "text": _text(f"block {i}", 512)} for i in ids[:-1]]
        parts.append({"type": "text", "text": _text(f"block {ids[-1]}", last)})
        made.append(Row({"messages": [{"role": "user", "content": parts}]}, line["output_length"]))
    return made


@lru_cache(maxsize=100_000)
def _text(seed: str, tokens: int) -> str:
    return (f"{seed} " * (4 * tokens // (len(seed) + 1) + 1))[: 4 * (max(tokens, PART_TOKENS + 1) - PART_TOKENS)]


# --- the made-up clock ---------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Outcome:
    """A job under one policy."""

    pico: int = 0
    read: int = 0
    written: int = 0
    input_tokens: int = 0
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Pace:
    """How fast calls begin and end."""

    per_second: float
    latency_s: float
    in_flight: int


class Provider:
    """A simulated cache and the bill of its calls."""

    def __init__(self, model: Model, day: date) -> None:
        self._model, self._day = model, day
        self._cache = SimulatedCache()
        self._protocol = "anthropic" if model.provider == "anthropic" else "openai"
        self._rules = rules_of(model.provider_model, self._protocol)
        self.outcome = Outcome()

    def send(self, row: Row, body: JsonObject, now: float) -> tuple[int, Callable[[float], None]]:
        """Cached tokens of the call, and what is to be called when it ends."""
        prompt = self._prompt(body)
        served = self._cache.begin(self._rules, prompt, now)
        total = sum(piece.tokens for piece in prompt.pieces)
        usage = served.usage(total, row.output_tokens)
        out = self.outcome
        out.pico += bill(self._model, usage, "standard", self._day)
        out.read += served.read
        out.written += sum(served.written.values())
        out.input_tokens += total
        return served.read + sum(served.written.values()), lambda then: self._cache.began(served, then)

    def _prompt(self, body: JsonObject) -> Prompt:
        if self._protocol == "anthropic":
            return prompt_of_messages(self._model.provider_model, to_messages(self._model, {**body, "max_tokens": 256}))
        return prompt_of_chat(self._model.provider_model, body)


def first_in_first_out(rows: Sequence[Row], model: Model, pace: Pace, day: date, mark: Callable[[JsonObject], JsonObject]) -> Outcome:
    provider, now = Provider(model, day), 0.0
    ends: deque[tuple[float, Callable[[float], None]]] = deque()
    for row in rows:
        if len(ends) >= pace.in_flight:
            now = max(now, ends[0][0])
        while ends and ends[0][0] <= now:
            when, done = ends.popleft()
            done(when)
        _, done = provider.send(row, mark(row.body), now)
        ends.append((now + pace.latency_s, done))
        now += 1 / pace.per_second
    provider.outcome.seconds = now + pace.latency_s
    return provider.outcome


class Known:
    """Calls that are known and not sent, as the call stage holds them: those that may go, writers first, and the others."""

    def __init__(self, tree: PrefixTree) -> None:
        self._tree = tree
        self._new: list[tuple[int, Ticket]] = []
        self._asking: deque[tuple[int, Ticket]] = deque()
        self._going: deque[tuple[int, Ticket]] = deque()
        self._writes_first: dict[bytes, list[tuple[int, Ticket]]] = defaultdict(list)
        self._keyless: dict[Claim, tuple[int, Ticket]] = {}
        self.count = 0

    @property
    def may_go(self) -> bool:
        return bool(self._going)

    @property
    def held(self) -> bool:
        return bool(self._keyless)

    def enter(self, index: int, path: Path, now: float) -> None:
        self._new.append((index, self._tree.enter(path, int(now * 1000))))
        self.count += 1

    def written(self, nodes: Sequence[bytes]) -> None:
        for node in nodes:
            self._asking.extendleft(reversed(self._writes_first.pop(node, ())))

    def look(self, now: float) -> None:
        """Lets go who may."""
        now_ms = int(now * 1000)
        for call in self._new:
            if self._tree.held(call[1], now_ms):
                self._keyless[call[1].claim] = call
            else:
                self._asking.append(call)
        self._new.clear()
        for claim in self._tree.release(now_ms):
            (self._asking.appendleft if claim.began_ms >= 0 else self._asking.append)(self._keyless.pop(claim))
        while self._asking and len(self._going) < MOST_READY:
            call = self._asking.popleft()
            step = self._tree.turn(call[1], now_ms, insist=True)
            if isinstance(step, Wait):
                self._writes_first[step.node].append(call)
            else:
                (self._going.appendleft if call[1].writes else self._going.append)(call)

    def next(self) -> tuple[int, Ticket]:
        self.count -= 1
        return self._going.popleft()


def planned(rows: Sequence[Row], model: Model, pace: Pace, day: date, order: Sequence[int]) -> Outcome:
    """As the call stage does it: calls are known ahead, wait for a key and for who writes their prefix, and are marked when sent."""
    terms = terms_of(model, rates(model, "standard", day).base)
    assert terms is not None
    tree = PrefixTree(terms, remember=1000, calls_per_s=pace.per_second)
    known, provider, now, coming = Known(tree), Provider(model, day), 0.0, deque(order)
    flying: deque[tuple[float, Ticket, int, Callable[[float], None]]] = deque()

    while coming or known.count or flying:
        while coming and known.count < KNOWN:
            index = coming.popleft()
            known.enter(index, path_of("local", rows[index].body), now)
        while flying and flying[0][0] <= now:
            when, ticket, cached, done = flying.popleft()
            done(when)
            known.written(tree.land(ticket, int(when * 1000), cached=cached))
        known.look(now)
        if known.may_go and len(flying) < pace.in_flight:
            index, ticket = known.next()
            body = marked(rows[index].body, tree.board(ticket, int(now * 1000)))
            cached, done = provider.send(rows[index], body, now)
            flying.append((now + pace.latency_s, ticket, cached, done))
            now += 1 / pace.per_second
        else:
            now = now + TICK_S if not flying else min(flying[0][0], now + TICK_S) if known.held else flying[0][0]
    provider.outcome.seconds = now
    return provider.outcome


def hand_marked(model: Model) -> Callable[[JsonObject], JsonObject]:
    """What a careful user does: a mark at the end of the system prompt, and no thought of who writes it."""
    kind = model.prompt_cache

    def mark(body: JsonObject) -> JsonObject:
        at = Mark((0, 0), "30m" if kind == "breakpoints" else "5m", b"", 0)
        return marked(body, Marks(kind, (at,)))

    return mark


def in_packets(rows: Sequence[Row]) -> list[int]:
    """The engine's order: arrival, put in order packet by packet."""
    found: list[int] = []
    for start in range(0, len(rows), PACKET):
        part = rows[start : start + PACKET]
        found += [start + i for i in send_order([path_of("local", row.body) for row in part])]
    return found


# --- the table -----------------------------------------------------------------------------------------------------------


def _line(name: str, what: str, out: Outcome, ceiling: int, plain: int) -> tuple[str, ...]:
    return (
        name,
        what,
        f"{out.read / ceiling:.1%}",
        f"{out.read / out.input_tokens:.1%}",
        f"{out.written / out.input_tokens:.1%}",
        f"${out.pico / 1e12:,.4f}",
        f"{out.pico / plain:.3f}x",
        f"{out.seconds:,.0f} s",
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--per-second", type=float, default=10.0)
    parser.add_argument("--latency-s", type=float, default=2.0)
    parser.add_argument("--in-flight", type=int, default=64)
    parser.add_argument("--groups", type=int, default=50)
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("--models", nargs="+", default=["gpt-6-luna", "gpt-5", "claude-sonnet-5-5"])
    given = parser.parse_args()
    pace, day = Pace(given.per_second, given.latency_s, given.in_flight), datetime.now(UTC).date()
    catalogue = load_catalogue()
    lines: list[tuple[Any, ...]] = []
    for name, rows in ((f"{given.groups} x {given.rows}", grouped(given.groups, given.rows)), ("mooncake", mooncake())):
        paths = [path_of("local", row.body) for row in rows]
        ceiling_share = sum(shared_tokens(paths)) / sum(path[-1].tokens for path in paths)
        say(f"{name}: {len(rows):,} prompts, ceiling {ceiling_share:.1%} of the prompt tokens")
        for model_name in given.models:
            model = catalogue.get(model_name)
            plain = first_in_first_out(rows, model, pace, day, lambda body: body)
            ceiling = int(ceiling_share * plain.input_tokens)
            what = f"{name}, {model_name}"
            lines.append(_line(what, "fifo, as it comes", plain, ceiling, plain.pico))
            if name != "mooncake":
                by_hand = first_in_first_out(rows, model, pace, day, hand_marked(model))
                lines.append(_line(what, "fifo, marked by hand", by_hand, ceiling, plain.pico))
            for how, order in (("planner, packets in order", in_packets(rows)), ("planner, whole job in order", send_order(paths))):
                lines.append(_line(what, how, planned(rows, model, pace, day, order), ceiling, plain.pico))
            say(f"{what} done")
    columns = ("job, model", "policy", "of the ceiling", "read", "written", "paid", "to fifo", "job time")
    notes = [
        f"{pace.per_second:g} calls a second, {pace.latency_s:g} s each, at most {pace.in_flight} in flight. `read` and `written`: of all "
        "prompt tokens. `as it comes`: what the provider does by itself.",
        "gpt-5 reads in steps of 128 tokens: of a prefix of 2,000 no more than 1,920, 96 % of the ceiling.",
    ]
    print_table("Prompt caching: the planner and the ceiling", columns, lines, notes)


if __name__ == "__main__":
    main()

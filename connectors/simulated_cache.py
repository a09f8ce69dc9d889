"""The prompt caches of the simulated providers: what a call reads, writes, and when others can read it.

Written from the providers' documentation, apart from the engine's planner, so that one checks the other:

cache_control  Anthropic. Up to four marks, kept 5m or 1h since their last use, longer ones first. A mark finds entries that end up to
               20 blocks before it. What is not read is written, up to each mark, at the price of its lifetime.
breakpoints    OpenAI since GPT-5.6. In the mode `implicit`, the default, the end of the last user message is a mark by itself; the
               latest four marks are written, the latest 80 are looked for, each exactly. Kept 30m or 12h.
automatic      OpenAI until GPT-5.5. Any prefix that was sent before, from 1,024 tokens on, in steps of 128; writing is free.

OpenAI's entries are on one machine: calls with one prefix and key beyond 15 a minute go to the next machine, which has another cache.
An entry can be read once the first answer that wrote it has begun. Prefixes below the model's minimum are neither read nor written.
"""

import hashlib
from collections import OrderedDict, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import orjson

from ..schemas.answers import Usage
from ..schemas.record import JsonObject
from . import simulation

Kind = Literal["none", "automatic", "breakpoints", "cache_control"]

SECONDS = {"5m": 300, "30m": 1800, "1h": 3600, "12h": 43_200}
MOST_MARKS = 4
LOOK_BACK_BLOCKS = 20
LOOKED_FOR = 80
STEP = 128
PER_KEY = 15
MOST_ENTRIES = 200_000
_SHORTEST = {"claude-haiku-4-5": 4096, "claude-opus-4-5": 4096, "claude-sonnet-4-5": 1024, "claude": 512}
_MARKED = ("gpt-5.6", "gpt-6", "sim-")
_UNCACHED = ("gpt-4-", "gpt-3.5")


@dataclass(frozen=True, slots=True)
class Rules:
    """What a model's cache does."""

    kind: Kind
    min_tokens: int = 1024


def rules_of(model: str, protocol: str) -> Rules:
    """`protocol`: openai or anthropic."""
    if protocol == "anthropic":
        return Rules("cache_control", next((n for name, n in _SHORTEST.items() if model.startswith(name)), 1024))
    if model == "gpt-4" or model.startswith(_UNCACHED):
        return Rules("none")
    return Rules("breakpoints" if model.startswith(_MARKED) else "automatic")


@dataclass(frozen=True, slots=True)
class Piece:
    """A content block: what it adds to the prompt, and the lifetime of the mark on it."""

    content: bytes
    tokens: int
    ttl: str | None = None


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt as its cache sees it."""

    model: str
    pieces: tuple[Piece, ...]
    key: str | None = None
    implicit: bool = True
    """The provider marks the last user message by itself."""


@dataclass(frozen=True, slots=True)
class Served:
    """What one call read and wrote; `SimulatedCache.began` makes the writes readable."""

    read: int = 0
    written: dict[str, int] = field(default_factory=dict)
    """Tokens by lifetime."""
    entries: tuple[tuple[tuple[str, int, bytes], int], ...] = ()
    """(model, machine and node, seconds)."""

    def usage(self, input_tokens: int, output_tokens: int) -> Usage:
        return Usage(
            input_tokens=input_tokens,
            output_tokens=output_tokens,
            cache_read_tokens=self.read,
            cache_write_tokens=self.written.get("5m", 0) + self.written.get("30m", 0),
            cache_write_1h_tokens=self.written.get("1h", 0),
            cache_write_12h_tokens=self.written.get("12h", 0),
        )


class SimulatedCache:
    """Times in seconds, of any clock."""

    def __init__(self) -> None:
        self._until: OrderedDict[tuple[str, int, bytes], tuple[float, int]] = OrderedDict()
        self._calls: dict[tuple[str, str], list[deque[float]]] = {}

    def begin(self, rules: Rules, prompt: Prompt, now: float) -> Served:
        """A call arrives. Raises ValueError where its marks are not allowed."""
        if rules.kind == "none":
            return Served()
        nodes = list(_chain(prompt))
        machine = 0 if rules.kind == "cache_control" else self._machine(prompt, now)
        if rules.kind == "automatic":
            if any(piece.ttl for piece in prompt.pieces) or not prompt.implicit:
                raise ValueError("prompt_cache_options and prompt_cache_breakpoint are not supported by this model")
            return self._automatic(rules, prompt, nodes, machine, now)
        marks = _marks_of(rules, prompt)
        return self._marked(rules, prompt, nodes, marks, machine, now)

    def began(self, served: Served, now: float) -> None:
        """Its answer has begun."""
        for where, seconds in served.entries:
            self._until.pop(where, None)
            self._until[where] = now + seconds, seconds
        while len(self._until) > MOST_ENTRIES:
            self._until.popitem(last=False)

    def clear(self) -> None:
        self._until.clear()
        self._calls.clear()

    # --- the rules -------------------------------------------------------------------------------------------------------

    def _automatic(self, rules: Rules, prompt: Prompt, nodes: list[tuple[bytes, int]], machine: int, now: float) -> Served:
        read = 0
        for node, tokens in nodes:
            if not self._lives((prompt.model, machine, node), now):
                break
            read = tokens
        read = read // STEP * STEP
        entries = tuple(((prompt.model, machine, node), 300) for node, tokens in nodes if tokens >= rules.min_tokens // 2)
        return Served(read if read >= rules.min_tokens else 0, {}, entries)

    def _marked(
        self, rules: Rules, prompt: Prompt, nodes: list[tuple[bytes, int]], marks: dict[int, str], machine: int, now: float
    ) -> Served:
        reach = LOOK_BACK_BLOCKS if rules.kind == "cache_control" else 1
        looked = sorted(marks, reverse=True)[:LOOKED_FOR]
        found = -1
        for mark in looked:
            for i in range(mark, max(-1, mark - reach), -1):
                if nodes[i][1] >= rules.min_tokens and self._lives((prompt.model, machine, nodes[i][0]), now):
                    found = max(found, i)
                    break
        entries: list[tuple[tuple[str, int, bytes], int]] = []
        if found >= 0:
            where = (prompt.model, machine, nodes[found][0])
            entries.append((where, self._until[where][1]))
        read = done = nodes[found][1] if found >= 0 else 0
        written: dict[str, int] = {}
        for mark in sorted(sorted(marks, reverse=True)[:MOST_MARKS]):
            node, tokens = nodes[mark]
            if mark > found and tokens >= rules.min_tokens:
                written[marks[mark]] = written.get(marks[mark], 0) + tokens - done
                entries.append(((prompt.model, machine, node), SECONDS[marks[mark]]))
                done = tokens
        return Served(read, written, tuple(entries))

    def _lives(self, where: tuple[str, int, bytes], now: float) -> bool:
        return self._until.get(where, (0.0, 0))[0] > now

    def _machine(self, prompt: Prompt, now: float) -> int:
        key = prompt.key if prompt.key is not None else hashlib.blake2b(prompt.pieces[0].content[:1024], digest_size=8).hexdigest()
        machines = self._calls.setdefault((prompt.model, key), [])
        for calls in machines:
            while calls and calls[0] <= now - 60:
                calls.popleft()
        number = next((n for n, calls in enumerate(machines) if len(calls) < PER_KEY), len(machines))
        if number == len(machines):
            machines.append(deque())
        machines[number].append(now)
        # Machines of one key are apart from those of another.
        return int.from_bytes(hashlib.blake2b(f"{key}/{number}".encode(), digest_size=6).digest(), "big")


def _marks_of(rules: Rules, prompt: Prompt) -> dict[int, str]:
    allowed = ("5m", "1h") if rules.kind == "cache_control" else ("30m", "12h")
    marks = {i: piece.ttl for i, piece in enumerate(prompt.pieces) if piece.ttl is not None}
    for ttl in marks.values():
        if ttl not in allowed:
            raise ValueError(f"a cache lifetime of {ttl!r} is not supported; use {' or '.join(allowed)}")
    if rules.kind == "cache_control":
        if len(marks) > MOST_MARKS:
            raise ValueError(f"A maximum of {MOST_MARKS} blocks with cache_control may be provided. Found {len(marks)}.")
        seconds = [SECONDS[marks[i]] for i in sorted(marks)]
        if seconds != sorted(seconds, reverse=True):
            raise ValueError("a cache_control block with ttl='1h' must not come after one with ttl='5m'")
    elif prompt.implicit:
        marks.setdefault(len(prompt.pieces) - 1, "30m")
    return marks


def _chain(prompt: Prompt) -> Iterator[tuple[bytes, int]]:
    """Of each piece: the digest of, and the tokens of, the prompt up to and with it."""
    digest, tokens = hashlib.blake2b(digest_size=16), 0
    for piece in prompt.pieces:
        digest.update(len(piece.content).to_bytes(8, "big"))
        digest.update(piece.content)
        tokens += piece.tokens
        yield digest.digest(), tokens


# --- prompts of each protocol -----------------------------------------------------------------------------------------------


def prompt_of_chat(model: str, body: JsonObject) -> Prompt:
    """Of an OpenAI chat completion request."""
    options = body.get("prompt_cache_options") or {}
    usual = str(options.get("ttl") or "30m")
    functions = [tool.get("function", {}) for tool in body.get("tools") or ()]
    pieces = [_tools(f.get("name"), f.get("description"), f.get("parameters"), {}) for f in functions]
    for message in body["messages"]:
        content = message.get("content")
        parts = content if isinstance(content, list) else [content]
        for number, part in enumerate(parts):
            mark = part.get("prompt_cache_breakpoint") if isinstance(part, dict) else None
            one = {**message, "content": [part] if isinstance(part, dict) else part}
            if number:
                one.pop("tool_calls", None)
            tokens = simulation.chat_content(one)[0]
            # A text is the same prompt as a part with that text.
            said = part.get("text") if isinstance(part, dict) and part.get("type") == "text" else part
            plain = [message["role"], said, one.get("tool_calls"), one.get("tool_call_id")]
            pieces.append(Piece(orjson.dumps(plain), tokens, str(mark.get("ttl") or usual) if mark else None))
    return Prompt(model, tuple(pieces), body.get("prompt_cache_key"), options.get("mode") != "explicit")


def prompt_of_messages(model: str, body: JsonObject) -> Prompt:
    """Of an Anthropic messages request."""
    pieces = [_tools(t.get("name"), t.get("description"), t.get("input_schema"), t) for t in body.get("tools") or ()]
    turns = [{"role": "system", "content": body.get("system") or []}, *body["messages"]]
    for turn in turns:
        content = turn.get("content") or []
        for block in [{"type": "text", "text": content}] if isinstance(content, str) else content:
            said = {k: v for k, v in block.items() if k != "cache_control"}
            pieces.append(Piece(orjson.dumps([turn["role"], said]), simulation.blocks([block])[0], _ttl(block)))
    return Prompt(model, tuple(pieces))


def _tools(name: Any, description: Any, schema: Any, tool: JsonObject) -> Piece:
    return Piece(orjson.dumps([name, description, schema]), simulation.tool_tokens(name, description, schema), _ttl(tool))


def _ttl(block: JsonObject) -> str | None:
    control = block.get("cache_control")
    return str(control.get("ttl") or "5m") if isinstance(control, dict) else None

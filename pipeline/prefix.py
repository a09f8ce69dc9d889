"""Prompt prefixes: what two prompts share, what a provider's cache asks for it, and where the marks go.

    body -> path: one block per content part, each known by a digest of everything up to and with it, so that two prompts share a
            prefix where their paths share a node
    paths -> the order in which they are sent: members of a group side by side, longest shared prefix first
    body, marks -> the body with marks, in the form of OpenAI's chat completions; providers' forms translate them

Which nodes are worth a mark is decided in prefix_tree.py.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from ..schemas.record import JsonObject
from .models import Model, PromptCache
from .prices import Rate

Path = tuple["Block", ...]

MESSAGE_TOKENS = 4
_BYTES_PER_TOKEN = 4
_IMAGE_TOKENS = 500
_HEAD = ("tools", "functions", "tool_choice", "parallel_tool_calls", "response_format", "reasoning_effort", "thinking")
"""What providers put before the messages, or what makes them forget the messages' cache."""
_MARKABLE = frozenset({"system", "developer", "user", "assistant"})
_OWN_MARKS = ("prompt_cache_key", "prompt_cache_options", "prompt_cache_retention", "cache_control")


@dataclass(frozen=True, slots=True)
class Block:
    """One content part of a prompt."""

    node: bytes
    """Equal for prompts of one tenant that are equal up to and with this block."""
    tokens: int
    """Of the prompt up to and with this block, estimated: a token per four bytes."""
    at: tuple[int, int] | None
    """Message and part, where a mark can be put here."""


def may_be_cached(body: JsonObject, least_tokens: int) -> bool:
    """False where a prompt certainly has fewer tokens, as `path_of` estimates them: most do, and a path takes longer than this."""
    if any(body.get(name) is not None for name in _HEAD):
        return True
    left = least_tokens * _BYTES_PER_TOKEN
    for message in body.get("messages") or ():
        content = message.get("content") if isinstance(message, dict) and len(message) == 2 else None
        if not isinstance(content, str) or not content:
            return True
        left -= MESSAGE_TOKENS * _BYTES_PER_TOKEN + (len(content) if content.isascii() else 4 * len(content))
        if left <= 0:
            return True
    return False


def path_of(tenant: str, body: JsonObject) -> Path:
    """The blocks of a prompt, in the order in which providers read them.

    Empty where its author marks it himself, and where it can't be read as a prompt: that is the call's own matter, not its neighbours'.
    """
    try:
        return _path_of(tenant, body)
    except (TypeError, ValueError, AttributeError, RecursionError):
        return ()


def _path_of(tenant: str, body: JsonObject) -> Path:
    if any(body.get(name) is not None for name in _OWN_MARKS):
        return ()
    chain = hashlib.blake2b(digest_size=16)
    head = [tenant, *(body.get(name) for name in _HEAD)]
    size = len(_feed(chain, head))
    tokens = size // _BYTES_PER_TOKEN if any(value is not None for value in head[1:]) else 0
    blocks: list[Block] = []
    for i, message in enumerate(body.get("messages") or ()):
        role, content = message.get("role"), message.get("content")
        rest = {k: v for k, v in message.items() if k != "content"}
        _feed(chain, rest)
        tokens += MESSAGE_TOKENS + (len(orjson.dumps(rest["tool_calls"])) // _BYTES_PER_TOKEN if rest.get("tool_calls") else 0)
        parts = content if isinstance(content, list) else [content]
        for j, part in enumerate(parts):
            text = part.get("text") if isinstance(part, dict) else part
            if isinstance(part, dict) and ("cache_control" in part or "prompt_cache_breakpoint" in part):
                return ()
            size = len(_feed(chain, part))
            plain = isinstance(text, str) and bool(text)
            tokens += size // _BYTES_PER_TOKEN if plain or part is None else _IMAGE_TOKENS
            markable = plain and role in _MARKABLE and not rest.get("tool_calls")
            blocks.append(Block(chain.digest(), tokens, (i, j) if markable else None))
    return tuple(blocks)


def _feed(chain: Any, value: Any) -> bytes:
    """Length-prefixed, so that no two lists of blocks run into one another."""
    raw = value.encode("utf-8", "surrogatepass") if isinstance(value, str) else orjson.dumps(value, option=orjson.OPT_SORT_KEYS)
    chain.update(b"%c%d:" % (115 if isinstance(value, str) else 106, len(raw)))
    chain.update(raw)
    return raw


# --- what a provider's cache asks and costs ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Lifetime:
    """How long an entry is kept after its last use, and what writing a token costs relative to a plain one."""

    name: str
    seconds: int
    write: float


@dataclass(frozen=True, slots=True)
class Terms:
    """The terms of one model's prompt cache."""

    kind: PromptCache
    min_tokens: int
    read: float
    """Price of a token read, relative to a plain one."""
    lifetimes: tuple[Lifetime, ...]
    """Shortest first."""
    most_marks: int = 4
    per_key_per_minute: int | None = None
    """More calls than this with one key go to another machine, which has another cache."""

    @property
    def marks(self) -> bool:
        """Are prefixes marked, or does the provider find them by itself?"""
        return self.kind in ("breakpoints", "cache_control")


CALLS_PER_KEY = 15
"""Per minute: OpenAI's own figure for the calls with one prefix and key that one machine takes."""


def terms_of(model: Model, rate: Rate) -> Terms | None:
    """The terms of a model by its prices; None where nothing can be saved."""
    if model.prompt_cache == "none" or rate.input <= 0 or rate.cache_read is None or rate.cache_read >= rate.input:
        return None
    kind, read = model.prompt_cache, rate.cache_read / rate.input
    if kind in ("automatic", "keyed"):
        per_key = CALLS_PER_KEY if kind == "keyed" else None
        return Terms(kind, model.prompt_cache_min_tokens, read, (Lifetime("", 300, 1.0),), per_key_per_minute=per_key)
    if rate.cache_write is None:
        return None
    write = rate.cache_write / rate.input
    if kind == "breakpoints":
        return Terms(kind, model.prompt_cache_min_tokens, read, (Lifetime("30m", 1800, write),), per_key_per_minute=CALLS_PER_KEY)
    lifetimes = [Lifetime("5m", 300, write)]
    if rate.cache_write_1h is not None:
        lifetimes.append(Lifetime("1h", 3600, rate.cache_write_1h / rate.input))
    return Terms(kind, model.prompt_cache_min_tokens, read, tuple(lifetimes))


# --- the marks ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Mark:
    """A breakpoint: everything up to and with this block is read from the cache, or written to it."""

    at: tuple[int, int]
    lifetime: str
    node: bytes
    tokens: int


@dataclass(frozen=True, slots=True)
class Marks:
    """What is said to the provider about one call's prefix. Names no provider: see `marked`."""

    kind: PromptCache
    marks: tuple[Mark, ...] = ()
    """Shallowest first; empty: nothing is expected to be read, so nothing is to be written."""
    key: str | None = None


def marked(body: JsonObject, plan: Marks) -> JsonObject:
    """The body with the plan in it; the given one stays as it is."""
    if plan.kind in ("none", "automatic"):
        return body
    made = dict(body)
    if plan.key is not None and plan.kind in ("keyed", "breakpoints"):
        made["prompt_cache_key"] = plan.key
    if plan.kind == "keyed":
        return made
    if plan.kind == "breakpoints":
        # Otherwise the provider marks the end of the last message, which the next row never shares, and charges for writing it.
        made["prompt_cache_options"] = {"mode": "explicit"}
    if not plan.marks:
        return made
    messages = list(body["messages"])
    for mark in plan.marks:
        i, j = mark.at
        content = messages[i]["content"]
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else list(content)
        breakpoint_ = {"mode": "explicit"} if plan.kind == "breakpoints" else {"mode": "explicit", "ttl": mark.lifetime}
        parts[j] = {**parts[j], "prompt_cache_breakpoint": breakpoint_}
        messages[i] = {**messages[i], "content": parts}
    made["messages"] = messages
    return made


# --- the order -----------------------------------------------------------------------------------------------------------


def send_order(paths: Sequence[Path], groups: Sequence[str | None] = ()) -> list[int]:
    """Indexes of the paths in the order in which they are sent. `groups`: of each, which group of similar prompts it is in.

    Depth first through their prefix tree: so each entry of a cache is used in one stretch. Of two branches the one that shares more
    tokens comes first; what shares nothing comes last, in the order in which it came. Where the tree knows no difference, those of one
    group stand side by side, in the order in which they came: a provider that finds prefixes by itself finds heads within a block, too.
    """
    keys = _Tree(paths, groups)
    return sorted(range(len(paths)), key=lambda i: keys.of(paths[i], i))


class _Tree:
    """How many paths run through each node, and how much each branch shares."""

    def __init__(self, paths: Sequence[Path], groups: Sequence[str | None]) -> None:
        first: dict[str, int] = {}
        grouped = enumerate(groups or [None] * len(paths))
        self._places = [i if group is None else first.setdefault(group, i) for i, group in grouped]
        """Of each path, where the first one of its group came."""
        self._count: dict[bytes, int] = {}
        for path in paths:
            for block in path:
                self._count[block.node] = self._count.get(block.node, 0) + 1
        self._deepest: dict[bytes, int] = {}
        self._first: dict[bytes, int] = {}
        for i, path in enumerate(paths):
            shared = [b for b in path if self._count[b.node] > 1]
            for block in shared:
                # The longest prefix that is shared anywhere below this node.
                self._deepest[block.node] = max(self._deepest.get(block.node, 0), shared[-1].tokens)
                self._first.setdefault(block.node, i)

    def of(self, path: Path, index: int) -> tuple[tuple[int, ...], ...]:
        shared = [(-self._deepest[b.node], self._first[b.node]) for b in path if self._count[b.node] > 1]
        return (*shared, (1, self._places[index], index))


def shared_tokens(paths: Sequence[Path]) -> Iterator[int]:
    """Of each path, in the given order, the tokens that a path before it has too: their sum is what a perfect cache would read."""
    seen: set[bytes] = set()
    for path in paths:
        known = 0
        for block in path:
            if block.node in seen:
                known = block.tokens
            else:
                seen.add(block.node)
        yield known

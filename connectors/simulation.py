"""What a simulated provider answers, counts and charges: one behaviour, served in process and over HTTP.

The answer is a function of the model and the last user message (or comes from a book of known answers), so two runs agree
to the byte. Asked whether answers agree (`pipeline/judge_question.py`), it calls those equal that share half of their words; asked what
one is worth (`pipeline/grade_question.py`), it says what a mark in the graded request says, else what the bytes of the answer come to.
A token is four bytes of UTF-8, rounded up, plus four tokens around each part of the prompt.

Marks in the last user message steer one call: `[[fault:KIND]]`, `[[fault:KIND*3]]` (three times, then well), and
`[[tokens:200]]` (that many tokens of answer), `[[answer:lost-card]]` (that word is the answer), and `[[grade:3]]` (what a judge says of the
answer to it, of 10; `[[grade:none]]`: nothing that can be read). `[[refused:MODEL]]` and `[[cut-off:MODEL]]` say how that model's answer
ends.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from random import Random
from typing import Any

import orjson

from ..schemas.record import JsonObject

PART_TOKENS = 4
IMAGE_TOKENS = 85

STATUS_FAULTS = frozenset({"400", "401", "403", "404", "408", "409", "413", "422", "425", "429", "500", "502", "503", "504", "529"})
"""Answered with this status, not billed. `429` says when to come back, `429-bare` doesn't."""
UNBILLED_FAULTS = STATUS_FAULTS | {"429-bare", "hang"}
BILLED_FAULTS = frozenset(
    {"drop", "reset", "truncated", "no-usage", "wrong-model", "no-choices", "drip", "hang-billed", "billed-500", "stream-error"}
)
"""Billed, and then: the connection closed, or reset within the body; half a JSON or stream; an error in the middle of a stream; ..."""
FAULTS = UNBILLED_FAULTS | BILLED_FAULTS

ENDS = {"refused": "content_filter", "cut-off": "length"}
"""By mark, the finish reason of the model that it names."""

_MARK = re.compile(r"\[\[(fault|tokens|answer|grade|refused|cut-off):([a-z0-9.-]+)(?:\*(\d+))?\]\]")
_VOCABULARY = (
    "account card order payment balance limit transfer branch status refund delivery window address number update request "
    "please check open confirm change wait review send visit keep track within before after today online settings help page "
    "team support details usually often already still pending final daily weekly monthly standard express extra charge fee "
    "rate currency exchange receipt statement top app phone mail code security verify identity"
)
_WORDS = _VOCABULARY.split()


@dataclass(frozen=True, slots=True)
class Asked:
    """One call, whatever its protocol."""

    model: str
    text: str
    """The last user message."""
    input_tokens: int
    max_tokens: int | None = None
    choices: int = 1
    tool: str | None = None
    """The function that must be called."""
    json: bool = False
    tier: str = "standard"


@dataclass(frozen=True, slots=True)
class Answered:
    """What comes back: one text per choice, or one function call."""

    texts: tuple[str, ...]
    finish: str
    """stop | length | tool_calls | content_filter"""
    output_tokens: int
    tool: str | None = None
    arguments: str = ""


def tokens(text: str) -> int:
    return (len(text.encode("utf-8", "surrogatepass")) + 3) // 4


# --- the question ----------------------------------------------------------------------------------------------------


def asked_of_chat(model: str, body: JsonObject) -> Asked:
    """Reads an OpenAI chat completion request. Raises ValueError with what is wrong with it."""
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise ValueError("messages must be a list that is not empty")
    count, text = 0, ""
    for message in messages:
        if not isinstance(message, dict) or "role" not in message:
            raise ValueError("each message is an object with a role")
        part_tokens, part_text = chat_content(message)
        count += part_tokens
        if message["role"] == "user":
            text = part_text
    tools = [t.get("function", {}) for t in body.get("tools") or ()]
    count += sum(tool_tokens(t.get("name"), t.get("description"), t.get("parameters")) for t in tools)
    limit = body.get("max_completion_tokens") or body.get("max_tokens")
    form = (body.get("response_format") or {}).get("type", "text")
    forced = _forced(body.get("tool_choice"), tools)
    tier = body.get("service_tier") or "default"
    tier = "standard" if tier in ("auto", "default") else str(tier)
    return Asked(model, text, count, limit, int(body.get("n") or 1), forced, form != "text", tier)


def chat_content(message: JsonObject) -> tuple[int, str]:
    content = message.get("content")
    count = sum(PART_TOKENS + tokens(c["function"]["name"]) + tokens(c["function"]["arguments"]) for c in message.get("tool_calls") or ())
    if content is None:
        return count, ""
    if isinstance(content, str):
        return count + PART_TOKENS + tokens(content), content
    texts = [p.get("text", "") for p in content if p.get("type") == "text"]
    images = sum(1 for p in content if p.get("type") == "image_url")
    return count + sum(PART_TOKENS + tokens(t) for t in texts) + images * (PART_TOKENS + IMAGE_TOKENS), "\n".join(texts)


def asked_of_messages(model: str, body: JsonObject) -> Asked:
    """Reads an Anthropic messages request. Raises ValueError with what is wrong with it."""
    messages, limit = body.get("messages"), body.get("max_tokens")
    if not isinstance(messages, list) or not messages:
        raise ValueError("messages: at least one message is required")
    if not isinstance(limit, int) or limit < 1:
        raise ValueError("max_tokens: Field required")
    count, text = blocks(body.get("system") or [])[0], ""
    for message in messages:
        if not isinstance(message, dict) or message.get("role") not in ("user", "assistant", "system"):
            raise ValueError("messages: each has a role, user or assistant")
        part_tokens, part_text, is_question = blocks(message.get("content") or [])
        count += part_tokens
        if message["role"] == "user" and is_question:
            text = part_text
    tools = body.get("tools") or []
    count += sum(tool_tokens(t.get("name"), t.get("description"), t.get("input_schema")) for t in tools)
    choice = body.get("tool_choice") or {}
    forced = choice.get("name") or (tools[0]["name"] if choice.get("type") == "any" and tools else None)
    form = (body.get("output_config") or {}).get("format")
    return Asked(model, text, count, limit, 1, forced, form is not None)


def asked_of_cohere(model: str, body: JsonObject) -> Asked:
    """Reads a request of Cohere's chat: OpenAI's form but for the names of a few fields. Raises ValueError with what is wrong with it."""
    form = body.get("response_format") or {}
    tools = body.get("tools") or []
    chosen: JsonObject = {"tool_choice": "required"} if body.get("tool_choice") == "REQUIRED" else {}
    limit: JsonObject = {"max_tokens": body["max_tokens"]} if body.get("max_tokens") else {}
    return asked_of_chat(model, {"messages": body.get("messages"), "tools": tools, "response_format": form, **chosen, **limit})


def blocks(content: Any) -> tuple[int, str, bool]:
    if isinstance(content, str):
        return PART_TOKENS + tokens(content), content, True
    count, texts = 0, []
    for block in content:
        kind = block.get("type")
        if kind == "text":
            texts.append(block["text"])
            count += PART_TOKENS + tokens(block["text"])
        elif kind == "image":
            count += PART_TOKENS + IMAGE_TOKENS
        elif kind == "tool_use":
            count += PART_TOKENS + tokens(block["name"]) + tokens(orjson.dumps(block["input"]).decode())
        elif kind == "tool_result":
            count += blocks(block.get("content") or [])[0]
        else:
            raise ValueError(f"content of type {kind!r} is not known")
    return count, "\n".join(texts), bool(texts)


def tool_tokens(name: Any, description: Any, schema: Any) -> int:
    return PART_TOKENS + (len(orjson.dumps([name, description, schema])) + 3) // 4


def _forced(choice: Any, tools: list[JsonObject]) -> str | None:
    if isinstance(choice, dict):
        return str(choice["function"]["name"])
    return str(tools[0]["name"]) if choice == "required" and tools else None


# --- the answer ------------------------------------------------------------------------------------------------------


def answer(asked: Asked, book: Mapping[str, str] | None = None) -> Answered:
    """The same for the same model and last user message."""
    if asked.tool is not None:
        digest = hashlib.blake2b(f"{asked.model}\0{asked.text}".encode("utf-8", "surrogatepass"), digest_size=4).hexdigest()
        arguments = orjson.dumps({"reference": digest}).decode()
        return Answered(("",), "tool_calls", tokens(asked.tool) + tokens(arguments), asked.tool, arguments)
    texts, finish = [], "stop"
    for index in range(asked.choices):
        text = _text(asked, index, book)
        if asked.max_tokens is not None and tokens(text) > asked.max_tokens:
            text = text.encode()[: 4 * asked.max_tokens].decode("utf-8", "ignore")
            finish = "length"
        texts.append(text)
    if "[[" in asked.text:
        finish = next((ENDS[kind] for kind, model, _ in _MARK.findall(asked.text) if kind in ENDS and model == asked.model), finish)
    return Answered(tuple(texts), finish, sum(max(1, tokens(t)) for t in texts))


def _text(asked: Asked, index: int, book: Mapping[str, str] | None) -> str:
    if asked.text.startswith('{"reference":') and (said := _compared(asked.text)) is not None:
        return said
    if asked.text.startswith('{"request":') and (said := _graded(asked.text)) is not None:
        return said
    known = book.get(asked.text.strip()) if book else None
    known = known or next((value for kind, value, _ in _MARK.findall(asked.text) if kind == "answer"), None)
    if known is None:
        seed = f"{asked.model}\0{index}\0{asked.text}".encode("utf-8", "surrogatepass")
        digest = hashlib.blake2b(seed, digest_size=32).digest()
        known = f"[{digest[:4].hex()}] " + " ".join([_WORDS[b % len(_WORDS)] for b in digest[4:]]) + "."
        wanted = _wanted_tokens(asked.text)
        if wanted is not None:
            known = (known * (wanted * 4 // len(known) + 1))[: wanted * 4]
    return orjson.dumps({"answer": known}).decode() if asked.json else known


def _compared(question: str) -> str | None:
    """A judge's reply; None where this is not a judge's question."""
    try:
        data = orjson.loads(question)
        own, others = set(data["reference"].split()), [set(answer.split()) for answer in data["answers"]]
    except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError):
        return None
    same = [number for number, words in enumerate(others, 1) if 2 * len(own & words) >= len(own | words)]
    return orjson.dumps({"same": same}).decode()


def _graded(question: str) -> str | None:
    """The reply of a judge that is to grade; None where this is no such question."""
    try:
        data = orjson.loads(question)
        request, answer = str(data["request"]), str(data["answer"])
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return None
    mark = next((value for kind, value, _ in _MARK.findall(request) if kind == "grade"), None)
    if mark == "none":
        return "I can't tell."
    digest = hashlib.blake2b(answer.encode("utf-8", "surrogatepass"), digest_size=1).digest()
    return orjson.dumps({"score": int(mark) if mark is not None and mark.isdigit() else digest[0] % 11}).decode()


def _wanted_tokens(text: str) -> int | None:
    if "[[" in text:
        for kind, value, _ in _MARK.findall(text):
            if kind == "tokens" and value.isdigit():
                return max(1, int(value))
    return None


# --- faults ----------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class FaultRule:
    """The next `count` calls (None: all) whose last user message contains `match` fail, each with `probability`."""

    kind: str
    count: int | None = None
    probability: float = 1.0
    match: str = ""
    retry_after: float = 1.0


@dataclass(slots=True)
class Faults:
    """Decides which call fails and how. Its randomness is seeded: the same calls in the same order fail alike."""

    seed: int = 0
    rules: list[FaultRule] = field(default_factory=list)
    _marked: Counter[str] = field(default_factory=Counter)
    _random: Random = field(init=False)

    def __post_init__(self) -> None:
        self._random = Random(self.seed)

    def add(self, rule: FaultRule) -> None:
        """Raises ValueError where the kind is not known."""
        if rule.kind not in FAULTS:
            raise ValueError(f"fault {rule.kind!r} is not known; there are {', '.join(sorted(FAULTS))}")
        self.rules.append(rule)

    def clear(self) -> None:
        self.rules.clear()
        self._marked.clear()

    def pick(self, text: str) -> FaultRule | None:
        if "[[fault:" in text:
            return self._mark(text)
        for rule in self.rules:
            if rule.count == 0 or rule.match not in text or (rule.probability < 1 and self._random.random() >= rule.probability):
                continue
            if rule.count is not None:
                rule.count -= 1
            return rule
        return None

    def _mark(self, text: str) -> FaultRule | None:
        for what, kind, times in _MARK.findall(text):
            if what == "fault" and kind in FAULTS:
                self._marked[text] += 1
                if not times or self._marked[text] <= int(times):
                    return FaultRule(kind)
        return None

"""Do two answers say the same? What can be told from the answers themselves; the rest is for a `Judge` (see `pipeline/ports.py`).

    answer -> told -> Told            what is kept of it beside its vector
    two of them -> by_value -> True | False | None: free text, which only a judge can compare

JSON and short answers (a label, a number, a name) are compared by their value. Free text that is not the same letter by letter is not
different for that: it is compared by meaning, and there numbers count in short answers, whose point they may be.
"""

import hashlib
from typing import Any

import orjson

from ..schemas.answers import Answer, Told
from ..schemas.record import JsonObject
from .numbers import numbers
from .text import reply_message

HEAD = 600
"""Characters of free text that are kept: what an embedder of 256 tokens sees whole."""
FEW_WORDS = 3
"""An answer of so many words is a value."""
SHORT = 200
"""In answers up to so many characters numbers that differ are a difference; in longer ones they are mostly those of a list."""

_NO_PROGRAM = frozenset({"", "json", "jsonc", "json5", "text", "txt"})
"""Languages of a code fence whose content is compared like an answer without one."""


def told(answer: Answer) -> Told | None:
    """What to keep of a complete answer; None where it has no text."""
    return told_of(answer.body)


def text_of(body: JsonObject) -> str | None:
    """The text of a chat completion, without white space around it; None where it has none."""
    content = reply_message(body).get("content")
    return content.strip() if isinstance(content, str) and content.strip() else None


def told_of(body: JsonObject) -> Told | None:
    """The same of an answer's body."""
    text = text_of(body)
    if text is None:
        return None
    value = _value(text)
    if value is not None:
        return Told(kind="value", digest=_digest(value))
    return Told(kind="text", digest=_digest(" ".join(text.split()).encode()), text=text[:HEAD], whole=len(text) <= HEAD)


def by_value(one: Told, other: Told) -> bool | None:
    """Whether they agree; None where only their meaning can tell."""
    if one.digest == other.digest:
        return True
    if one.kind == "value" or other.kind == "value":
        return False
    if one.whole and other.whole and max(len(one.text), len(other.text)) <= SHORT and numbers(one.text) != numbers(other.text):
        return False
    return None


def _value(text: str) -> bytes | None:
    """A canonical form of JSON and of short answers, a fence around all of it left out."""
    text = _unfenced(text)
    if text[0] in '{["' or text[0].isdigit() or text[0] == "-":
        try:
            return orjson.dumps(_plain(orjson.loads(text)), option=orjson.OPT_SORT_KEYS)
        except (orjson.JSONDecodeError, TypeError):
            pass
    if len(text.split()) <= FEW_WORDS:
        return text.casefold().rstrip(".!").encode()
    return None


def _unfenced(text: str) -> str:
    """What stands in the one code fence of Markdown that is round all of the text: models put JSON into one, asked to or not."""
    head, _, rest = text.partition("\n")
    fence = head[: len(head) - len(head.lstrip(head[0]))]
    if fence[0] not in "`~" or len(fence) < 3 or head[len(fence) :].strip().lower() not in _NO_PROGRAM:
        return text
    inside, found, after = rest.rpartition(fence)
    return inside.strip() or text if found and not after and fence not in inside else text


def _plain(value: Any) -> Any:
    """1.0 is 1, wherever it stands."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _digest(value: bytes) -> str:
    return hashlib.sha256(value).hexdigest()[:32]

"""The stream that `evaluate cache` replays: read, checked, embedded."""

import gzip
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import orjson

from ..pipeline.errors import ConfigError
from ..pipeline.ports import Embedded, Embedder
from ..pipeline.replay import Line

BATCH = 64
_SAY_EVERY = 32
SHOWN = 5
"""Bad lines that are named one by one."""


def read_stream(path: Path) -> tuple[list[Line], list[str]]:
    """All lines in order, and what is wrong with each that had to be left out. Raises `ConfigError` where there is nothing to replay."""
    lines: list[Line] = []
    bad: list[str] = []
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            for number, raw in enumerate(file, start=1):
                if not raw.strip():
                    continue
                made = _line(raw.removeprefix(b"\xef\xbb\xbf") if number == 1 else raw)
                if isinstance(made, Line):
                    lines.append(made)
                else:
                    bad.append(f"line {number}: {made}")
    except (OSError, EOFError, zlib.error) as error:
        why = getattr(error, "strerror", None) or error
        raise ConfigError(f"{path} can't be read: {why}. Nothing was replayed; name a JSONL file") from error
    if not lines:
        raise ConfigError(
            f'{path} holds no line that can be replayed; each is {{"text": "...", "answer_group": "...", "scope": "..."}}'
            + "".join(f"\n{what}" for what in bad[:SHOWN])
        )
    return lines, bad


def _line(raw: bytes) -> Line | str:
    """The line, or what is wrong with it."""
    try:
        value = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        return f"no JSON ({error})"
    if not isinstance(value, dict):
        return "no JSON object"
    text, group, scope = value.get("text"), value.get("answer_group"), value.get("scope")
    if not isinstance(text, str):
        return '"text" is missing' if text is None else '"text" is not a string'
    if group is None or isinstance(group, (dict, list)):
        return '"answer_group" is missing' if group is None else '"answer_group" is neither a string nor a number'
    if isinstance(scope, (dict, list)):
        return '"scope" is neither a string nor a number'
    return Line(text.strip(), str(group), "" if scope is None else str(scope))


def embed_stream(embedder: Embedder, texts: Sequence[str], say: Callable[[str], None]) -> Embedded:
    """Vectors of all texts, each different one once, 64 at a time."""
    different = sorted(set(texts), key=lambda text: (len(text), text))
    row_of = {text: row for row, text in enumerate(different)}
    vectors = np.zeros((len(different), embedder.dimension), dtype=np.float32)
    whole = np.zeros(len(different), dtype=np.bool_)
    for batch, start in enumerate(range(0, len(different), BATCH)):
        made = embedder.embed_whole(different[start : start + BATCH])
        vectors[start : start + BATCH], whole[start : start + BATCH] = made.vectors, made.whole
        if batch % _SAY_EVERY == _SAY_EVERY - 1:
            say(f"embedded {start + BATCH:,} of {len(different):,} texts")
    rows = [row_of[text] for text in texts]
    return Embedded(vectors[rows], whole[rows])

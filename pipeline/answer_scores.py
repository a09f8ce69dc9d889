"""What an answer is worth beside a reference, from 0 to 1: by its value where it has one, else by how near it is in meaning.

A reference that people wrote (`expected`) may be a word or a number that stands somewhere in the answer; one that another model gave is
another answer, and agreement with it is all that is measured.
"""

import re
from collections.abc import Callable

from ..schemas.answers import Answer
from .judge import FEW_WORDS, by_value, text_of, told
from .numbers import numbers

Nearness = Callable[[str, str], float]
"""Cosine of two texts."""


def score_of(answer: Answer, expected: str | None, reference: Answer | None, nearness: Nearness | None) -> float | None:
    """None where nothing tells. `expected` is believed before `reference`; `nearness`: None where no embedder is there."""
    text = text_of(answer.body)
    if text is None:
        return 0.0
    if expected is not None:
        return _beside(text, expected, nearness)
    if reference is None:
        return None
    own, other = told(answer), told(reference)
    if own is None or other is None:
        return 0.0 if own is None else None
    same = by_value(own, other)
    if same is not None:
        return float(same)
    return None if nearness is None else _within(nearness(own.text, other.text))


def _beside(text: str, expected: str, nearness: Nearness | None) -> float | None:
    wanted = expected.strip().casefold().rstrip(".!")
    if wanted == text.casefold().rstrip(".!"):
        return 1.0
    if len(wanted.split()) <= FEW_WORDS:
        if numbers(wanted) and not re.search(r"[^\W\d_]", wanted):
            # The last number of a text that reckons is its result.
            found = numbers(text)
            return float(bool(found) and _last_number(text) == _last_number(wanted))
        return float(re.search(rf"(?<!\w){re.escape(wanted)}(?!\w)", text.casefold()) is not None)
    return None if nearness is None else _within(nearness(text, expected))


def _last_number(text: str) -> str:
    found = re.findall(r"-?\d[\d,]*(?:\.\d+)?", text)
    last = found[-1].replace(",", "") if found else ""
    return last.rstrip("0").rstrip(".") if "." in last else last


def _within(cosine: float) -> float:
    return min(1.0, max(0.0, cosine))

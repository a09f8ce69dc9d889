"""What a router sees of a prompt beside its embedding: lengths, numbers, symbols and the words that ask for thought, as numbers.

An embedding hardly sees how long a text is or how many numbers it holds. On GSM8K these features alone rank as well as the embedding alone
(APGR 0.63 each), and both together better (0.66).
"""

import math
import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from .complexity import estimate

_WORD = re.compile(r"[A-Za-z']+")
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
_SENTENCE = re.compile(r"[.!?](?:\s|$)")
_CHOICE = re.compile(r"(?:^|\s)\(?[A-E][).:]")
_QUANTITY = re.compile(r"\b(?:how many|how much)\b")
_REASON = re.compile(r"\b(?:why|explain|prove|describe)\b")
_FACT = re.compile(r"\b(?:who|when|where)\b")
_RATE = re.compile(r"\b(?:each|every|per|twice|half|times|percent)\b")
_NEGATION = re.compile(r"\b(?:not|except)\b")
_SYMBOL = re.compile(r"[{}\[\]()<>=;_\\/*+^|]")
_UPPER = re.compile(r"[A-Z]")
_SCANNED = 3_000
"""Characters read at either end of a text."""

PROMPT_FEATURES = (
    "characters", "words", "lines", "sentences", "numbers", "different_numbers", "greatest_number", "word_length", "different_words",
    "questions", "commas", "upper_case", "not_ascii", "symbols", "dollars", "percents", "choices", "code", "backslash", "negation",
    "asks_quantity", "asks_reason", "asks_fact", "rates", "ends_asking", "reasoning_words", "jargon", "long_answer", "characters_per_word",
)  # fmt: skip
"""Names of the numbers, in their order. Counts and lengths are log(1 + n), shares lie between 0 and 1."""


def prompt_features(text: str) -> list[float]:
    """One number per name of `PROMPT_FEATURES`. Long texts are read at their beginning and their end."""
    scanned = text if len(text) <= 2 * _SCANNED else f"{text[:_SCANNED]} {text[-_SCANNED:]}"
    lower = scanned.lower()
    words = _WORD.findall(lower)
    numbers = _NUMBER.findall(scanned)
    length, count = len(scanned) or 1, len(words) or 1
    complexity = estimate(text, input_tokens=len(text) // 4, turns=1, max_tokens=None)
    return [
        math.log1p(len(text)),
        math.log1p(len(words)),
        math.log1p(text.count("\n")),
        math.log1p(len(_SENTENCE.findall(scanned))),
        math.log1p(len(numbers)),
        math.log1p(len(set(numbers))),
        math.log1p(max(map(_value, numbers), default=0.0)),
        sum(map(len, words)) / count,
        len(set(words)) / count,
        math.log1p(scanned.count("?")),
        math.log1p(scanned.count(",")),
        len(_UPPER.findall(scanned)) / length,
        (length - len(scanned.encode("ascii", "ignore"))) / length,
        len(_SYMBOL.findall(scanned)) / length,
        math.log1p(scanned.count("$")),
        math.log1p(scanned.count("%")),
        math.log1p(len(_CHOICE.findall(scanned))),
        float("```" in scanned or "def " in scanned),
        float("\\" in scanned),
        float(_NEGATION.search(lower) is not None),
        float(_QUANTITY.search(lower) is not None),
        float(_REASON.search(lower) is not None),
        float(_FACT.search(lower) is not None),
        float(_RATE.search(lower) is not None),
        float(text.rstrip().endswith("?")),
        complexity.reasoning,
        complexity.domain,
        complexity.output,
        length / count,
    ]


def feature_rows(texts: Sequence[str]) -> NDArray[np.float64]:
    """Shape (texts, features)."""
    return np.array([prompt_features(text) for text in texts], dtype=np.float64).reshape(len(texts), len(PROMPT_FEATURES))


def _value(number: str) -> float:
    plain = number.replace(",", "")
    return float(plain) if plain.count(".") <= 1 and len(plain) <= 15 else 0.0

"""Requests to measure with: questions of bank customers (Banking77), some repeated, some in other words. Deterministic.

A run's `session` stands in its system prompt: requests of two sessions share nothing, so no cache carries over.
"""

import csv
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random

_TEXTS = Path(__file__).resolve().parent.parent / "tests" / "data" / "banking77" / "test.csv"


def _lower(text: str) -> str:
    return text[0].lower() + text[1:]


def _in_short(text: str) -> str:
    return text.lower().rstrip("?.!")


# Of 200 questions each, 88 to 100 % have a cosine of 0.92 or more with the original (all-MiniLM-L6-v2); the last one 58 %.
_WORDINGS: tuple[Callable[[str], str], ...] = (
    lambda t: f"Hello, {_lower(t)}",
    lambda t: f"{t} Thanks!",
    lambda t: f"Quick question: {_lower(t)}",
    _in_short,
    lambda t: f"Hi there, {_lower(t)} Please help.",
    lambda t: f"Excuse me, {_lower(t)}",
    lambda t: f"Can you tell me, {_lower(t)}",
    lambda t: f"I was wondering: {_lower(t)}",
    lambda t: f"Good morning. {t} Thank you.",
)


def questions() -> list[str]:
    """3,080 distinct texts in a fixed random order."""
    with _TEXTS.open(encoding="utf-8", newline="") as file:
        found = list(dict.fromkeys(row["text"].strip() for row in csv.DictReader(file)))
    Random(77).shuffle(found)
    return found


def endless(count: int) -> list[str]:
    """Distinct texts, as many as wanted."""
    texts = questions()
    return [texts[i % len(texts)] if i < len(texts) else f"Case {i}: {texts[i % len(texts)]}" for i in range(count)]


def mixed(count: int, *, repeats: float, paraphrases: float, seed: int = 0) -> list[str]:
    """`repeats` of the texts are there twice, letter by letter; `paraphrases` say what another one says in other words."""
    again, reworded = round(count * repeats), round(count * paraphrases)
    unique = endless(count - again - reworded)
    random = Random(seed)
    texts = list(unique)
    texts += [_WORDINGS[i % len(_WORDINGS)](text) for i, text in enumerate(random.choices(unique, k=reworded))]
    texts += random.choices(unique, k=again)
    random.shuffle(texts)
    return texts


def body(text: str, model: str, session: str) -> dict[str, object]:
    """Of one chat completion."""
    system = f"You answer customers of a bank in two sentences. Session {session}."
    return {"model": model, "messages": [{"role": "system", "content": system}, {"role": "user", "content": text}], "max_tokens": 200}


def write_requests(path: Path, texts: Sequence[str], model: str, session: str) -> Path:
    """OpenAI batch lines."""
    with path.open("w", encoding="utf-8") as file:
        for number, text in enumerate(texts):
            line = {
                "custom_id": f"{session}-{number}",
                "method": "POST",
                "url": "/v1/chat/completions",
                "body": body(text, model, session),
            }
            file.write(json.dumps(line) + "\n")
    return path

"""How often a judge of answers errs, on real answers of two models to equal and to like questions.

Pairs whose truth is known, from 600 questions of GSM8K (grade-school sums, answered in 20 to 200 words):

    both right         the two models' answers to one question, both right: they say the same
    one wrong          the same, one right and one wrong: they differ in the result, and often in nothing else
    nearest question   one model's answers to a question and to the most similar other one: they differ

    python benchmarks/judge.py [--thresholds 0.7 0.75 ...] [--questions 600]
"""

import argparse
import gzip
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
from support import print_table, say

from inference_engine.connectors.embedder import find_embedder
from inference_engine.connectors.models_toml import load_catalogue
from inference_engine.connectors.simulation import answer, asked_of_chat
from inference_engine.pipeline.billing import bill, day_of
from inference_engine.pipeline.judge import by_value, told
from inference_engine.pipeline.judge_question import question_of, verdicts
from inference_engine.pipeline.ports import Embedder
from inference_engine.schemas.answers import Answer, Told, Usage

DATA = Path(__file__).parent / "data" / "gsm8k_answers.jsonl.gz"
MODEL = "gpt-4o-mini"
KINDS = ("both right", "one wrong", "nearest question")
NEIGHBOURS = 8
MS_2026 = 1_780_000_000_000


@dataclass(frozen=True, slots=True)
class Pair:
    kind: str
    one: Told
    other: Told


def kept(text: str) -> Told:
    """What the engine keeps of an answer."""
    body = {"choices": [{"message": {"role": "assistant", "content": text}}]}
    found = told(Answer(body=body, model_used=MODEL, usage=Usage(input_tokens=0, output_tokens=0), paid_pico=0, finish_reason="stop"))
    assert found is not None
    return found


def pairs_of(rows: Sequence[dict[str, Any]], embedder: Embedder) -> list[Pair]:
    found: list[Pair] = []
    for row in rows:
        one, other = row["answers"]
        if one["right"] or other["right"]:
            found.append(Pair("both right" if one["right"] and other["right"] else "one wrong", kept(one["text"]), kept(other["text"])))
    vectors = embedder.embed([row["prompt"] for row in rows])
    near = vectors @ vectors.T
    np.fill_diagonal(near, -1)
    for i, row in enumerate(rows):
        other = rows[int(near[i].argmax())]
        found.append(Pair("nearest question", kept(row["answers"][1]["text"]), kept(other["answers"][1]["text"])))
    return found


def by_cosine(pairs: Sequence[Pair], embedder: Embedder) -> list[float]:
    """As the default judge: by value where that tells (1 or 0), else the cosine of the kept texts; NaN where a text is not seen whole."""
    texts = sorted({told.text for pair in pairs for told in (pair.one, pair.other)})
    made = embedder.embed_whole(texts)
    rows = {text: vector if whole else None for text, vector, whole in zip(texts, made.vectors, made.whole, strict=True)}
    found: list[float] = []
    for pair in pairs:
        value, one, other = by_value(pair.one, pair.other), rows[pair.one.text], rows[pair.other.text]
        found.append(float(value) if value is not None else float("nan") if one is None or other is None else float(one @ other))
    return found


def simulated(pairs: Sequence[Pair]) -> tuple[list[float], float]:
    """By the simulated provider, a question a pair: 1, 0 or NaN; and what a question about eight answers costs, in dollars."""
    said: list[float] = []
    for pair in pairs:
        value = by_value(pair.one, pair.other)
        if value is None:
            text = answer(asked_of_chat(MODEL, question_of(MODEL, pair.one, [pair.other]))).texts[0]
            read = verdicts({"choices": [{"message": {"content": text}}]}, 1)
            value = None if read is None else read[0]
        said.append(float("nan") if value is None else float(value))
    model, costs = load_catalogue().priced(MODEL), []
    for start in range(0, len(pairs) - NEIGHBOURS, NEIGHBOURS):
        question = question_of(MODEL, pairs[start].one, [pair.other for pair in pairs[start : start + NEIGHBOURS]])
        asked = asked_of_chat(MODEL, question)
        usage = Usage(input_tokens=asked.input_tokens, output_tokens=answer(asked).output_tokens)
        costs.append(bill(model, usage, "standard", day_of(MS_2026)) / 1e12)
    return said, mean(costs)


def row_of(name: str, pairs: Sequence[Pair], said: Sequence[float], threshold: float) -> list[str]:
    cells = [name]
    for kind in KINDS:
        mine = np.array([value for pair, value in zip(pairs, said, strict=True) if pair.kind == kind])
        judged = mine[~np.isnan(mine)]
        cells.append(f"{(judged >= threshold).mean():.1%}" if len(judged) else "")
    silent = float(np.isnan(np.array(said)).mean())
    return [*cells, f"{silent:.1%}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--thresholds", type=float, nargs="+", default=[0.7, 0.75, 0.8, 0.85, 0.9, 0.95])
    parser.add_argument("--questions", type=int, default=600)
    arguments = parser.parse_args()
    found = find_embedder(threads=1)
    if found.embedder is None:
        raise SystemExit(found.reason)
    rows = [json.loads(line) for line in gzip.decompress(DATA.read_bytes()).splitlines()][: arguments.questions]
    pairs = pairs_of(rows, found.embedder)
    counts = {kind: sum(pair.kind == kind for pair in pairs) for kind in KINDS}
    say(f"{counts}")
    cosines = by_cosine(pairs, found.embedder)
    table = [row_of(f"embedding, from {threshold:g} on", pairs, cosines, threshold) for threshold in arguments.thresholds]
    words, dollars = simulated(pairs)
    table.append(row_of("a model's protocol, simulated: half of the words", pairs, words, 0.5))
    columns = ["judge", *(f"{kind} ({counts[kind]})" for kind in KINDS), "says nothing"]
    note = f"A question about {NEIGHBOURS} answers of this length is ${dollars:.6f} with {MODEL}."
    print_table('Share of the pairs that are called "the same"', columns, table, [note])


if __name__ == "__main__":
    main()

"""Hits and mistakes of the learned decision on questions whose intent says who may share an answer, beside the best fixed threshold.

Each order is a random sample of the texts in a random order, replayed from an empty cache through the engine's own decision
(`pipeline.replay`, as `inference-engine evaluate cache`). The fixed threshold is chosen in hindsight: the lowest one with no more
mistakes per request, on average over the orders, than the learned decision made.

    python benchmarks/semantic_cache.py [--data banking77 clinc150] [--orders 5] [--requests N] [--keep FOLDER]
"""

import argparse
import csv
import dataclasses
import gzip
import io
import json
import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean

import numpy as np
from support import print_table, say

from inference_engine.cli.cache_stream import embed_stream
from inference_engine.connectors.embedder import find_embedder
from inference_engine.connectors.vector_index import BruteForceIndex
from inference_engine.pipeline.learned_settings import LearnedSettings, Per
from inference_engine.pipeline.ports import Embedded
from inference_engine.pipeline.replay import Line, Outcome, ReplayOptions, replay
from inference_engine.pipeline.semantic import StaticPolicy

DATA = Path(__file__).parent / "data"
REQUESTS = {"banking77": 6000, "clinc150": 8000}
Stream = tuple[list[Line], Embedded]


def banking77() -> list[Line]:
    with gzip.open(DATA / "banking77.csv.gz", "rt", encoding="utf-8", newline="") as file:
        return [Line(row["text"].strip(), row["category"]) for row in csv.DictReader(io.StringIO(file.read()))]


def clinc150() -> list[Line]:
    """What is out of scope is a group of its own."""
    splits = json.loads(gzip.decompress((DATA / "clinc150.json.gz").read_bytes()))
    rows = [(text, intent) for split in sorted(splits) for text, intent in splits[split]]
    return [Line(text.strip(), f"{intent} {i}" if intent == "oos" else intent) for i, (text, intent) in enumerate(rows)]


SETS: dict[str, Callable[[], list[Line]]] = {"banking77": banking77, "clinc150": clinc150}


def embedded(name: str, lines: Sequence[Line], keep: Path | None) -> Embedded:
    """Vectors of all lines, from `keep` where an earlier run left them."""
    file = None if keep is None else keep / f"{name}.npz"
    if file is not None and file.exists():
        with np.load(file) as stored:
            return Embedded(stored["vectors"], stored["whole"])
    found = find_embedder()
    if found.embedder is None:
        raise SystemExit(found.reason)
    made = embed_stream(found.embedder, [line.text for line in lines], say)
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        np.savez(file, vectors=made.vectors, whole=made.whole)
    return made


def order(lines: Sequence[Line], vectors: Embedded, requests: int, seed: int) -> Stream:
    rows = list(range(len(lines)))
    random.Random(seed).shuffle(rows)
    rows = rows[:requests]
    return [lines[i] for i in rows], Embedded(vectors.vectors[rows], vectors.whole[rows])


def changed_half_way(stream: Stream) -> Stream:
    """From the middle on every question has another answer than before."""
    lines, vectors = stream
    half = len(lines) // 2
    return lines[:half] + [dataclasses.replace(line, answer_group=f"{line.answer_group} now") for line in lines[half:]], vectors


def by_intent(stream: Stream) -> Stream:
    """One intent after the other: what comes next is always something new."""
    lines, vectors = stream
    rows = sorted(range(len(lines)), key=lambda i: lines[i].answer_group)
    return [lines[i] for i in rows], Embedded(vectors.vectors[rows], vectors.whole[rows])


def slowly_changing(stream: Stream, seed: int) -> Stream:
    """Every 800 requests a tenth of the intents gets another answer."""
    chance, changed = random.Random(seed), []
    intents = sorted({line.answer_group for line in stream[0]})
    version = dict.fromkeys(intents, 0)
    for i, line in enumerate(stream[0]):
        if i and i % 800 == 0:
            for intent in chance.sample(intents, len(intents) // 10):
                version[intent] += 1
        changed.append(dataclasses.replace(line, answer_group=f"{line.answer_group} {version[line.answer_group]}"))
    return changed, stream[1]


def bounded(bound: float, per: Per = "request") -> ReplayOptions:
    return ReplayOptions(learned=LearnedSettings(bound=bound, per=per))


def play(stream: Stream, options: ReplayOptions, noise: float = 0.0) -> Outcome:
    judge = random.Random(1)
    index = BruteForceIndex(stream[1].vectors.shape[1], clock=lambda: 0)
    return replay(*stream, index, options, time.perf_counter_ns, lambda: judge.random() < noise)


TIGHTER = {
    "0.1 % per request": bounded(0.001),
    "0.2 % per request": bounded(0.002),
    "0.5 % per request": bounded(0.005),
    "0.5 % per hit": bounded(0.005, "hit"),
    "1 % per hit": bounded(0.01, "hit"),
    "2 % per hit": bounded(0.02, "hit"),
}


def errors(outcomes: Sequence[Outcome], begin: float = 0.0) -> list[float]:
    """Wrong answers per request, from that part of the stream on."""
    parts = [o.decided[int(begin * len(o.decided)) :] for o in outcomes]
    return [sum(d.shared is not None and d.right is False for d in part) / len(part) for part in parts]


def hits(outcomes: Sequence[Outcome]) -> float:
    return mean(o.hits / len(o.decided) for o in outcomes)


def best_fixed(streams: Sequence[Stream], allowed: float) -> tuple[float, list[Outcome]]:
    """The lowest threshold, to 0.002, whose mean error is no more than `allowed`."""
    low, high = 0.6, 1.0
    best: tuple[float, list[Outcome]] | None = None
    while best is None or high - low > 0.002:
        middle = (low + high) / 2
        options = ReplayOptions(policy="static", static=StaticPolicy(threshold=middle))
        outcomes = [play(stream, options) for stream in streams]
        if mean(errors(outcomes)) <= allowed:
            high, best = middle, (middle, outcomes)
        else:
            low = middle
    return best


def row(name: str, what: str, outcomes: Sequence[Outcome], begin: float = 0.0) -> list[str]:
    wrong = errors(outcomes, begin)
    per_hit = [o.wrong / max(1, o.hits) for o in outcomes]
    return [
        name, what, f"{hits(outcomes):.1%}", f"{mean(wrong):.2%}", f"{max(wrong):.2%}", f"{mean(per_hit):.2%}", f"{max(per_hit):.2%}",
        f"{mean(o.audits / len(o.decided) for o in outcomes):.1%}", f"{mean(len(o.fallbacks) for o in outcomes):.1f}",
        f"{mean(o.coalesced / len(o.decided) for o in outcomes):.2%}", f"{mean(o.wrong_merges / len(o.decided) for o in outcomes):.2%}",
    ]  # fmt: skip


def measure(name: str, orders: int, requests: int, keep: Path | None) -> tuple[list[list[str]], list[str]]:
    lines = SETS[name]()
    vectors = embedded(name, lines, keep)
    streams = [order(lines, vectors, requests, seed) for seed in range(orders)]
    learned = [play(stream, ReplayOptions()) for stream in streams]
    rows = [row(name, "1 % per request", learned)]
    say(f"{name}: {rows[0][2]} hits")
    threshold, fixed = best_fixed(streams, mean(errors(learned)))
    rows.append(row(name, f"fixed {threshold:.3f}, in hindsight", fixed))
    for what, options in TIGHTER.items():
        rows.append(row(name, what, [play(stream, options) for stream in streams]))
    rows.append(row(name, "judge errs 5 %", [play(stream, ReplayOptions(), 0.05) for stream in streams]))
    rows.append(row(name, "judge 200 requests late", [play(stream, ReplayOptions(judge_delay=200)) for stream in streams]))
    changed = [play(changed_half_way(stream), ReplayOptions()) for stream in streams]
    rows.append(row(name, "answers change: second half", changed, 0.5))
    rows.append(row(name, "with coalescing", [play(stream, ReplayOptions(coalesce=True)) for stream in streams]))
    in_order = [by_intent(stream) for stream in streams]
    rows.append(row(name, "sorted by intent", [play(stream, ReplayOptions()) for stream in in_order]))
    rows.append(row(name, "sorted, with coalescing", [play(stream, ReplayOptions(coalesce=True)) for stream in in_order]))
    drifting = [slowly_changing(stream, seed) for seed, stream in enumerate(streams)]
    rows.append(row(name, "slow drift", [play(stream, ReplayOptions()) for stream in drifting]))
    noticed = [o.fallbacks[0][0] - len(o.decided) // 2 for o in changed if o.fallbacks]
    decision = mean(float(np.median(o.decision_ns)) for o in learned) / 1000
    notes = [
        f"{name}: {hits(learned) / hits(fixed):.2f} times the hits of the best fixed threshold at the same error; a decision takes "
        f"{decision:.0f} µs (median) after the search; changed answers were noticed after {', '.join(map(str, noticed))} requests."
    ]
    return rows, notes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", choices=sorted(SETS), default=sorted(SETS))
    parser.add_argument("--orders", type=int, default=5)
    parser.add_argument("--requests", type=int, help="a stream; default: 6,000 of banking77, 8,000 of clinc150")
    parser.add_argument("--keep", type=Path, help="folder for the embeddings, so that the next run has them")
    arguments = parser.parse_args()
    table, notes = [], []
    for name in arguments.data:
        rows, more = measure(name, arguments.orders, arguments.requests or REQUESTS[name], arguments.keep)
        table += rows
        notes += more
    columns = [
        "data",
        "policy",
        "hits",
        "wrong per request",
        "worst order",
        "wrong per hit",
        "worst",
        "audits",
        "fallbacks",
        "coalesced",
        "wrong merges",
    ]
    print_table(f"{arguments.orders} orders", columns, table, notes)


if __name__ == "__main__":
    main()

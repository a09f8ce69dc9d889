"""How often the semantic tier shares, and how often wrongly, by the fixed threshold: questions whose intent says who may share.

Texts arrive in a random order; a miss is answered and kept, a hit takes the nearest kept prompt's answer. It is wrong where the intents
differ. The decision is the engine's own (`pipeline.semantic.decide`), numbers veto included.

    python benchmarks/static_policy.py [--texts FILE.csv] [--limit N] [--seed N] [--thresholds 0.85 0.92 ...]
"""

import argparse
import csv
import random
from pathlib import Path

import numpy as np
from support import print_table

from inference_engine.connectors.embedder import find_embedder
from inference_engine.pipeline.ports import Neighbour, Point, Vectors
from inference_engine.pipeline.semantic import Hit, StaticPolicy, decide

TEXTS = Path(__file__).parent.parent / "tests" / "data" / "banking77" / "test.csv"
NEIGHBOURS = 6


def stream(path: Path, limit: int, seed: int) -> list[tuple[str, str]]:
    """(text, intent) in the order of the seed."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = [(row["text"].strip(), row["category"]) for row in csv.DictReader(file)]
    random.Random(seed).shuffle(rows)
    return rows[:limit]


def play(rows: list[tuple[str, str]], vectors: Vectors, threshold: float) -> tuple[int, int]:
    """(hits, wrong ones) of one pass."""
    policy = StaticPolicy(threshold=threshold)
    kept: list[int] = []
    hits = wrong = 0
    for i, (text, intent) in enumerate(rows):
        decision = decide(text, nearest(rows, vectors, kept, i), policy, now_ms=0)
        if isinstance(decision, Hit):
            hits += 1
            wrong += decision.neighbour.point.id != intent
        else:
            kept.append(i)
    return hits, wrong


def nearest(rows: list[tuple[str, str]], vectors: Vectors, kept: list[int], i: int) -> list[Neighbour]:
    """The most similar kept prompts; a point's id is its intent here, since only that is compared."""
    if not kept:
        return []
    similar = vectors[kept] @ vectors[i]
    best = np.argsort(-similar)[:NEIGHBOURS]
    return [
        Neighbour(Point(rows[kept[j]][1], vectors[kept[j]], "t", "s", rows[kept[j]][0], created_ms=0, expires_ms=1), float(similar[j]))
        for j in best
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=Path, default=TEXTS, help="CSV with the columns text and category")
    parser.add_argument("--limit", type=int, default=6000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--thresholds", type=float, nargs="+", default=[0.85, 0.9, 0.92, 0.95, 0.97])
    arguments = parser.parse_args()
    found = find_embedder()
    if found.embedder is None:
        raise SystemExit(found.reason)
    rows = stream(arguments.texts, arguments.limit, arguments.seed)
    vectors = found.embedder.embed([text for text, _ in rows])
    table = []
    for threshold in arguments.thresholds:
        hits, wrong = play(rows, vectors, threshold)
        share = wrong / hits if hits else 0.0
        table.append([f"{threshold:g}", f"{hits / len(rows):.1%}", f"{wrong / len(rows):.2%}", f"{share:.1%}"])
    print_table(f"{len(rows):,} texts, seed {arguments.seed}", ["threshold", "hits", "wrong per request", "wrong per hit"], table)


if __name__ == "__main__":
    main()

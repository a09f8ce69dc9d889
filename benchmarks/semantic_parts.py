"""What the semantic tier's parts take: embedding, Qdrant embedded beside brute force, the decision, and all of it per core.

Vectors of the index are unit vectors in random clusters: their neighbours are as near as those of real questions, at any number.

    python benchmarks/semantic_parts.py [--entries 1000 10000 100000] [--searches 200] [--texts 512]
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from semantic_cache import banking77
from support import percentile, print_table, say
from threadpoolctl import threadpool_limits

from inference_engine.connectors.embedder import SentenceTransformerEmbedder
from inference_engine.connectors.qdrant import QdrantEdgeIndex
from inference_engine.connectors.vector_index import BruteForceIndex
from inference_engine.pipeline.embed import unit_rows
from inference_engine.pipeline.learned import LearnedPolicy
from inference_engine.pipeline.ports import Embedder, Neighbour, Point, VectorIndex, Vectors

DIMENSION = 384
LIMIT = 8
FOREVER = 1 << 60
OPTIMIZED = 20_000
"""Building the graph of 100,000 takes minutes, and the engine doesn't: small scopes gain nothing by it."""
POLICY = LearnedPolicy(weights=(-11.0, 8.0, 0.5, 7.0, 2.0), threshold=0.9)
"""Any weights: they take the same time."""


def clustered(n: int, seed: int) -> Vectors:
    """About 20 to a cluster, cosine 0.6 to 0.9 within it."""
    random = np.random.default_rng(seed)
    centres = unit_rows(np.random.default_rng(0).normal(size=(max(2, n // 20), DIMENSION)))
    return unit_rows(centres[random.integers(len(centres), size=n)] + random.normal(size=(n, DIMENSION)) * 0.03)


def fill(index: VectorIndex, vectors: Vectors) -> float:
    """Seconds."""
    began = time.perf_counter()
    for start in range(0, len(vectors), 256):
        rows = range(start, min(start + 256, len(vectors)))
        index.upsert([Point(f"{i:064x}", vectors[i], "t", "s", "where is it", created_ms=0, expires_ms=FOREVER) for i in rows])
    return time.perf_counter() - began


def searched(index: VectorIndex, queries: Vectors) -> tuple[list[list[Neighbour]], list[float]]:
    """Neighbours, and ms of each search."""
    index.search("t", "s", queries[:1], LIMIT)
    found, took = [], []
    for row in range(len(queries)):
        began = time.perf_counter()
        found += index.search("t", "s", queries[row : row + 1], LIMIT)
        took.append(1000 * (time.perf_counter() - began))
    return found, took


def recall(found: Sequence[Sequence[Neighbour]], true: Sequence[Sequence[Neighbour]]) -> float:
    """The share of the true neighbours that were found."""
    both = sum(len({n.point.id for n in f} & {n.point.id for n in t}) for f, t in zip(found, true, strict=True))
    return both / sum(len(t) for t in true)


def compare(entries: int, queries: Vectors) -> list[list[str]]:
    vectors = clustered(entries, 1)
    brute = BruteForceIndex(DIMENSION, clock=lambda: 0)
    rows: list[list[str]] = []
    true: list[list[Neighbour]] = []
    with tempfile.TemporaryDirectory(prefix="inference-engine-benchmark-") as folder:
        edge = QdrantEdgeIndex(Path(folder) / "edge", DIMENSION, clock=lambda: 0)
        seconds = {"brute force": fill(brute, vectors), "Qdrant embedded": fill(edge, vectors)}
        indexes: list[tuple[str, VectorIndex]] = [("brute force", brute), ("Qdrant embedded", edge)]
        if entries <= OPTIMIZED:
            indexes.append(("the same, optimized", edge))
        for name, index in indexes:
            if name not in seconds:
                edge.optimize()
            found, took = searched(index, queries)
            true = true or found
            upserts = f"{entries / seconds[name]:,.0f}" if name in seconds else ""
            timing = [f"{percentile(took, 50):.2f}", f"{percentile(took, 95):.2f}"]
            rows.append([f"{name}, {entries:,} entries", upserts, *timing, f"{recall(found, true):.3f}"])
            say(" | ".join(rows[-1]))
        edge.close()
    return rows


def per_second(work: Callable[[], int]) -> float:
    """Of one core's own time: what else the machine does is not counted."""
    began = time.process_time()
    return work() / (time.process_time() - began)


def decision_us(found: Sequence[Sequence[Neighbour]]) -> float:
    """Of one decision, its neighbours found. A hundred rounds, since a process's own time moves in steps of milliseconds."""
    considered = [near for _ in range(100) for near in found]
    return 1e6 / per_second(lambda: sum(len(POLICY.consider("where is that", near, 1, str).neighbours) >= 0 for near in considered))


def whole(embedder: Embedder, texts: Sequence[str]) -> float:
    """Texts per second of one core: embedded 64 at a time, searched among 10,000, decided. NumPy's threads wait for each other in a loop,
    which would count: it has one.
    """
    index = BruteForceIndex(DIMENSION, clock=lambda: 0)
    fill(index, clustered(10_000, 1))

    def work() -> int:
        for start in range(0, len(texts), 64):
            batch = texts[start : start + 64]
            vectors = embedder.embed_whole(batch).vectors
            for text, near in zip(batch, index.search("t", "s", vectors, LIMIT), strict=True):
                POLICY.consider(text, near, 1, str)
        return len(texts)

    with threadpool_limits(1, user_api="blas"):
        return per_second(work)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--entries", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    parser.add_argument("--searches", type=int, default=200)
    parser.add_argument("--texts", type=int, default=512)
    arguments = parser.parse_args()
    queries = clustered(arguments.searches, 2)
    table = [row for entries in arguments.entries for row in compare(entries, queries)]
    embedder = SentenceTransformerEmbedder(threads=1)
    texts = [line.text for line in banking77()[: arguments.texts]]
    embedder.embed_whole(texts[:64])
    embed = per_second(lambda: sum(len(embedder.embed_whole(texts[i : i + 64]).vectors) for i in range(0, len(texts), 64)))
    brute = BruteForceIndex(DIMENSION, clock=lambda: 0)
    fill(brute, clustered(10_000, 1))
    notes = [
        f"One core: {embed:.0f} texts/s embedded with torch; {whole(embedder, texts):.0f}/s embedded, searched among 10,000 and decided; "
        f"a decision takes {decision_us(searched(brute, queries)[0]):.0f} µs."
    ]
    print_table("The index", ["index", "upserts/s", "search p50, ms", "p95, ms", f"recall at {LIMIT}"], table, notes)


if __name__ == "__main__":
    main()

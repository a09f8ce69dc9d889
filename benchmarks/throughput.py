"""Requests per second of `inference-engine run` against a naive client on the same simulated provider, side by side.

python benchmarks/throughput.py [--requests 2000] [--repeat 3] [--latency-ms 200] [--cases off on unique]

Each repetition runs the naive client and then the engine on the same new requests. Cases: `off`, `on`: the semantic cache, with
15 % exact repeats and 35 % paraphrases; `unique`: every request once, semantic cache off.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import psutil
from support import MODEL, Engine, Provider, Ran, cpu_seconds, engine, print_table, say, simulated_provider, spread
from workload import endless, mixed, questions, write_requests

GOALS = {"off": 3.0, "on": 1.5, "unique": 2.0}
NAMES = {"off": "15 % repeats, 35 % paraphrases; semantic off", "on": "the same; semantic on", "unique": "all unique; semantic off"}


@dataclass(frozen=True, slots=True)
class Pair:
    """One repetition."""

    naive_s: float
    naive_lost: int
    """Requests that the naive client gave up, by the SDK's own timeouts."""
    naive_cpu_s: float
    ran: Ran
    cpu_s: dict[str, float]
    """Of the engine's processes and the provider's, during the engine's run."""
    calls: int

    @property
    def requests(self) -> int:
        return int(self.ran.report["answered"])

    @property
    def ratio(self) -> float:
        return self.naive_s / self.ran.seconds


def naive(requests: Path, provider: Provider, count: int) -> tuple[float, int, float]:
    """Seconds, lost requests, CPU seconds. Raises `CalledProcessError`."""
    script = Path(__file__).with_name("naive_client.py")
    command = [sys.executable, str(script), str(requests), str(requests.with_suffix(".naive")), "--base-url", provider.openai_url]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found = json.loads(done.stdout)
    return found["seconds"], count - found["answered"], found["cpu_s"]


def repetition(stack: Engine, provider: Provider, texts: Sequence[str], session: str) -> Pair:
    requests = write_requests(stack.home / f"{session}.jsonl", texts, MODEL, session)
    naive_s, naive_lost, naive_cpu_s = naive(requests, provider, len(texts))
    provider.reset()
    processes: dict[str, psutil.Process] = {**stack.processes(), "provider": provider.process}
    before = cpu_seconds(processes)
    ran = stack.run(requests)
    spent = {name: value - before[name] for name, value in cpu_seconds(processes).items()} | {"run": ran.cpu_s}
    return Pair(naive_s, naive_lost, naive_cpu_s, ran, spent, int(provider.bill()["calls"]))


def case(name: str, count: int, repeat: int, provider: Provider) -> list[Pair]:
    """One stack; a warm-up of both sides, then `repeat` pairs."""
    pairs: list[Pair] = []
    with engine(provider, semantic=name == "on") as stack:
        repetition(stack, provider, endless(max(50, count // 10)), f"{name}-warm-up")
        for number in range(repeat):
            texts = endless(count) if name == "unique" else mixed(count, repeats=0.15, paraphrases=0.35, seed=number)
            pair = repetition(stack, provider, texts, f"{name}-{number}")
            pairs.append(pair)
            cpu = ", ".join(f"{part} {1000 * spent / pair.requests:.2f}" for part, spent in pair.cpu_s.items())
            say(f"{name}: naive {pair.naive_s:.2f} s, engine {pair.ran.seconds:.2f} s, ratio {pair.ratio:.2f}; CPU ms/request: {cpu}")
    return pairs


def embedder_rate(count: int = 1000) -> float:
    """Texts per second with nothing else at work, as a worker embeds them: on all its threads. Run in a process of its own."""
    from concurrent.futures import ThreadPoolExecutor

    from inference_engine.connectors.embedder import find_embedder

    texts, embedder = questions()[:count], find_embedder().embedder
    assert embedder is not None
    batches = [texts[start : start + 64] for start in range(0, len(texts), 64)]
    with ThreadPoolExecutor(embedder.parallel) as pool:
        list(pool.map(embedder.embed, batches))
        began = time.perf_counter()
        list(pool.map(embedder.embed, batches))
        return len(texts) / (time.perf_counter() - began)


def embedder_rate_apart() -> float:
    command = [sys.executable, __file__, "--embedder-rate"]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env={**os.environ, "TQDM_DISABLE": "1"})
    return float(done.stdout.split()[-1])


def row(name: str, pairs: Sequence[Pair]) -> list[str]:
    ratios = [pair.ratio for pair in pairs]
    reached = "reached" if median(ratios) >= GOALS[name] else "missed"
    return [
        NAMES[name],
        spread([pair.requests / pair.naive_s for pair in pairs], ".0f"),
        spread([pair.ran.requests_per_s for pair in pairs], ".0f"),
        spread(ratios, ".2f"),
        f"{GOALS[name]:g} {reached}",
        f"{median(pair.ran.wall_s for pair in pairs):.1f}",
        f"{median(pair.calls for pair in pairs):.0f}",
    ]


def cpu_note(name: str, pairs: Sequence[Pair]) -> str:
    parts = pairs[0].cpu_s
    each = ", ".join(f"{part} {median(1000 * p.cpu_s[part] / p.requests for p in pairs):.2f}" for part in parts)
    own = median(1000 * p.naive_cpu_s / p.requests for p in pairs)
    lost = sum(p.naive_lost for p in pairs)
    return f"CPU ms per request, {name}: {each}; naive client {own:.2f}" + (f", which gave up {lost} requests" if lost else "")


def embedder_note(pairs: Sequence[Pair], rate: float) -> str:
    embedded = [(int(p.ran.report["answered"]) - int(p.ran.report["cached"]["exact"])) / p.ran.seconds for p in pairs]
    return (
        f"Semantic on: {median(embedded):.0f} texts/s embedded, {100 * median(embedded) / rate:.0f} % of the {rate:.0f} texts/s "
        "that the embedder makes alone on all cores, measured in the same run."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--latency-ms", type=float, default=200)
    parser.add_argument("--cases", nargs="+", choices=list(NAMES), default=list(NAMES))
    parser.add_argument("--embedder-rate", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.embedder_rate:
        print(embedder_rate())
        return
    rows, notes = [], []
    with suppress(KeyboardInterrupt), simulated_provider(given.latency_ms) as provider:
        for name in given.cases:
            rate = embedder_rate_apart() if name == "on" else 0.0
            pairs = case(name, given.requests, given.repeat, provider)
            rows.append(row(name, pairs))
            notes.append(cpu_note(name, pairs))
            if rate:
                notes.append(embedder_note(pairs, rate))
    columns = ["workload", "naive requests/s", "engine requests/s", "ratio", "goal", "wall of `run`, s", "provider calls"]
    title = f"{given.requests:,} requests, provider {given.latency_ms:g} ms, naive client with 256 in flight; median (min to max)"
    print_table(title, columns, rows, notes)


if __name__ == "__main__":
    main()

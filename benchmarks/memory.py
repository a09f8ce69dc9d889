"""Resident memory of the engine's processes while `run` answers a large file.

python benchmarks/memory.py [--requests 300000] [--warm-up 100000] [--latency-ms 2]

Sampled every second against the number of calls the provider was paid for. Warm-up lasts until the exact cache is full
(CACHE_EXACT_SIZE, 100,000 answers unless set); the slope is a least-squares line through the rest.
"""

import argparse
import contextlib
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import psutil
from support import MODEL, Engine, Provider, engine, megabytes, print_table, say, simulated_provider
from workload import endless, write_requests

Sample = tuple[int, dict[str, float]]
"""(requests paid, MB by process)."""


def sampled_run(stack: Engine, provider: Provider, requests: Path, timeout_s: float) -> tuple[list[Sample], float]:
    """The samples, and the seconds it took. Raises `RuntimeError` where the run fails or takes too long."""
    process, _ = stack.start_run(requests)
    processes = {**stack.processes(), "run": psutil.Process(process.pid)}
    samples: list[Sample] = []
    began = time.monotonic()
    try:
        while process.poll() is None:
            if time.monotonic() - began > timeout_s:
                raise RuntimeError(f"the run did not end within {timeout_s:.0f} s")
            with contextlib.suppress(psutil.NoSuchProcess):
                samples.append((int(provider.bill()["calls"]), {name: megabytes(p) for name, p in processes.items()}))
            if len(samples) % 30 == 1:
                say(f"{samples[-1][0]:,} paid; MB: " + ", ".join(f"{n} {mb:.0f}" for n, mb in samples[-1][1].items()))
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(1.0)
    finally:
        if process.poll() is None:
            process.kill()
        errors = process.communicate()[1]
    if process.returncode:
        raise RuntimeError(f"`run` ended with {process.returncode}: {errors.decode('utf-8', 'replace')[-2000:]}")
    return samples, time.monotonic() - began


def slope(samples: Sequence[Sample], name: str) -> float:
    """MB per 100,000 requests."""
    paid = np.array([count for count, _ in samples], dtype=float)
    memory = np.array([mb[name] for _, mb in samples])
    return float(np.polyfit(paid, memory, 1)[0]) * 100_000 if len(set(paid)) > 1 else 0.0


def row(name: str, samples: Sequence[Sample], warm: Sequence[Sample]) -> list[str]:
    growth, end = slope(warm, name), warm[-1][1][name]
    most = max(mb[name] for _, mb in samples)
    at_million = end + growth * (1_000_000 - samples[-1][0]) / 100_000
    return [
        name,
        f"{samples[0][1][name]:.0f}",
        f"{warm[0][1][name]:.0f}",
        f"{end:.0f}",
        f"{most:.0f}",
        f"{growth:+.1f}",
        f"{at_million:.0f}",
    ]


def disk_megabytes(folder: Path) -> Mapping[str, float]:
    """By part of the data folder, as the disk has it: Kafka reserves more for its indexes than it uses."""
    return {
        part.name: sum(512 * f.stat().st_blocks for f in part.rglob("*") if f.is_file()) / 2**20
        for part in (folder / "kafka", folder / "data", folder / "costs")
        if part.is_dir()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=300_000)
    parser.add_argument("--warm-up", type=int, default=100_000)
    parser.add_argument("--latency-ms", type=float, default=2)
    parser.add_argument("--timeout-s", type=float, default=3600)
    parser.add_argument("--semantic", action="store_true", help="with the semantic cache on, and its default policy")
    given = parser.parse_args()
    with simulated_provider(given.latency_ms) as provider, engine(provider, semantic=given.semantic, CACHE_POLICY="learned") as stack:
        stack.run(write_requests(stack.home / "warm-up.jsonl", endless(100), MODEL, "warm-up"))
        provider.reset()
        requests = write_requests(stack.home / "job.jsonl", endless(given.requests), MODEL, "job")
        samples, seconds = sampled_run(stack, provider, requests, given.timeout_s)
        disk = disk_megabytes(stack.home)
    # What was asked and not paid yet is not among the samples' counts: the last ones may all show the same number.
    warm = [sample for sample in samples if sample[0] >= given.warm_up]
    columns = [
        "process",
        "MB at the start",
        "after warm-up",
        "at the end",
        "at most",
        "MB per 100,000 more",
        "MB at 1,000,000, extrapolated",
    ]
    notes = [
        f"{given.requests:,} requests in {seconds:.0f} s ({given.requests / seconds:.0f} requests/s), {len(samples)} samples. "
        "The last column is a straight line through what was measured: nobody ran a million here.",
        "On disk, MB: " + ", ".join(f"{part} {size:.0f}" for part, size in disk.items()),
    ]
    names = list(samples[-1][1])
    print_table("Resident memory during one `run`", columns, [row(name, samples, warm) for name in names], notes)


if __name__ == "__main__":
    main()

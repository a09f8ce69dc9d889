"""A job under a provider's limit of requests per minute: its time against the ideal, and how often the provider said 429.

python benchmarks/rate_limit.py [--requests 900] [--requests-per-minute 600] [--latency-ms 200]

Ideal: requests / rate. The provider counts with a token bucket that holds one second's worth.
"""

import argparse
from pathlib import Path

from support import MODEL, engine, print_table, say, simulated_provider
from workload import endless, write_requests


def models_file(folder: Path, requests_per_minute: int) -> Path:
    """Tells the engine about the limit."""
    path = folder / "models.toml"
    path.write_text(f'[models."{MODEL}"]\nrequests_per_minute = {requests_per_minute}\n', encoding="utf-8")
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=900)
    parser.add_argument("--requests-per-minute", type=int, default=600)
    parser.add_argument("--latency-ms", type=float, default=200)
    given = parser.parse_args()
    rate = given.requests_per_minute
    with simulated_provider(given.latency_ms, requests_per_minute=rate) as provider, engine(provider, semantic=False, start=False) as stack:
        stack.environ["MODELS_FILE"] = str(models_file(stack.home, rate))
        stack.up()
        stack.run(write_requests(stack.home / "warm-up.jsonl", endless(10), MODEL, "warm-up"))
        before = provider.bill()
        say(f"{given.requests:,} requests, at least {given.requests / rate * 60:.0f} s")
        ran = stack.run(write_requests(stack.home / "job.jsonl", endless(given.requests), MODEL, "job"))
        after = provider.bill()
    ideal = given.requests / rate * 60
    calls, refused = (after[name] - before[name] for name in ("calls", "refused_429"))
    columns = ["requests", "ideal, s", "took, s", "times the ideal", "goal", "calls paid", "429s", "share of 429s", "goal"]
    share = refused / (calls + refused)
    cells = [
        f"{given.requests:,}", f"{ideal:.1f}", f"{ran.seconds:.1f}", f"{ran.seconds / ideal:.3f}",
        "1.05 " + ("reached" if ran.seconds <= 1.05 * ideal else "missed"),
        f"{calls:,}", f"{refused:,}", f"{100 * share:.2f} %", "1 % " + ("reached" if share < 0.01 else "missed"),
    ]  # fmt: skip
    print_table(f"A job at {rate} requests/min, provider {given.latency_ms:g} ms", columns, [cells])


if __name__ == "__main__":
    main()

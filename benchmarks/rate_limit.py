"""A job under a provider's limits per minute: its time against the ideal, and how often the provider said 429.

python benchmarks/rate_limit.py [--seconds 90] [--requests-per-minute 600] [--tokens-per-minute 120000] [--latency-ms 200]
    [--cases requests tokens learned keys]

requests, tokens: the limit stands in models.toml, and in the provider's replies. learned: requests, in the replies alone. keys: two keys,
each with the limit of requests, in the replies alone. Ideal: what the provider counted, at the limit. It counts with a token bucket that
holds one second's worth, tokens as OpenAI does: the prompt and all that the call may produce, when it is admitted.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

from support import MODEL, engine, print_table, say, simulated_provider
from workload import endless, write_requests

CASES = ["requests", "tokens", "learned", "keys"]


@dataclass(frozen=True)
class Case:
    """What is limited, and who says so."""

    name: str
    kind: str
    per_minute: int
    configured: bool = True
    keys: int = 1

    @property
    def ceiling(self) -> int:
        return self.per_minute * self.keys


def models_file(folder: Path, case: Case) -> Path:
    """Tells the engine about the limit."""
    path = folder / "models.toml"
    limit = f"{case.kind}_per_minute = {case.per_minute}\n" if case.configured else ""
    path.write_text(f'[models."{MODEL}"]\n{limit}', encoding="utf-8")
    return path


def measure(case: Case, count: int, latency_ms: float) -> list[str]:
    limits = {f"{case.kind}_per_minute": case.per_minute}
    keys = ",".join(f"key-{n}" for n in range(case.keys))
    with simulated_provider(latency_ms, **limits) as provider, engine(provider, semantic=False, start=False, OPENAI_API_KEY=keys) as stack:
        stack.environ["MODELS_FILE"] = str(models_file(stack.home, case))
        stack.up()
        stack.run(write_requests(stack.home / "warm-up.jsonl", endless(10), MODEL, "warm-up"))
        before = provider.bill()
        say(f"{case.name}: {count:,} requests")
        ran = stack.run(write_requests(stack.home / "job.jsonl", endless(count), MODEL, "job"))
        after = provider.bill()
    admitted, refused = (int(after[name] - before[name]) for name in ("admitted", "refused_429"))
    counted = after["counted_tokens"] - before["counted_tokens"] if case.kind == "tokens" else admitted
    ideal = counted / case.ceiling * 60
    share, used = refused / (admitted + refused), ideal / ran.seconds
    return [
        case.name, f"{case.ceiling:,}", f"{count:,}", f"{counted:,.0f}", f"{ideal:.1f}", f"{ran.seconds:.1f}", f"{100 * used:.1f} %",
        "98 % " + ("reached" if used >= 0.98 else "missed"), f"{refused:,}", f"{100 * share:.2f} %",
        "1 % " + ("reached" if share < 0.01 else "missed"),
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=90, help="how long a job should take")
    parser.add_argument("--requests-per-minute", type=int, default=600)
    parser.add_argument("--tokens-per-minute", type=int, default=120_000)
    parser.add_argument("--latency-ms", type=float, default=200)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=CASES)
    given = parser.parse_args()
    rate, tokens = given.requests_per_minute, given.tokens_per_minute
    cases = {
        "requests": Case("requests", "requests", rate),
        "tokens": Case("tokens", "tokens", tokens),
        "learned": Case("requests, learned", "requests", rate, configured=False),
        "keys": Case("requests, learned, two keys", "requests", rate, configured=False, keys=2),
    }
    rows = []
    for name in given.cases:
        case = cases[name]
        usual = 245 if case.kind == "tokens" else 1  # what one call counts
        rows.append(measure(case, round(case.ceiling * given.seconds / 60 / usual), given.latency_ms))
    columns = ["limit", "per minute", "requests", "counted", "ideal, s", "took, s", "used", "goal", "429s", "share of 429s", "goal"]
    print_table(f"Jobs under a provider's limits, provider {given.latency_ms:g} ms", columns, rows)


if __name__ == "__main__":
    main()

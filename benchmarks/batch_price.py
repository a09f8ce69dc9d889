"""What the provider bills for one job: asked at once, with half an hour (flex), and with a day (batches).

python benchmarks/batch_price.py [--groups 10] [--rows 20] [--batch-s 5] [--model gpt-5-mini]

Each group's rows share a system prompt of about 2,000 tokens and have about 300 of their own; answers have 200. The bill is
the provider's own; `relative` is to what the same tokens cost plainly: at once, and none of them cached.
"""

import argparse
import json
import random
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

from support import engine, print_table, say, simulated_provider

from inference_engine.connectors.models_toml import load_catalogue
from inference_engine.pipeline.prices import rates

WAYS = (("at once", ()), ("--deadline 30m", ("--deadline", "30m")), ("--deadline 24h", ("--deadline", "24h")))
WORDS = ("account", "card", "order", "payment", "balance", "limit", "transfer", "branch", "status", "refund", "delivery", "window")


def words(rng: random.Random, tokens: int) -> str:
    text = ""
    while len(text) < 4 * tokens:
        text += rng.choice(WORDS) + " "
    return text[: 4 * tokens]


def write_rows(path: Path, groups: int, rows: int, model: str) -> Path:
    """Shuffled, the same for every way."""
    rng = random.Random(5)
    lines = []
    for group in range(groups):
        shared = f"group {group} " + words(rng, 2_000)
        for row in range(rows):
            question = f"[[tokens:200]] question {group}.{row} " + words(rng, 290)
            messages = [{"role": "system", "content": shared}, {"role": "user", "content": question}]
            body = {"model": model, "messages": messages, "max_completion_tokens": 400}
            lines.append({"custom_id": f"{group}-{row}", "method": "POST", "url": "/v1/chat/completions", "body": body})
    rng.shuffle(lines)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--groups", type=int, default=10)
    parser.add_argument("--rows", type=int, default=20)
    parser.add_argument("--batch-s", type=float, default=5.0)
    parser.add_argument("--model", default="gpt-5-mini")
    given = parser.parse_args()
    quick: dict[str, Any] = {
        "PROVIDER_BATCH_GATHER_SECONDS": "2", "PROVIDER_BATCH_POLL_SECONDS": "0.5", "PROVIDER_BATCH_TURNAROUND_SECONDS": "3600",
        "BATCH_ENABLE_SEMANTIC_GROUPING": "false",
    }  # fmt: skip
    cells: list[list[str]] = []
    rate = rates(load_catalogue(None).get(given.model), "standard", datetime.now(UTC).date()).base
    with simulated_provider(50, batch_s=given.batch_s) as provider, engine(provider, semantic=False, **quick) as stack:
        prompts = write_rows(stack.home / "job.jsonl", given.groups, given.rows, given.model)
        for name, options in WAYS:
            say(name)
            provider.reset()
            ran = stack.run(prompts, "--no-cache", "--job", name.replace(" ", "-").strip("-"), *options)
            bill = provider.bill()
            plain = bill["input_tokens"] * rate.input + bill["output_tokens"] * rate.output
            told = Decimal(str(ran.report["cost_usd"]))
            agrees = "yes" if told == Decimal(bill["pico"]).scaleb(-12) else f"no: {told}"
            usd = f"${Decimal(bill['pico']).scaleb(-12):.6f}"
            read = f"{bill['cache_read_tokens'] / bill['input_tokens']:.0%}"
            cells.append([name, f"{bill['calls']:,}", read, usd, f"{bill['pico'] / plain:.3f}", agrees, f"{ran.seconds:.0f}"])
    columns = ["asked", "calls billed", "input read from cache", "the provider's bill", "relative", "our sum is equal", "s"]
    print_table(f"{given.groups} groups of {given.rows} rows, {given.model}, batches of {given.batch_s:g} s", columns, cells)


if __name__ == "__main__":
    main()

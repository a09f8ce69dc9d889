"""Prompt caching through the whole engine: `inference-engine run` with it and without, and the simulated provider's own bill.

    python benchmarks/prefix_run.py [--groups 50] [--rows 200] [--latency-ms 1000] [--rpm 600] [--models gpt-6-luna claude-sonnet-5-5]
                                    [--stream] [--responses]

Each row has a system prompt of 2,000 tokens that it shares with its group, and 300 of its own; the file is shuffled. The semantic cache
is off, so that every row is a call. `--stream`: answers are taken as streams; `--responses`: by OpenAI's responses API.
"""

import argparse
import json
import random
import tempfile
from pathlib import Path

from support import Engine, Provider, engine, print_table, say, simulated_provider

CHARACTERS_PER_TOKEN = 4


def write_rows(path: Path, model: str, groups: int, rows: int, session: str) -> Path:
    lines = []
    for g in range(groups):
        system = _filled(f"{session} group {g}: ", 2000)
        for r in range(rows):
            messages = [{"role": "system", "content": system}, {"role": "user", "content": _filled(f"row {g}/{r}: [[tokens:200]] ", 300)}]
            lines.append(
                json.dumps({"custom_id": f"{g}-{r}", "body": {"model": model, "messages": messages, "max_completion_tokens": 250}})
            )
    random.Random(1).shuffle(lines)
    path.write_text("\n".join(lines) + "\n")
    return path


def _filled(head: str, tokens: int) -> str:
    size = CHARACTERS_PER_TOKEN * tokens
    return (head + "the quick brown fox " * (size // 20 + 1))[:size]


def _entry(model: str, rpm: int | None, responses: bool) -> str:
    lines = [f"requests_per_minute = {rpm}"] if rpm else []
    lines += ['api = "responses"'] if responses and model.startswith("gpt-") else []
    return "\n".join([f'[models."{model}"]', *lines, ""]) if lines else ""


def one_run(stack: Engine, provider: Provider, model: str, groups: int, rows: int, session: str) -> tuple[str, ...]:
    provider.reset()
    ran = stack.run(write_rows(stack.home / f"{session}.jsonl", model, groups, rows, session))
    bill = provider.bill()
    say(f"asked: {bill['asked']}")
    ceiling = (rows - 1) * groups * (2000 + 4)
    saved = ran.report["saved_usd"]
    assert ran.report["answered"] == bill["calls"] == groups * rows
    assert abs(float(ran.report["cost_usd"]) - float(bill["usd"])) < 1e-9
    return (
        f"{bill['cache_read_tokens'] / ceiling:.1%}",
        f"{bill['cache_write_tokens'] / bill['input_tokens']:.1%}",
        f"${float(bill['usd']):.4f}",
        f"${float(saved['prefix']):.4f}",
        f"{ran.requests_per_s:.0f}/s",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--groups", type=int, default=50)
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("--latency-ms", type=float, default=1000)
    parser.add_argument("--rpm", type=int, help="requests per minute that the models allow")
    parser.add_argument("--models", nargs="+", default=["gpt-6-luna", "claude-sonnet-5-5"])
    parser.add_argument("--stream", action="store_true")
    parser.add_argument("--responses", action="store_true")
    given = parser.parse_args()
    lines = []
    with tempfile.TemporaryDirectory() as folder, simulated_provider(given.latency_ms) as provider:
        limits = Path(folder, "models.toml")
        limits.write_text("".join(_entry(m, given.rpm, given.responses) for m in given.models))
        for enabled in ("false", "true"):
            with engine(
                provider,
                semantic=False,
                CACHE_PREFIX_ENABLED=enabled,
                PROVIDER_STREAMING=str(given.stream).lower(),
                ANTHROPIC_API_KEY="x",
                ANTHROPIC_BASE_URL=provider.url,
                MODELS_FILE=str(limits),
            ) as stack:
                for model in given.models:
                    found = one_run(stack, provider, model, given.groups, given.rows, f"{model}-{enabled}")
                    lines.append((f"{given.groups} x {given.rows}, {model}", "on" if enabled == "true" else "off", *found))
                    say(" ".join(lines[-1]))
    lines.sort()
    columns = (
        "job, model",
        "CACHE_PREFIX_ENABLED",
        "of the ceiling",
        "written",
        "provider's bill",
        "booked as saved by prefix",
        "requests",
    )
    notes = ["The engine's own costs equal the provider's bill in every run; `written` is of all prompt tokens."]
    print_table("Prompt caching through the engine", columns, lines, notes)


if __name__ == "__main__":
    main()

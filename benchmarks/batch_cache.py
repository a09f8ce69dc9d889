"""What the simulated provider bills for one batch whose rows share prefixes, in the order and with the marks of the engine.

python benchmarks/batch_cache.py [--groups 10] [--rows 20] [--models gpt-6-luna gpt-5-mini] [--took 5 3600]

The rows are those of batch_price.py. The plan is the engine's, the cache rules are the simulated server's, the bill is the provider's own;
the clock is made up, so the load of the machine changes nothing. `relative` is to what the same tokens cost plainly: at once, and none of
them cached.
"""

import argparse
import asyncio
import json
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from batch_price import write_rows
from support import print_table

from inference_engine.connectors.models_toml import load_catalogue
from inference_engine.connectors.providers.openai_batches import OpenAIBatches
from inference_engine.connectors.simulated_batches import BatchOptions, SimulatedBatches
from inference_engine.connectors.simulated_bill import Bill
from inference_engine.connectors.simulated_cache import SimulatedCache
from inference_engine.connectors.simulation import Faults
from inference_engine.pipeline.models import Model
from inference_engine.pipeline.prefix import marked, path_of, terms_of
from inference_engine.pipeline.prices import rates
from inference_engine.pipeline.provider_batch import prefix_plan

EXPECTED_S = 3600.0


def rows_of(model: Model, groups: int, rows: int, *, planned: bool) -> list[tuple[str, Any]]:
    with TemporaryDirectory() as folder:
        path = write_rows(Path(folder) / "rows.jsonl", groups, rows, model.name)
        bodies = [json.loads(line)["body"] for line in path.read_text("utf-8").splitlines()]
    terms = terms_of(model, rates(model, "batch", datetime.now(UTC).date()).base)
    if planned and terms is not None:
        order, marks = prefix_plan(terms, [path_of("local", body) for body in bodies], EXPECTED_S)
        bodies = [marked(bodies[i], marks[i]) for i in order]
    provider = OpenAIBatches(None)
    lines = [json.loads(provider.line(model, f"row-{place}", body)) for place, body in enumerate(bodies)]
    return [(line["custom_id"], line["body"]) for line in lines]


async def billed(rows: list[tuple[str, Any]], took_s: float) -> Bill:
    clock, bill = [0.0], Bill()
    store = SimulatedBatches(bill, Faults(0), BatchOptions(took_s), lambda: clock[0], cache=SimulatedCache())
    batch = store.create("openai", rows, {})
    clock[0] = took_s
    await store.advance(batch)
    return bill


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--groups", type=int, default=10)
    parser.add_argument("--rows", type=int, default=20)
    parser.add_argument("--models", nargs="+", default=["gpt-6-luna", "gpt-5-mini"])
    parser.add_argument("--took", nargs="+", type=float, default=[5.0, 3600.0], help="seconds that the batch takes")
    given = parser.parse_args()
    cells = []
    for name in given.models:
        model = load_catalogue(None).get(name)
        rate = rates(model, "standard", datetime.now(UTC).date()).base
        for planned in (False, True):
            rows = rows_of(model, given.groups, given.rows, planned=planned)
            for took_s in given.took:
                bill = asyncio.run(billed(rows, took_s))
                plain = bill.input_tokens * rate.input + bill.output_tokens * rate.output
                way = "sorted and marked" if planned else "as it came"
                read = f"{bill.cache_read_tokens / bill.input_tokens:.1%}"
                cells.append([name, way, f"{took_s:g}", f"{bill.calls:,}", read, f"{bill.pico / plain:.3f}"])
    columns = ["model", "file", "the batch took, s", "rows billed", "input read from cache", "relative"]
    print_table(f"{given.groups} groups of {given.rows} rows", columns, cells)


if __name__ == "__main__":
    main()

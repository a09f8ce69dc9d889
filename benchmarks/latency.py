"""What the pipeline adds to a request at low load: from the requests topic to the responses topic, the provider's time taken off.

python benchmarks/latency.py [--count 100] [--rate 5] [--latency-ms 100] [--cases off on]

Produced and consumed with aiokafka. For each lane `--count` requests that no cache knows, then the same prompts again.
"""

import argparse
import asyncio
import json
import time
from collections.abc import Sequence
from contextlib import suppress

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from support import MODEL, engine, percentile, print_table, say, simulated_provider
from workload import body, endless

LANES = ("express", "standard")
TIMEOUT_S = 60.0


class Asker:
    """Sends requests at a steady rate and notes when each response came."""

    def __init__(self, producer: AIOKafkaProducer, consumer: AIOKafkaConsumer) -> None:
        self._producer = producer
        self._consumer = consumer
        self._sent: dict[str, float] = {}
        self._took: dict[str, float] = {}
        self._tiers: dict[str, str] = {}
        self._all = asyncio.Event()

    async def listen(self) -> None:
        async for record in self._consumer:
            now = time.perf_counter()
            response = json.loads(record.value)
            custom_id = response["custom_id"]
            if custom_id in self._sent and custom_id not in self._took:
                self._took[custom_id] = now - self._sent[custom_id]
                self._tiers[custom_id] = response["engine"]["cache"]["tier"] if response["error"] is None else response["error"]["code"]
                if len(self._took) == len(self._sent):
                    self._all.set()

    async def ask(self, name: str, texts: Sequence[str], lane: str, session: str, rate: float) -> tuple[list[float], list[str]]:
        """(seconds, cache tiers) of the answers, in the order of asking. Raises `TimeoutError`."""
        self._sent.clear()
        self._took.clear()
        began = time.perf_counter()
        for number, text in enumerate(texts):
            await asyncio.sleep(max(0.0, began + number / rate - time.perf_counter()))
            custom_id = f"{name}-{number}"
            line = {
                "custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions",
                "body": body(text, MODEL, session), "engine": {"job": name, "priority": lane},
            }  # fmt: skip
            self._all.clear()
            self._sent[custom_id] = time.perf_counter()
            await self._producer.send("requests", json.dumps(line).encode(), key=custom_id.encode())
        async with asyncio.timeout(TIMEOUT_S):
            await self._all.wait()
        ids = list(self._sent)
        return [self._took[i] for i in ids], [self._tiers[i] for i in ids]


def row(semantic: str, lane: str, kind: str, seconds: Sequence[float], tiers: Sequence[str], provider_s: float) -> list[str]:
    """Only answers of the wanted kind count: a miss that similarity answered is none."""
    wanted = "exact" if kind == "exact hit" else "none"
    added = [1000 * (s - (provider_s if kind == "miss" else 0)) for s, tier in zip(seconds, tiers, strict=True) if tier == wanted]
    cells = [f"{percentile(added, p):.0f}" for p in (50, 95, 100)] if added else ["-"] * 3
    return [semantic, lane, kind, str(len(added)), *cells]


async def measure(brokers: str, semantic: str, count: int, rate: float, provider_s: float) -> list[list[str]]:
    """The rows of one stack."""
    producer = AIOKafkaProducer(bootstrap_servers=brokers, acks="all")
    consumer = AIOKafkaConsumer("responses", bootstrap_servers=brokers, auto_offset_reset="latest")
    await producer.start()
    await consumer.start()
    await consumer.seek_to_end()
    asker = Asker(producer, consumer)
    listening = asyncio.create_task(asker.listen())
    rows: list[list[str]] = []
    try:
        await asker.ask("warm-up", endless(20), "standard", "warm-up", rate)
        for lane in LANES:
            for kind in ("miss", "exact hit"):
                say(f"semantic {semantic}, {lane}, {kind}: {count / rate:.0f} s")
                took, tiers = await asker.ask(f"{lane}-{kind.split()[0]}", endless(count), lane, f"latency-{lane}", rate)
                rows.append(row(semantic, lane, kind, took, tiers, provider_s))
    finally:
        listening.cancel()
        with suppress(asyncio.CancelledError):
            await listening
        await producer.stop()
        await consumer.stop()
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--rate", type=float, default=5, help="requests per second")
    parser.add_argument("--latency-ms", type=float, default=100)
    parser.add_argument("--cases", nargs="+", choices=["off", "on"], default=["off", "on"], help="the semantic cache")
    given = parser.parse_args()
    rows: list[list[str]] = []
    with simulated_provider(given.latency_ms) as provider:
        for case in given.cases:
            with engine(provider, semantic=case == "on") as stack:
                brokers = stack.up()
                rows += asyncio.run(measure(brokers, case, given.count, given.rate, given.latency_ms / 1000))
    columns = ["semantic", "lane", "kind", "answers", "added p50, ms", "p95", "most"]
    print_table(f"Added latency at {given.rate:g} requests/s, provider {given.latency_ms:g} ms", columns, rows)


if __name__ == "__main__":
    main()

"""Express and standard while a large batch job runs: their latency beside that of the idle pipeline.

python benchmarks/lanes.py [--rows 10000] [--rate 5] [--count 100] [--latency-ms 100] [--repeat 1] [--semantic off]

The batch job is one `run --priority batch`; the requests of the other lanes are written to and read from the topics with aiokafka, all
unknown to the caches, express and standard in turns. Latency is from the producer to the response, the provider's own time included, and
answers that came after the batch job had ended don't count.
"""

import argparse
import asyncio
import json
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from support import MODEL, Engine, engine, percentile, print_table, say, simulated_provider
from workload import body, endless, write_requests

LANES = ("express", "standard")
GOALS_MS = {"express": 50, "standard": 200}
TIMEOUT_S = 120.0


@dataclass
class Probe:
    """Asks both lanes at a steady rate, and notes how long each answer took."""

    producer: AIOKafkaProducer
    consumer: AIOKafkaConsumer
    sent: dict[str, float] = field(default_factory=dict)
    took: dict[str, float] = field(default_factory=dict)
    failed: int = 0
    _missing: set[str] = field(default_factory=set)
    _came: asyncio.Event = field(default_factory=asyncio.Event)

    async def listen(self) -> None:
        async for record in self.consumer:
            now = time.perf_counter()
            if b'"probe-' not in record.value:
                continue  # the batch job's
            response = json.loads(record.value)
            began = self.sent.get(response["custom_id"])
            if began is not None and response["custom_id"] not in self.took:
                self.took[response["custom_id"]] = now - began
                self.failed += response["error"] is not None
                self._missing.discard(response["custom_id"])
                self._came.set()

    async def ask(self, phase: str, count: int, rate: float, goes_on: Callable[[], bool]) -> dict[str, list[float]]:
        """Up to `count` requests per lane while `goes_on`; ms by lane of those answered."""
        texts, began = endless(2 * count), time.perf_counter()
        asked: list[str] = []
        for number in range(2 * count):
            await asyncio.sleep(max(0.0, began + number / (2 * rate) - time.perf_counter()))
            if not goes_on():
                break
            lane = LANES[number % 2]
            custom_id = f"probe-{phase}-{lane}-{number}"
            line = {
                "custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions",
                "body": body(texts[number], MODEL, f"{phase}-{lane}"), "engine": {"job": phase, "priority": lane},
            }  # fmt: skip
            asked.append(custom_id)
            self.sent[custom_id] = time.perf_counter()
            await self.producer.send("requests", json.dumps(line).encode(), key=custom_id.encode())
        async with asyncio.timeout(TIMEOUT_S):
            self._missing = {i for i in asked if i not in self.took}
            while self._missing:
                self._came.clear()
                await self._came.wait()
        return {lane: [1000 * self.took[i] for i in asked if f"-{lane}-" in i] for lane in LANES}


async def measure(stack: Engine, brokers: str, rows: int, count: int, rate: float, repeat: int) -> tuple[list[list[str]], list[str]]:
    """The table's rows, and what is to be said about the batch jobs."""
    producer = AIOKafkaProducer(bootstrap_servers=brokers, acks="all")
    consumer = AIOKafkaConsumer("responses", bootstrap_servers=brokers, auto_offset_reset="latest", fetch_max_wait_ms=10)
    await producer.start()
    await consumer.start()
    await consumer.seek_to_end()
    probe = Probe(producer, consumer)
    listening = asyncio.create_task(probe.listen())
    table: list[list[str]] = []
    notes: list[str] = []
    try:
        await probe.ask("warm-up", 20, rate, lambda: True)
        for turn in range(repeat):
            say(f"idle: {count / rate:.0f} s")
            idle = await probe.ask(f"idle-{turn}", count, rate, lambda: True)
            say(f"a batch job of {rows:,} rows")
            job = write_requests(stack.home / f"job-{turn}.jsonl", endless(rows), MODEL, f"job-{turn}")
            process, report = stack.start_run(job, "--priority", "batch")
            await asyncio.sleep(2.0)  # Python's start
            busy = await probe.ask(f"busy-{turn}", 1_000_000, rate, partial(still_runs, process))
            if process.wait():
                raise RuntimeError("the batch job failed")
            told = json.loads(report.read_text())
            notes.append(
                f"The batch job: {told['answered']:,} answered in {told['seconds']:.1f} s, {told['answered'] / told['seconds']:.0f}/s."
            )
            table += [row(lane, idle[lane], busy[lane]) for lane in LANES]
    finally:
        listening.cancel()
        await asyncio.gather(listening, return_exceptions=True)
        await producer.stop()
        await consumer.stop()
    if probe.failed:
        raise RuntimeError(f"{probe.failed} requests were answered with an error")
    return table, notes


def still_runs(process: "subprocess.Popen[bytes]") -> bool:
    return process.poll() is None


def row(lane: str, idle: list[float], busy: list[float]) -> list[str]:
    more = percentile(busy, 95) - percentile(idle, 95)
    cells = [f"{percentile(values, p):.0f}" for values in (idle, busy) for p in (50, 95)]
    verdict = "reached" if more <= GOALS_MS[lane] else "missed"
    return [lane, str(len(idle)), str(len(busy)), *cells, f"{more:+.0f}", f"{GOALS_MS[lane]} {verdict}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--rate", type=float, default=5, help="requests per second and lane")
    parser.add_argument("--count", type=int, default=100, help="requests per lane on the idle pipeline")
    parser.add_argument("--latency-ms", type=float, default=100)
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument("--semantic", choices=["on", "off"], default="off")
    given = parser.parse_args()
    with simulated_provider(given.latency_ms) as provider, engine(provider, semantic=given.semantic == "on") as stack:
        brokers = stack.up()
        table, notes = asyncio.run(measure(stack, brokers, given.rows, given.count, given.rate, given.repeat))
    columns = ["lane", "idle", "beside the job", "idle p50, ms", "p95", "beside p50, ms", "p95", "more at p95", "goal, ms"]
    title = f"Lanes beside a batch job of {given.rows:,} rows, provider {given.latency_ms:g} ms, semantic {given.semantic}"
    print_table(title, columns, table, notes)


if __name__ == "__main__":
    main()

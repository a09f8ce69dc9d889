"""CPU per request: by process, by stage within the worker, and of one hop through a topic.

python benchmarks/cpu_by_stage.py [--requests 4000] [--latency-ms 50] [--semantic]

All requests are unique. The worker's stages come from a sampler within it (see sampled_worker.py), which costs a few percent.
"""

import argparse
import asyncio
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil
from confluent_kafka.admin import AdminClient, NewTopic  # type: ignore[attr-defined]
from support import MODEL, Engine, cpu_seconds, engine, print_table, say, simulated_provider
from workload import body, endless, write_requests

from inference_engine.agents.safe import DeadLetter, Delivered, SafeApp, consume, create_app, run_app
from inference_engine.agents.settings import load_settings
from inference_engine.cli.engine import Engine as Connection
from inference_engine.cli.stack import ensure
from inference_engine.connectors.kafka_bulk import BulkProducer
from inference_engine.connectors.kafka_embedded import EmbeddedKafka
from inference_engine.connectors.models_toml import load_catalogue
from inference_engine.pipeline.ingest import Door, admit
from inference_engine.schemas.packets import lookups
from inference_engine.schemas.requests import Lookup

SAMPLES_SETTING = "BENCHMARK_SAMPLES"


@dataclass(frozen=True, slots=True)
class Sampled:
    """What the worker's sampler has seen so far, in CPU seconds."""

    by_stage: Mapping[str, float]
    main_s: float
    process_s: float


def start_sampled(stack: Engine) -> psutil.Process:
    """Starts broker and sink as ever, and the worker under its sampler; the worker."""
    os.environ.clear()
    os.environ.update(stack.environ)
    command = (sys.executable, str(Path(__file__).with_name("sampled_worker.py")))
    options = replace(Connection(load_settings()).stack_options, command=command)
    found = ensure(options)
    return psutil.Process(found.workers[0].pid)


def sampled(worker: psutil.Process, file: Path, timeout_s: float = 20.0) -> Sampled:
    """Asks the worker for its totals. Raises `TimeoutError`."""
    file.unlink(missing_ok=True)
    worker.send_signal(signal.SIGUSR1)
    until = time.monotonic() + timeout_s
    while not file.exists():
        if time.monotonic() > until:
            raise TimeoutError("the sampled worker did not write its totals")
        time.sleep(0.05)
    data = json.loads(file.read_text())
    return Sampled(data["main"], data["main_s"], data["process_s"])


def measure(count: int, latency_ms: float, semantic: bool) -> tuple[list[list[str]], str]:
    """Rows of (what, CPU ms per request, share), and a note."""
    with simulated_provider(latency_ms) as provider, engine(provider, semantic=semantic, start=False) as stack:
        samples = stack.home / "samples.json"
        stack.environ[SAMPLES_SETTING] = str(samples)
        worker = start_sampled(stack)
        stack.run(write_requests(stack.home / "warm-up.jsonl", endless(max(50, count // 10)), MODEL, "warm-up"), "--no-start")
        processes = {**stack.processes(), "provider (not ours)": provider.process}
        before, first = cpu_seconds(processes), sampled(worker, samples)
        ran = stack.run(write_requests(stack.home / "job.jsonl", endless(count), MODEL, "job"), "--no-start")
        last, after = sampled(worker, samples), cpu_seconds(processes)
    spent = {name: after[name] - before[name] for name in after} | {"run (with Python's start)": ran.cpu_s}
    stages = {name: last.by_stage[name] - first.by_stage.get(name, 0.0) for name in last.by_stage}
    others = (last.process_s - last.main_s) - (first.process_s - first.main_s)
    stages["other threads (embedder, vector index; transactions, RocksDB)"] = others
    whole = last.process_s - first.process_s
    rows = [[name, f"{1000 * s / count:.3f}", ""] for name, s in sorted(spent.items(), key=lambda item: -item[1])]
    rows += [
        ["worker: " + name, f"{1000 * s / count:.3f}", f"{100 * s / whole:.0f} %"]
        for name, s in sorted(stages.items(), key=lambda i: -i[1])
    ]
    return rows, f"{count:,} unique requests at {ran.requests_per_s:.0f} requests/s."


# --- one hop ---------------------------------------------------------------------------------------------------------


def lookup_of(text: str) -> Lookup:
    door = Door(load_catalogue(), 3600)
    line = {"custom_id": "hop", "body": body(text, MODEL, "hop")}
    return Lookup(request=admit(json.dumps(line).encode(), "local", 0, door))


class Hop:
    """An agent that reads packets from one topic and writes them to the next, as the stages do: decoded, encoded, awaited."""

    def __init__(self, expected: int) -> None:
        self._expected = expected
        self._seen = 0
        self._began = (0.0, 0.0)
        self.cpu_s = 0.0
        self.seconds = 0.0
        self.done = asyncio.Event()

    def bind(self, app: SafeApp, source: str, target: str) -> None:
        async def handle(event: Delivered) -> None:
            if not self._began[0]:
                self._began = (time.process_time(), time.perf_counter())
            members = lookups.decode(event.value or b"")
            await app.append(target, None, lookups.encode(members), partition=event.partition)
            self._seen += 1
            if self._seen == self._expected:
                self.cpu_s, self.seconds = time.process_time() - self._began[0], time.perf_counter() - self._began[1]
                self.done.set()

        async def dead(event: Delivered, error: DeadLetter) -> None:
            raise AssertionError(f"{event.topic}@{event.offset}: {error}")

        async def agent(stream: Any) -> None:
            await consume(app, stream, handle, limit=64, name=source, on_dead=dead)

        app.agent(app.topic(source), name=source)(agent)


async def hop(brokers: str, folder: Path, members: int, packets: int) -> tuple[float, float]:
    """(CPU seconds, seconds) of this process for so many packets of `members` each."""
    source, target = f"hop-{members}-in", f"hop-{members}-out"
    admin = AdminClient({"bootstrap.servers": brokers})
    for created in admin.create_topics([NewTopic(name, 4, 1) for name in (source, target)]).values():
        created.result()
    packet = lookups.encode([lookup_of(text) for text in endless(members)])
    producer = BulkProducer(brokers)
    for number in range(packets):
        producer.produce(source, b"%d" % number, packet)
    producer.flush(30)
    producer.close()
    app = create_app(f"hop-{members}", [brokers], folder / str(members), store="memory")
    mine = Hop(packets)
    mine.bind(app, source, target)
    stop = asyncio.Event()
    running = asyncio.create_task(run_app(app, stop=stop))
    try:
        async with asyncio.timeout(120):
            await mine.done.wait()
    finally:
        stop.set()
        await running
    return mine.cpu_s, mine.seconds


def hops(counts: Mapping[int, int]) -> list[list[str]]:
    """Members of a packet -> how many packets."""
    import uvloop

    rows: list[list[str]] = []
    with tempfile.TemporaryDirectory(prefix="inference-engine-hop-") as name:
        folder = Path(name).resolve()
        kafka = EmbeddedKafka()
        brokers = kafka.start(folder / "kafka").bootstrap
        try:
            for members, packets in counts.items():
                cpu_s, seconds = uvloop.run(hop(brokers, folder, members, packets))
                each = 1000 * cpu_s / packets
                rows.append([f"a packet of {members}", f"{each:.3f}", f"{each / members:.4f}", f"{packets / seconds:.0f}"])
        finally:
            kafka.stop(folder / "kafka")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=4000)
    parser.add_argument("--latency-ms", type=float, default=50)
    parser.add_argument("--semantic", action="store_true")
    given = parser.parse_args()
    say("one hop")
    hop_rows = hops({1: 5000, 100: 500})
    say(f"{given.requests:,} requests")
    rows, note = measure(given.requests, given.latency_ms, given.semantic)
    title = f"CPU per request, semantic {'on' if given.semantic else 'off'}, provider {given.latency_ms:g} ms"
    print_table(title, ["where", "CPU ms per request", "of the worker"], rows, [note])
    print_table("One hop through a topic", ["what", "CPU ms per packet", "CPU ms per member", "packets/s"], hop_rows)


if __name__ == "__main__":
    main()

"""What safety costs: the same small pipeline on plain Faust and on `agents/safe`, side by side on one real Kafka.

python benchmarks/safety_cost.py [--records 20000] [--rounds 3] [--bytes 500]

    in -> first: reads JSON, sends on by key -> middle -> second: a table row by key, and a record -> out

Plain is Faust as its guide shows it: sends are queued, rows ride a buffer. Awaited is plain Faust that waits for the broker's word
for every record. Safe is this engine's way: a record is acknowledged when its writes are durable. All records lie on `in` before the
worker starts; the rate is that of `out`, from its first record to its last, by the broker's clock.
"""

import argparse
import asyncio
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import faust
import psutil
from confluent_kafka import Consumer, Producer, TopicPartition
from support import print_table, say, spread

from inference_engine.agents.safe import DeadLetter, Delivered, consume, create_app, run_app
from inference_engine.connectors.kafka_admin import create_topics
from inference_engine.connectors.kafka_embedded import EmbeddedKafka
from inference_engine.schemas.topics import TopicSpec

PARTITIONS = 4
MODES = ("plain", "awaited", "safe")
WAIT_S = 300.0


# --- the workers -----------------------------------------------------------------------------------------------------


def key_of(value: bytes) -> bytes:
    return str(json.loads(value)["key"]).encode()


def plain(brokers: str, prefix: str, folder: Path, *, awaited: bool) -> None:
    app = faust.App(
        f"{prefix}app", broker=f"kafka://{brokers}", datadir=folder, store="memory://", key_serializer="raw", value_serializer="raw",
        web_enabled=False, topic_disable_leader=True, topic_allow_declare=False, topic_partitions=PARTITIONS,
    )  # fmt: skip
    source, middle, out = (app.topic(f"{prefix}{name}", value_type=bytes, key_type=bytes) for name in ("in", "middle", "out"))
    table = app.Table("rows", partitions=PARTITIONS, key_type=bytes, value_type=bytes)

    async def send(topic: Any, key: bytes, value: bytes) -> None:
        sent = await topic.send(key=key, value=value)
        if awaited:
            await sent

    async def first(stream: Any) -> None:
        async for value in stream:
            await send(middle, key_of(value), value)

    async def second(stream: Any) -> None:
        async for key, value in stream.items():
            table[key] = value
            await send(out, key, value)

    app.agent(source, name="first")(first)
    app.agent(middle, name="second")(second)
    faust.Worker(app, loglevel="WARNING").execute_from_commandline()


async def safe(brokers: str, prefix: str, folder: Path) -> None:
    app = create_app(f"{prefix}app", [brokers], folder, topic_prefix="", store="memory")
    table = app.safe_table("rows", partitions=PARTITIONS)

    async def first(event: Delivered) -> None:
        value = event.value or b""
        await app.append(f"{prefix}middle", key_of(value), value)

    async def second(event: Delivered) -> None:
        key, value = event.key or b"", event.value or b""
        await table.write(event.partition, {key: value})
        await app.append(f"{prefix}out", key, value)

    async def never(event: Delivered, dead: DeadLetter) -> None:
        raise AssertionError(dead)

    for name, topic, handle in (("first", "in", first), ("second", "middle", second)):

        async def body(stream: Any, name: str = name, handle: Any = handle) -> None:
            await consume(app, stream, handle, limit=1024, name=name, on_dead=never)

        app.agent(app.topic(f"{prefix}{topic}"), name=name)(body)
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await run_app(app, stop=stop)


# --- the measurement -------------------------------------------------------------------------------------------------


def prepare(brokers: str, prefix: str, records: int, size: int) -> None:
    specs = [TopicSpec(f"{prefix}{name}", PARTITIONS) for name in ("in", "middle", "out")]
    specs.append(TopicSpec(f"{prefix}app-rows-changelog", PARTITIONS, (("cleanup.policy", "compact"),)))
    create_topics(brokers, specs, replication_factor=1)
    producer = Producer({"bootstrap.servers": brokers, "linger.ms": 20, "queue.buffering.max.messages": records + 1})
    for number in range(records):
        value = json.dumps({"key": f"k{number}", "text": "x" * size}).encode()
        producer.produce(f"{prefix}in", value, partition=number % PARTITIONS)
    if producer.flush(60):
        raise RuntimeError("the records could not be produced in a minute")


def out_rate(brokers: str, topic: str, records: int, worker: "subprocess.Popen[bytes]") -> tuple[float, int]:
    """(records a second, distinct ids) of the topic, once all are there."""
    consumer = Consumer({"bootstrap.servers": brokers, "group.id": f"{topic}-reader", "enable.auto.commit": False})
    consumer.assign([TopicPartition(topic, number, 0) for number in range(PARTITIONS)])
    stamps: list[int] = []
    seen: set[bytes] = set()
    until = time.monotonic() + WAIT_S
    try:
        while len(seen) < records:
            if time.monotonic() > until or worker.poll() is not None:
                raise RuntimeError(f"{len(seen)} of {records} records came through; the worker's log tells why")
            for message in consumer.consume(500, timeout=1.0):
                value = message.value()
                if message.error() is None and value is not None:
                    stamps.append(message.timestamp()[1])
                    seen.add(key_of(value))
    finally:
        consumer.close()
    return (len(stamps) - 1) / max((max(stamps) - min(stamps)) / 1000, 1e-3), len(seen)


def measure(brokers: str, mode: str, number: int, given: argparse.Namespace, folder: Path) -> tuple[float, float]:
    """(records a second, CPU of the worker in microseconds a record)."""
    prefix = f"b{number}-{mode}-"
    prepare(brokers, prefix, given.records, given.bytes)
    command = [sys.executable, __file__, "--worker", mode, brokers, prefix, str(folder / prefix)]
    with (folder / f"{prefix}.log").open("wb") as log:
        worker = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder)
    try:
        rate, _ = out_rate(brokers, f"{prefix}out", given.records, worker)
        times = psutil.Process(worker.pid).cpu_times()
    finally:
        worker.kill()
        worker.wait()
    return rate, (times.user + times.system) / given.records * 1e6


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description="Plain Faust beside agents/safe.")
    parser.add_argument("--records", type=int, default=20_000)
    parser.add_argument("--bytes", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args(arguments)
    found: dict[str, list[tuple[float, float]]] = {mode: [] for mode in MODES}
    kafka = EmbeddedKafka()
    with tempfile.TemporaryDirectory(prefix="inference-engine-benchmark-") as made:
        folder = Path(made)
        try:
            brokers = kafka.start(folder / "kafka").bootstrap
            for number in range(given.rounds):
                for mode in MODES if number % 2 == 0 else MODES[::-1]:
                    found[mode].append(measure(brokers, mode, number, given, folder))
                    say(f"{mode}: {found[mode][-1][0]:.0f} records/s")
        finally:
            kafka.stop(folder / "kafka", timeout_s=20)
    base = median(rate for rate, _ in found["plain"])
    rows = [
        [mode, spread([r for r, _ in runs], ".0f"), spread([c for _, c in runs], ".0f"), f"{median(r for r, _ in runs) / base:.2f}x"]
        for mode, runs in found.items()
    ]
    title = f"{given.records} records of {given.bytes} bytes, {PARTITIONS} partitions, one worker, {given.rounds} rounds in turns"
    print_table(title, ["pattern", "records/s", "CPU of the worker, us a record, its start included", "of plain"], rows)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        mode, brokers, prefix, folder = sys.argv[2:]
        sys.argv = sys.argv[:1]
        if mode == "safe":
            asyncio.run(safe(brokers, prefix, Path(folder)))
        else:
            plain(brokers, prefix, Path(folder), awaited=mode == "awaited")
    else:
        main(sys.argv[1:])

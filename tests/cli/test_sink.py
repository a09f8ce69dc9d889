"""The sink as a process of its own: killed and started again, stopped by a signal, and asked by the other commands."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path

import pytest
import typer
from confluent_kafka import Consumer, Producer, TopicPartition
from typer.testing import CliRunner

from inference_engine.cli.report import report_command
from inference_engine.cli.sql import sql_command
from inference_engine.connectors.clickhouse import open_embedded
from inference_engine.connectors.kafka_admin import create_topics
from inference_engine.connectors.sink_http import SinkClient
from inference_engine.connectors.state_file import read_state
from inference_engine.schemas import packets
from inference_engine.schemas.costs import CostEvent
from inference_engine.schemas.topics import Topics, TopicSpec

PROGRAM = "import typer; from inference_engine.cli.sink import sink_command; typer.run(sink_command)"


@contextmanager
def sink_process(environment: Mapping[str, str], home: Path) -> Iterator[tuple[subprocess.Popen[bytes], SinkClient]]:
    """A sink that is ready; killed at the end where it still lives."""
    log = home / "sink.log"
    with log.open("ab") as out:
        process = subprocess.Popen([sys.executable, "-c", PROGRAM], env={**os.environ, **environment}, stdout=out, stderr=out, cwd=home)
    try:
        deadline = time.monotonic() + 90
        while (state := read_state(home / "sink.json")) is None or state.pid != process.pid:
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
        yield process, SinkClient(f"http://127.0.0.1:{state.port}")
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def topics(kafka: str, topic_prefix: str) -> Topics:
    made = Topics(topic_prefix)
    create_topics(kafka, [TopicSpec(made.costs, 2), TopicSpec(made.dead_letters, 1)])
    return made


@pytest.fixture
def environment(kafka: str, topic_prefix: str, tmp_path: Path) -> dict[str, str]:
    return {"KAFKA_BROKERS": kafka, "KAFKA_TOPIC_PREFIX": topic_prefix, "INFERENCE_ENGINE_HOME": str(tmp_path), "CLICKHOUSE_URL": ""}


def produce(kafka: str, topic: str, numbers: range) -> dict[int, int]:
    """One event a packet, its number its cost; returns the end offsets."""
    producer = Producer({"bootstrap.servers": kafka})
    for number in numbers:
        row = CostEvent(
            event_id=str(number), kind="answer", timestamp_ms=1_763_000_000_000, request_id="r", tenant_id="t", job="j",
            base_cost_pico=number,
        )  # fmt: skip
        producer.produce(topic, packets.costs.encode([row]), partition=number % 2)
    assert producer.flush(30) == 0
    consumer = Consumer({"bootstrap.servers": kafka, "group.id": "ends"})
    ends = {partition: consumer.get_watermark_offsets(TopicPartition(topic, partition), timeout=10)[1] for partition in range(2)}
    consumer.close()
    return ends


def ask(environment: Mapping[str, str], *arguments: str) -> str:
    app = typer.Typer()
    app.command("sql")(sql_command)
    app.command("report")(report_command)
    result = CliRunner().invoke(app, list(arguments), env=dict(environment))
    assert result.exit_code == 0, result.output
    return result.stdout


TOTAL = "SELECT count(), sum(base_cost) FROM cost_events"


def total(numbers: range) -> str:
    return f"count()\tsum(base_cost)\n{len(numbers)}\t{Decimal(sum(numbers)).scaleb(-12):f}\n"


def test_a_killed_sink_loses_no_cost_and_counts_none_twice(kafka: str, topics: Topics, environment: dict[str, str], tmp_path: Path) -> None:
    """kill -9 while costs arrive; the next one opens the same folder and goes on."""
    produce(kafka, topics.costs, range(2_000))
    with sink_process(environment, tmp_path) as (process, sink):
        while sink.query(TOTAL)[1][0][0] == 0:
            time.sleep(0.01)
        produce(kafka, topics.costs, range(2_000, 4_000))
        process.kill()
    ends = produce(kafka, topics.costs, range(4_000, 5_000))
    with sink_process(environment, tmp_path) as (process, sink):
        assert sink.wait_until_caught_up(ends, timeout=60)
        assert ask(environment, "sql", TOTAL) == total(range(5_000))  # asked through the sink, which owns the folder
        assert "5,000" in ask(environment, "report")
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
        assert read_state(tmp_path / "sink.json") is None
    assert ask(environment, "sql", TOTAL) == total(range(5_000))  # nothing runs: the folder itself


def test_a_second_sink_on_one_folder_is_refused_with_the_reason(environment: dict[str, str], topics: Topics, tmp_path: Path) -> None:
    owner = open_embedded(tmp_path / "costs")
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env={**os.environ, **environment}, cwd=tmp_path,
        capture_output=True, text=True, timeout=90, check=False,
    )  # fmt: skip
    owner.close()
    assert done.returncode == 1
    assert "another process owns it" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_sink_without_a_broker_says_what_to_do(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env={**os.environ, "KAFKA_BROKERS": "", "INFERENCE_ENGINE_HOME": str(tmp_path)}, cwd=tmp_path,
        capture_output=True, text=True, timeout=90, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "inference-engine up" in done.stderr

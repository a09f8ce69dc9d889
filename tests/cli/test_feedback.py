"""`feedback`, `export-router` and `import-router` against a real Kafka: what is said arrives once, and a router travels whole."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import orjson
import pytest
import typer
from typer.testing import CliRunner

from inference_engine.cli.feedback import export_command, feedback_command, import_command, import_router, newest_router, send_feedback
from inference_engine.connectors.kafka_admin import create_topics, topic_specs
from inference_engine.connectors.kafka_bulk import BulkConsumer, BulkProducer
from inference_engine.connectors.taught_file import pack_router, unpack_router
from inference_engine.pipeline.errors import ConfigError, Unavailable
from inference_engine.pipeline.taught_router import TaughtRouter, teach
from inference_engine.schemas.topics import Topics

from ..pipeline.feedback_support import lessons


@pytest.fixture(scope="module")
def learned() -> TaughtRouter:
    return teach(lessons(200), np.random.default_rng(0), version=7, since_ms=5)


@pytest.fixture
def topics(kafka: str, topic_prefix: str) -> Topics:
    made = Topics(topic_prefix)
    create_topics(kafka, [spec for spec in topic_specs(made, 2) if spec.name in (made.feedback, made.routers)])
    return made


@pytest.fixture
def surroundings(kafka: str, topics: Topics, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KAFKA_BROKERS", kafka)
    monkeypatch.setenv("KAFKA_TOPIC_PREFIX", topics.prefix)
    monkeypatch.setenv("INFERENCE_ENGINE_HOME", str(tmp_path))
    return tmp_path


def app(command: object) -> typer.Typer:
    made = typer.Typer()
    made.command()(command)  # type: ignore[type-var]
    return made


def records(kafka: str, topic: str) -> list[tuple[bytes | None, bytes | None]]:
    consumer = BulkConsumer(kafka, topic)
    consumer.assign()
    ends, found = consumer.end_offsets(), []
    while not consumer.caught_up(ends):
        found += consumer.poll_batch(100, 0.2)
    consumer.close()
    return found


def test_scores_are_written_with_their_job_and_lines_that_are_none_are_named(kafka: str, topics: Topics) -> None:
    lines = [
        b'{"custom_id": "a", "score": 1}',
        b"",
        b'{"custom_id": "b", "job": "own", "score": 0.25}',
        b'{"custom_id": "c", "score": 7}',
        b"x",
    ]
    sent, bad = send_feedback(lines, "acme", "nightly", kafka, topics)
    assert (sent, [number for number, _ in bad]) == (2, [4, 5])
    assert all("not feedback" in why for _, why in bad)
    said = [orjson.loads(value or b"") for _, value in records(kafka, topics.feedback)]
    assert sorted((s["custom_id"], s["job"], s["score"]) for s in said) == [("a", "nightly", 1), ("b", "own", 0.25)]


def test_without_the_topic_nothing_is_said_to_be_sent(kafka: str, topics: Topics) -> None:
    with pytest.raises((ConfigError, Unavailable)):
        send_feedback([b'{"custom_id": "a", "score": 1}'], "acme", "j", kafka, Topics(topics.prefix + "other-"))


def test_the_command_counts_and_ends_with_1_where_a_line_was_not_understood(surroundings: Path) -> None:
    file = surroundings / "scores.jsonl"
    file.write_text('{"custom_id": "a", "score": 1}\nnonsense\n')
    result = CliRunner().invoke(app(feedback_command), [str(file)])
    assert result.exit_code == 1
    assert "1 sent, 1 not understood" in result.output
    piped = CliRunner().invoke(app(feedback_command), ["-", "--job", "j"], input='{"custom_id": "a", "score": 0}\n')
    assert (piped.exit_code, "1 sent" in piped.output) == (0, True)
    missing = CliRunner().invoke(app(feedback_command), [str(surroundings / "none.jsonl")])
    assert isinstance(missing.exception, ConfigError)


def test_the_newest_state_of_a_tenant_is_found_among_others(kafka: str, topics: Topics, learned: TaughtRouter) -> None:
    assert newest_router("acme", kafka, topics) is None
    producer = BulkProducer(kafka)
    for tenant, version in (("acme", 1), ("other", 9), ("acme", 2), ("other", 10)):
        state = replace(learned, version=version)
        producer.produce(topics.routers, tenant.encode(), pack_router(tenant, state))
    producer.flush(20)
    producer.close()
    raw = newest_router("acme", kafka, topics)
    assert raw is not None
    assert unpack_router(raw)[1].version == 2


def test_an_exported_router_is_another_tenants_next_version_and_predicts_the_same(
    kafka: str, topics: Topics, surroundings: Path, learned: TaughtRouter
) -> None:
    producer = BulkProducer(kafka)
    producer.produce(topics.routers, b"acme", pack_router("acme", learned))
    producer.flush(20)
    producer.close()
    exported = CliRunner().invoke(app(export_command), ["--tenant", "acme", "-o", "acme.npz"])
    assert exported.exit_code == 0, exported.output
    assert orjson.loads(exported.stdout)["version"] == 7
    for version in (1, 2):
        imported = CliRunner().invoke(app(import_command), ["acme.npz", "--tenant", "new"])
        assert imported.exit_code == 0, imported.output
        raw = newest_router("new", kafka, topics)
        assert raw is not None
        tenant, state = unpack_router(raw)
        assert (tenant, state.version, state.since_ms, state.status) == ("new", version, 0, learned.status)
        text = "What is the capital of France?"
        assert np.allclose(state.predict(text, None)[0], learned.predict(text, None)[0], atol=1e-3)


def test_what_is_no_router_is_not_imported(kafka: str, topics: Topics) -> None:
    with pytest.raises(ConfigError, match="nothing was changed"):
        import_router(b"PK nonsense", "acme", kafka, topics)
    assert records(kafka, topics.routers) == []


def test_export_says_so_where_nothing_was_learned(surroundings: Path) -> None:
    result = CliRunner().invoke(app(export_command), [])
    assert isinstance(result.exception, ConfigError)
    assert "nothing was learned" in str(result.exception)

"""`submit`, `collect` and `cancel` against a real Kafka."""

import io
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest

from inference_engine.cli.cancel import cancel_job
from inference_engine.cli.collect import Best, CollectOptions, collect_job
from inference_engine.cli.rows import RowDefaults, job_prefix, request_key
from inference_engine.cli.submit import SubmitOptions, SubmitResult, submit_job
from inference_engine.cli.submitted import Submissions
from inference_engine.connectors.kafka_bulk import BulkConsumer, BulkProducer
from inference_engine.pipeline.errors import ConfigError, Unavailable
from inference_engine.schemas.controls import Cancel
from inference_engine.schemas.topics import Topics

from .fake_engine import FakeEngine, as_error, make_topics, response_line


@pytest.fixture
def topics(kafka: str, topic_prefix: str) -> Topics:
    made = Topics(topic_prefix)
    make_topics(kafka, made)
    return made


Submit = Callable[..., SubmitResult]


@pytest.fixture
def submit(kafka: str, topics: Topics, tmp_path: Path) -> Submit:
    def call(lines: list[dict[str, Any] | bytes], told: list[str] | None = None, **defaults: Any) -> SubmitResult:
        data = b"".join((line if isinstance(line, bytes) else orjson.dumps(line)) + b"\n" for line in lines)
        options = SubmitOptions(None, "local", RowDefaults(**{"job": "", **defaults}))
        return submit_job(options, kafka, topics, Submissions(tmp_path), io.BytesIO(data), (told if told is not None else []).append)

    return call


def test_what_was_submitted_is_collected_once_each_bad_rows_too(kafka: str, topics: Topics, submit: Submit, tmp_path: Path) -> None:
    told: list[str] = []
    rows = [{"custom_id": f"r{i}", "prompt": "hi"} for i in range(300)]
    result = submit([*rows, b"broken", rows[5], {"custom_id": "r6", "prompt": "other"}], told)
    assert (result.sent, result.repeated, result.bad) == (300, 1, 2)
    assert told[0].startswith("row 301 (row-301): the line is not valid JSON")
    with FakeEngine(kafka, topics, shuffle=True, twice=0.3):
        collected = collect_job(CollectOptions("local", result.job, tmp_path / "out", timeout_s=30), kafka, topics, Submissions(tmp_path))
    assert (collected.answered, collected.failed, collected.missing, collected.exit_code) == (300, 2, 0, 1)
    lines = [orjson.loads(line) for line in (tmp_path / "out").read_bytes().splitlines()]
    assert [line["custom_id"] for line in lines[:300]] != [f"r{i}" for i in range(300)]
    assert sorted(line["custom_id"] for line in lines) == sorted([*(f"r{i}" for i in range(300)), "row-301", "r6"])


def test_a_job_in_two_parts_has_each_custom_id_once_and_is_collected_whole(
    kafka: str, topics: Topics, submit: Submit, tmp_path: Path
) -> None:
    told: list[str] = []
    assert submit([{"custom_id": f"a{i}", "prompt": "hi"} for i in range(8)], job="parts").sent == 8
    second = submit(
        [{"custom_id": "a3", "prompt": "other"}, *({"custom_id": f"b{i}", "prompt": "hi"} for i in range(4))], told, job="parts"
    )
    assert (second.sent, second.bad) == (4, 1)
    assert "an earlier submission of this job has this custom_id with another body" in told[0]
    again = submit([{"custom_id": "a3", "prompt": "hi"}, {"custom_id": "a3", "prompt": "hi"}], job="parts")
    assert (again.sent, again.repeated, again.bad) == (1, 1, 0)
    with FakeEngine(kafka, topics):
        collected = collect_job(CollectOptions("local", "parts", tmp_path / "out", timeout_s=30), kafka, topics, Submissions(tmp_path))
    assert (collected.answered, collected.missing) == (12, 0)


def test_the_tenant_travels_in_the_header_and_the_job_in_the_record(kafka: str, topics: Topics, submit: Submit) -> None:
    submit([{"custom_id": "a", "prompt": "hi"}], job="mine")
    consumer = BulkConsumer(kafka, topics.requests)
    consumer.assign()
    ends = consumer.end_offsets()
    records: list[tuple[bytes | None, bytes | None]] = []
    while not consumer.caught_up(ends):
        records += consumer.poll_batch(10, 0.2)
    consumer.close()
    [(key, value)] = records
    assert key == request_key("local", "mine", "a")
    assert orjson.loads(value or b"")["engine"] == {"job": "mine"}


def test_collect_waits_for_the_last_response(kafka: str, topics: Topics, submit: Submit, tmp_path: Path) -> None:
    job = submit([{"custom_id": f"r{i}", "prompt": "hi"} for i in range(20)]).job
    found: list[int] = []
    options = CollectOptions("local", job, tmp_path / "out", timeout_s=30)
    waiting = threading.Thread(target=lambda: found.append(collect_job(options, kafka, topics, Submissions(tmp_path)).answered))
    waiting.start()
    with FakeEngine(kafka, topics):
        waiting.join(30)
    assert found == [20]


def test_without_waiting_collect_takes_what_is_there_and_says_what_is_missing(
    kafka: str, topics: Topics, submit: Submit, tmp_path: Path
) -> None:
    job = submit([{"custom_id": "a", "prompt": "hi"}]).job
    result = collect_job(CollectOptions("local", job, tmp_path / "out", wait=False), kafka, topics, Submissions(tmp_path))
    assert (result.answered, result.missing, result.exit_code) == (0, 1, 1)


def test_a_job_of_another_machine_is_collected_by_its_count_or_until_idle(
    kafka: str, topics: Topics, submit: Submit, tmp_path: Path
) -> None:
    job = submit([{"custom_id": "a", "prompt": "hi"}]).job
    elsewhere = Submissions(tmp_path / "elsewhere")
    with FakeEngine(kafka, topics):
        counted = collect_job(CollectOptions("local", job, tmp_path / "1", count=1, timeout_s=30), kafka, topics, elsewhere)
        idle = collect_job(CollectOptions("local", job, tmp_path / "2", idle_s=0.5), kafka, topics, elsewhere)
    assert counted.answered == idle.answered == 1
    with pytest.raises(ConfigError, match="--count"):
        collect_job(CollectOptions("local", job, tmp_path / "3", wait=True), kafka, topics, elsewhere)


def test_collecting_a_job_that_nothing_is_known_of_says_so_and_leaves_the_file_alone(kafka: str, topics: Topics, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("earlier")
    with pytest.raises(ConfigError, match="'nosuchjob' of tenant 'local' is not known"):
        collect_job(CollectOptions("local", "nosuchjob", tmp_path / "out", idle_s=0.2), kafka, topics, Submissions(tmp_path))
    assert (tmp_path / "out").read_text() == "earlier"


def test_an_answer_takes_the_place_of_an_error_and_never_the_other_way_round(tmp_path: Path) -> None:
    best = Best(tmp_path)
    key, good = request_key("t", "j", "a"), response_line("a", "t", "j")
    bad = as_error(good, "unavailable")
    best.take(job_prefix("t", "j"), [(key, orjson.dumps(line)) for line in (bad, bad)])
    assert (best.answered, best.failed) == (0, 1)
    best.take(job_prefix("t", "j"), [(key, orjson.dumps(line)) for line in (good, bad, good)])
    assert (best.answered, best.failed) == (1, 0)
    assert list(best.lines()) == [orjson.dumps(good)]
    best.close()


def test_cancel_is_the_last_word_about_its_job_on_the_controls_topic(kafka: str, topics: Topics) -> None:
    cancel_job("local", "mine", kafka, topics, 123)
    consumer = BulkConsumer(kafka, topics.controls)
    consumer.assign()
    records = consumer.poll_batch(1, 10)
    consumer.close()
    cancel = Cancel(tenant="local", job="mine", at_ms=123)
    assert records[0][0] == cancel.key
    assert Cancel.model_validate_json(records[0][1] or b"") == cancel


def test_a_missing_topic_is_named_before_anything_is_sent(kafka: str, submit: Submit, tmp_path: Path) -> None:
    options = SubmitOptions(None, "local", RowDefaults("j"))
    with pytest.raises(ConfigError, match="topics create"):
        submit_job(options, kafka, Topics("nowhere."), Submissions(tmp_path), io.BytesIO(b'{"prompt":"hi"}\n'), print)


def test_an_unreachable_kafka_is_said_and_not_waited_for_for_ever() -> None:
    consumer = BulkConsumer("127.0.0.1:1", "requests")
    with pytest.raises(Unavailable, match="doctor"):
        consumer.partitions(timeout=0.5)
    consumer.close()
    producer = BulkProducer("127.0.0.1:1")
    producer.produce("requests", b"k", b"v")
    with pytest.raises(Unavailable, match="1 records were not acknowledged"):
        producer.flush(0.5)
    producer.close()


def test_a_record_that_is_not_delivered_is_told_to_whoever_sent_it() -> None:
    producer = BulkProducer("127.0.0.1:1", delivery_timeout_s=0.3)
    heard: list[str | None] = []
    producer.produce("requests", b"k", b"v", heard.append)
    producer.flush(10)
    assert heard != [None]
    assert len(heard) == 1
    producer.produce("requests", b"k", b"v")
    with pytest.raises(Unavailable, match="send them again"):
        producer.flush(10)
    producer.close()


def test_a_full_queue_waits_and_loses_nothing(kafka: str, topics: Topics) -> None:
    producer = BulkProducer(kafka, queue_records=10)
    heard: list[str | None] = []
    for _ in range(2000):
        producer.produce(topics.requests, b"k", b"v", heard.append)
    producer.flush(30)
    assert heard == [None] * 2000
    producer.close()

"""`run` against a real Kafka and a stand-in for the pipeline."""

import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import orjson
import pytest

from inference_engine.cli.progress import PlainProgress
from inference_engine.cli.run import RunOptions, RunResult, run_job
from inference_engine.connectors.kafka_bulk import BulkConsumer
from inference_engine.pipeline.errors import ConfigError
from inference_engine.schemas.topics import Topics

from .fake_engine import FakeEngine, as_error, make_topics

MILLI = 10**9  # a thousandth of a dollar, in pico


def row(custom_id: str, text: str = "hello", **engine: Any) -> dict[str, Any]:
    line: dict[str, Any] = {"custom_id": custom_id, "body": {"model": "auto", "messages": [{"role": "user", "content": text}]}}
    return {**line, "engine": engine} if engine else line


def write(path: Path, rows: list[dict[str, Any] | bytes]) -> Path:
    path.write_bytes(b"".join((r if isinstance(r, bytes) else orjson.dumps(r)) + b"\n" for r in rows))
    return path


def read(path: Path) -> list[dict[str, Any]]:
    return [orjson.loads(line) for line in path.read_bytes().splitlines()]


@pytest.fixture
def topics(kafka: str, topic_prefix: str) -> Topics:
    made = Topics(topic_prefix)
    make_topics(kafka, made)
    return made


def run(kafka: str, topics: Topics, source: Path, **options: Any) -> RunResult:
    target = options.pop("output", source.with_name("answers.jsonl"))
    cap = options.pop("cap", MILLI)
    given = RunOptions(source, target, **{"first_wait_s": 3.0, **options})
    return run_job(given, lambda: kafka, topics, PlainProgress(quiet=True), lambda: lambda _row: (cap,))


def test_answers_stand_in_input_order_each_once_however_they_arrive(kafka: str, topics: Topics, tmp_path: Path) -> None:
    source = write(tmp_path / "in.jsonl", [row(f"r{i}", f"question {i}") for i in range(3000)])
    with FakeEngine(kafka, topics, shuffle=True, twice=0.2) as engine:
        result = run(kafka, topics, source, window=700)
    assert [line["custom_id"] for line in read(tmp_path / "answers.jsonl")] == [f"r{i}" for i in range(3000)]
    assert result.exit_code == 0
    assert result.summary.answered == 3000
    assert str(result.summary.cost_usd) == "3"
    assert len(engine.asked) == 3000


def test_bad_rows_become_error_rows_in_their_place_and_the_rest_is_answered(kafka: str, topics: Topics, tmp_path: Path) -> None:
    rows: list[dict[str, Any] | bytes] = [
        row("good"),
        b"{not json",
        {"custom_id": "no-messages", "body": {}},
        row("huge", "x" * (2 << 20)),
        row("nul", "a\0b"),
        b'{"custom_id": "lone", "body": {"messages": [{"role": "user", "content": "\\ud800"}]}}',
        b'{"custom_id": "latin", "body": {"messages": [{"role": "user", "content": "\xe9"}]}}',
        row("good"),
        row("good", "another body"),
        {"prompt": "plain"},
        b"",
        b"[" * 2000,
        row("last"),
    ]
    source = write(tmp_path / "in.jsonl", rows)
    with FakeEngine(kafka, topics) as engine:
        result = run(kafka, topics, source)
    lines = read(tmp_path / "answers.jsonl")
    assert [(line["custom_id"], (line["error"] or {}).get("code")) for line in lines] == [
        ("good", None),
        ("row-2", "invalid_json"),
        ("no-messages", "missing_messages"),
        ("huge", "request_too_large"),
        ("nul", "invalid_request"),
        ("lone", "invalid_json"),
        ("latin", "invalid_utf8"),
        ("good", None),
        ("good", "duplicate_custom_id"),
        ("row-10", None),
        ("row-11", "invalid_json"),
        ("last", None),
    ]
    assert engine.asked == {"good": 1, "row-10": 1, "last": 1}
    assert result.exit_code == 1
    assert (result.summary.requests, result.summary.answered, result.summary.failed) == (12, 4, 8)


def test_a_request_without_a_response_is_asked_again(kafka: str, topics: Topics, tmp_path: Path) -> None:
    source = write(tmp_path / "in.jsonl", [row(f"r{i}") for i in range(50)])
    seen: set[str] = set()

    def forgetful(request: dict[str, Any], line: dict[str, Any]) -> dict[str, Any] | None:
        new = request["custom_id"] not in seen
        seen.add(request["custom_id"])
        return None if new and request["custom_id"].endswith("7") else line

    with FakeEngine(kafka, topics, forgetful) as engine:
        result = run(kafka, topics, source, first_wait_s=1.0)
    assert result.exit_code == 0
    assert {i for i, n in engine.asked.items() if n > 1} >= {"r7", "r17", "r27", "r37", "r47"}


def test_killed_at_random_moments_it_goes_on_and_ends_complete_and_in_order(kafka: str, topics: Topics, tmp_path: Path) -> None:
    rows = [row(f"r{i}", f"question {i}") for i in range(4000)]
    source = write(tmp_path / "in.jsonl", [*rows[:2000], b"bad", *rows[2000:], row("r5", "question 5")])
    target = tmp_path / "answers.jsonl"
    command = [sys.executable, "-m", "tests.cli.run_alone", kafka, topics.prefix, str(source), str(target)]
    chance = random.Random(11)
    with FakeEngine(kafka, topics, shuffle=True, twice=0.1, delay_s=0.3) as engine:
        kills = 0
        while kills < 5:
            process = subprocess.Popen(command, stderr=subprocess.PIPE)
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(chance.uniform(0.9, 1.6))
            process.send_signal(signal.SIGKILL)
            process.communicate()
            kills += 1
        final = subprocess.run(command, capture_output=True, check=False, timeout=120)
    lines = read(target)
    assert [line["custom_id"] for line in lines] == [
        *(f"r{i}" for i in range(2000)),
        "row-2001",
        *(f"r{i}" for i in range(2000, 4000)),
        "r5",
    ]
    assert [line["custom_id"] for line in lines if line["error"]] == ["row-2001"]
    assert final.returncode == 1, final.stderr.decode()
    assert set(engine.asked) == {f"r{i}" for i in range(4000)}
    # What was answered before a kill is not asked again; only what was on its way may be.
    assert sum(engine.asked.values()) <= 4000 + kills * (200 + 256)


def test_responses_that_came_while_nobody_was_there_are_read_on_resume(kafka: str, topics: Topics, tmp_path: Path) -> None:
    source = write(tmp_path / "in.jsonl", [row(f"r{i}") for i in range(100)])
    target = tmp_path / "answers.jsonl"
    process = subprocess.Popen([sys.executable, "-m", "tests.cli.run_alone", kafka, topics.prefix, str(source), str(target)])
    requests = BulkConsumer(kafka, topics.requests)
    deadline = time.monotonic() + 30
    while sum(requests.end_offsets().values()) < 100 and time.monotonic() < deadline:
        time.sleep(0.1)
    process.kill()
    process.wait()
    asked_before = sum(requests.end_offsets().values())
    responses = BulkConsumer(kafka, topics.responses)
    with FakeEngine(kafka, topics):
        while sum(responses.end_offsets().values()) < 100 and time.monotonic() < deadline:
            time.sleep(0.1)
    result = run(kafka, topics, source)  # nobody answers any more
    assert result.exit_code == 0
    assert sum(requests.end_offsets().values()) == asked_before
    requests.close()
    responses.close()


def test_a_changed_input_is_refused_with_advice(kafka: str, topics: Topics, tmp_path: Path) -> None:
    source = write(tmp_path / "in.jsonl", [row("a"), row("b")])
    with FakeEngine(kafka, topics, lambda _r, line: as_error(line, "rejected")):
        run(kafka, topics, source)
    write(source, [row("a"), row("b"), row("c")])
    with pytest.raises(ConfigError, match=r"changed since the job .* began.*choose another -o"):
        run(kafka, topics, source)


def test_a_foreign_answers_file_is_never_overwritten(kafka: str, topics: Topics, tmp_path: Path) -> None:
    source = write(tmp_path / "in.jsonl", [row("a")])
    (tmp_path / "answers.jsonl").write_text("precious\n")
    with pytest.raises(ConfigError, match="choose another -o"):
        run(kafka, topics, source)
    assert (tmp_path / "answers.jsonl").read_text() == "precious\n"


def test_a_finished_job_run_again_asks_nothing(kafka: str, topics: Topics, tmp_path: Path) -> None:
    source = write(tmp_path / "in.jsonl", [row("a"), row("b")])
    with FakeEngine(kafka, topics) as engine:
        run(kafka, topics, source)
        again = run(kafka, topics, source)
    assert again.already
    assert again.exit_code == 0
    assert str(again.summary.cost_usd) == "0.002"
    assert engine.asked == {"a": 1, "b": 1}


@pytest.mark.parametrize("state_lost", [False, True])
def test_retry_failed_asks_only_the_failed_rows_and_keeps_the_order(kafka: str, topics: Topics, tmp_path: Path, state_lost: bool) -> None:
    source = write(tmp_path / "in.jsonl", [*(row(f"r{i}") for i in range(40)), b"bad", row("r3")])
    target = tmp_path / "answers.jsonl"

    def moody(request: dict[str, Any], line: dict[str, Any]) -> dict[str, Any]:
        return as_error(line, "unavailable") if request["custom_id"] in {"r3", "r20"} else line

    with FakeEngine(kafka, topics, moody):
        first = run(kafka, topics, source)
    assert first.summary.failed == 4
    if state_lost:
        subprocess.run(["rm", "-r", f"{target}.state"], check=True)
    with FakeEngine(kafka, topics, goes_on=True) as engine:
        second = run(kafka, topics, source, retry_failed=True)
    assert engine.asked == {"r3": 1, "r20": 1}
    lines = read(target)
    assert [line["custom_id"] for line in lines] == [*(f"r{i}" for i in range(40)), "row-41", "r3"]
    assert [line["custom_id"] for line in lines if line["error"]] == ["row-41"]
    assert (second.summary.answered, second.summary.failed) == (41, 1)
    requests = BulkConsumer(kafka, topics.requests)
    assert sum(requests.end_offsets().values()) == 42
    requests.close()


@pytest.mark.parametrize("said", [{}, {"retry_failed": True}])
def test_corrected_rows_are_asked_and_all_others_keep_their_answers(
    kafka: str, topics: Topics, tmp_path: Path, said: dict[str, bool]
) -> None:
    good = [row(f"r{i}") for i in range(10)]
    source = write(tmp_path / "in.jsonl", [*good, b"bad", row("r20", "wrong")])

    def moody(request: dict[str, Any], line: dict[str, Any]) -> dict[str, Any]:
        wrong = request["body"]["messages"][0]["content"] == "wrong"
        return as_error(line, "provider_rejected", cost="0.0005") if wrong else line

    with FakeEngine(kafka, topics, moody):
        first = run(kafka, topics, source)
    assert (first.summary.failed, first.to_be_corrected) == (2, 1)
    write(source, [*good, row("fixed"), row("r20", "right")])
    with FakeEngine(kafka, topics, moody, goes_on=True) as engine:
        second = run(kafka, topics, source, **said)
    assert engine.asked == {"fixed": 1, "r20": 1}
    assert [line["custom_id"] for line in read(tmp_path / "answers.jsonl") if not line["error"]] == [
        *(f"r{i}" for i in range(10)),
        "fixed",
        "r20",
    ]
    assert (second.exit_code, str(second.summary.cost_usd)) == (0, "0.0125")


def test_an_answered_row_that_was_changed_is_refused_also_where_others_were_corrected(kafka: str, topics: Topics, tmp_path: Path) -> None:
    source = write(tmp_path / "in.jsonl", [row("a"), b"bad"])
    with FakeEngine(kafka, topics):
        run(kafka, topics, source)
        write(source, [row("a", "another one"), row("b")])
        with pytest.raises(ConfigError, match=r"row 1 of in\.jsonl was answered and is another one now"):
            run(kafka, topics, source)
        write(source, [row("a"), b"bad"])
        assert run(kafka, topics, source).already


def test_max_cost_is_never_exceeded_and_a_higher_one_goes_on(kafka: str, topics: Topics, tmp_path: Path) -> None:
    source = write(tmp_path / "in.jsonl", [row(f"r{i}") for i in range(60)])
    caps: list[str] = []

    def priced(request: dict[str, Any], line: dict[str, Any]) -> dict[str, Any]:
        caps.append(request["engine"]["max_cost_usd"])
        return line

    with FakeEngine(kafka, topics, priced) as engine:
        first = run(kafka, topics, source, max_cost_pico=25 * MILLI + MILLI // 2)
        assert len(engine.asked) == 25
        assert first.exit_code == 1
        assert (first.summary.answered, first.unsent) == (25, 35)
        codes = [(line["error"] or {}).get("code") for line in read(tmp_path / "answers.jsonl")]
        assert codes == [None] * 25 + ["over_budget"] * 35
        second = run(kafka, topics, source, max_cost_pico=1000 * MILLI)
    assert set(caps) == {"0.001"}
    assert second.exit_code == 0
    assert str(second.summary.cost_usd) == "0.06"
    assert set(engine.asked.values()) == {1}
    assert [line["custom_id"] for line in read(tmp_path / "answers.jsonl")] == [f"r{i}" for i in range(60)]


def test_a_full_disk_stops_with_advice_and_the_job_goes_on_later(kafka: str, topics: Topics, tmp_path: Path) -> None:
    source = write(tmp_path / "in.jsonl", [row(f"r{i}") for i in range(3000)])
    target = tmp_path / "answers.jsonl"
    command = [sys.executable, "-m", "tests.cli.run_alone", kafka, topics.prefix, str(source), str(target)]

    def small_disk() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, 400_000))

    with FakeEngine(kafka, topics):
        failed = subprocess.run(command, capture_output=True, preexec_fn=small_disk, check=False, timeout=60)
        assert "DiskFull" in failed.stderr.decode()
        assert "run the same command again" in failed.stderr.decode()
        again = subprocess.run(command, capture_output=True, check=False, timeout=60)
    assert again.returncode == 0, again.stderr.decode()
    assert [line["custom_id"] for line in read(target)] == [f"r{i}" for i in range(3000)]


def test_interrupt_stops_in_order_and_says_130(kafka: str, topics: Topics, tmp_path: Path) -> None:
    source = write(tmp_path / "in.jsonl", [row(f"r{i}") for i in range(100)])
    target = tmp_path / "answers.jsonl"
    command = [sys.executable, "-m", "tests.cli.run_alone", kafka, topics.prefix, str(source), str(target)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, env={**os.environ})
    assert process.stderr is not None
    process.stderr.readline()  # it works
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 130
    process.stderr.close()
    with FakeEngine(kafka, topics):
        assert run(kafka, topics, source).exit_code == 0


def test_a_cancelled_job_sends_nothing_more_and_says_so_in_every_row(kafka: str, topics: Topics, tmp_path: Path) -> None:
    source = write(tmp_path / "in.jsonl", [row(f"r{i}") for i in range(500)])
    with FakeEngine(kafka, topics, lambda _r, line: as_error(line, "cancelled")) as engine:
        result = run(kafka, topics, source, window=50)
    assert result.cancelled
    assert result.exit_code == 1
    assert len(engine.asked) < 500
    lines = read(tmp_path / "answers.jsonl")
    assert [line["custom_id"] for line in lines] == [f"r{i}" for i in range(500)]
    assert {line["error"]["code"] for line in lines} == {"cancelled"}

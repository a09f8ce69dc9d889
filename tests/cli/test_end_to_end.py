"""The commands as users type them, on the real pipeline: broker, worker, sink, simulated provider."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from ..e2e.provider import Provider
from ..e2e.waiting import until

Cli = Callable[..., "subprocess.CompletedProcess[str]"]
COMMAND = [sys.executable, "-m", "inference_engine.cli.main"]


@pytest.fixture(scope="module")
def environ(kafka: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """One engine of its own for this module; ended with it."""
    ours = {
        "KAFKA_BROKERS": kafka,
        "KAFKA_TOPIC_PREFIX": "e2e.",
        "INFERENCE_ENGINE_HOME": str(tmp_path_factory.mktemp("home")),
        "CACHE_SEMANTIC_ENABLED": "false",
        "SIMULATED_LATENCY_MS": "20",
        "COLUMNS": "120",
    }
    environ = {**os.environ, **ours}
    yield environ
    subprocess.run([*COMMAND, "down"], env=environ, capture_output=True, check=True, timeout=120)


@pytest.fixture
def cli(environ: dict[str, str], tmp_path: Path) -> Cli:
    def call(*arguments: str, stdin: str = "") -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [*COMMAND, *arguments], env=environ, cwd=tmp_path, input=stdin, capture_output=True, text=True, check=False, timeout=240
        )

    return call


def prompts(count: int, distinct: int) -> str:
    def row(i: int) -> dict[str, Any]:
        return {"custom_id": f"r{i}", "prompt": f"question {i % distinct}", "max_tokens": 20, "engine": {"user_id": f"u{i % 3}"}}

    return "".join(orjson.dumps(row(i)).decode() + "\n" for i in range(count))


def lines(path: Path) -> list[dict[str, Any]]:
    return [orjson.loads(line) for line in path.read_bytes().splitlines()]


def test_a_file_is_answered_and_the_report_the_file_and_the_costs_agree(cli: Cli, tmp_path: Path) -> None:
    odd = {"custom_id": "odd", "model": "no-such", "prompt": "hi"}
    (tmp_path / "in.jsonl").write_text(prompts(200, 50) + orjson.dumps(odd).decode())
    done = cli("run", "in.jsonl", "-o", "out.jsonl", "--json-report", "report.json")
    assert done.returncode == 1, done.stderr
    answers = lines(tmp_path / "out.jsonl")
    assert [a["custom_id"] for a in answers] == [*(f"r{i}" for i in range(200)), "odd"]
    assert [a["custom_id"] for a in answers if a["error"]] == ["odd"]
    report = orjson.loads((tmp_path / "report.json").read_bytes())
    assert set(report) == {
        "requests", "answered", "failed", "cached", "provider_calls", "cost_usd", "possibly_paid_usd", "counterfactual_usd", "saved_usd",
        "seconds",
    }  # fmt: skip
    assert (report["requests"], report["answered"], report["failed"]) == (201, 200, 1)
    assert report["provider_calls"] == 50
    assert report["cached"] == {"exact": 150, "semantic": 0, "coalesced": 0}
    assert set(report["saved_usd"]) == {"exact", "semantic", "coalescing", "routing", "prefix", "batch"}
    job = answers[0]["engine"]["job"]
    asked = cli("sql", f"SELECT count(), sum(base_cost) FROM cost_events WHERE job = '{job}'", "--format", "json")
    [row] = orjson.loads(asked.stdout)
    count, cost = row.values()
    assert int(count) == 201
    assert float(cost) == pytest.approx(report["cost_usd"])
    again = cli("run", "in.jsonl", "-o", "out.jsonl")
    assert "had ended before" in again.stderr


def test_killed_and_started_again_it_pays_nothing_twice(cli: Cli, environ: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text(prompts(1500, 1500).replace("question", "another question"))
    command = [*COMMAND, "run", "in.jsonl", "-o", "out.jsonl", "--window", "100"]
    assert cli("up").returncode == 0
    kills = 0
    while kills < 3:
        process = subprocess.Popen(command, env=environ, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        size = (tmp_path / "out.jsonl").stat().st_size if (tmp_path / "out.jsonl").exists() else 0
        while process.poll() is None and not ((tmp_path / "out.jsonl").exists() and (tmp_path / "out.jsonl").stat().st_size > size):
            time.sleep(0.02)
        assert process.poll() is None, "it ended before it could be killed"
        process.send_signal(signal.SIGKILL)
        process.wait()
        kills += 1
    done = cli("run", "in.jsonl", "-o", "out.jsonl", "--json-report", "report.json")
    assert done.returncode == 0, done.stderr
    answers = lines(tmp_path / "out.jsonl")
    assert [a["custom_id"] for a in answers] == [f"r{i}" for i in range(1500)]
    job = answers[0]["engine"]["job"]
    asked = cli("sql", f"SELECT count(), uniqExact(request_id) FROM cost_events WHERE job = '{job}' AND base_cost > 0", "--format", "json")
    assert [int(v) for v in orjson.loads(asked.stdout)[0].values()] == [1500, 1500]


def test_a_worker_that_is_killed_under_a_run_is_started_again_and_every_row_is_answered(
    cli: Cli, environ: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "in.jsonl").write_text(prompts(400, 400).replace("question", "killed question"))
    assert cli("up").returncode == 0
    command = [*COMMAND, "run", "in.jsonl", "-o", "out.jsonl", "--window", "40", "--json-report", "report.json"]
    process = subprocess.Popen(command, env=environ, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    answers = tmp_path / "out.jsonl"
    until(lambda: process.poll() is not None or (answers.exists() and answers.stat().st_size > 0), "the first answers", within_s=60)
    worker = orjson.loads((Path(environ["INFERENCE_ENGINE_HOME"]) / "worker-0.json").read_bytes())["pid"]
    os.kill(worker, signal.SIGKILL)
    _, said = process.communicate(timeout=200)
    assert process.returncode == 0, said
    assert "worker-0 ended in the middle of the job (1 of 3" in said
    assert [a["custom_id"] for a in lines(answers)] == [f"r{i}" for i in range(400)]
    report = orjson.loads((tmp_path / "report.json").read_bytes())
    again = report["provider_calls"] - 400
    assert again >= 0
    assert (again > 0) == (report["possibly_paid_usd"] > 0)


def test_max_cost_holds_on_the_real_pipeline(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text(prompts(100, 100).replace("question", "dear question"))
    first = cli("run", "in.jsonl", "-o", "out.jsonl", "--model", "sim-premium", "--max-cost", "0.05", "--json-report", "report.json")
    assert first.returncode == 1, first.stderr
    assert "higher --max-cost" in first.stderr
    assert 0 < orjson.loads((tmp_path / "report.json").read_bytes())["cost_usd"] <= 0.05
    unsent = [a for a in lines(tmp_path / "out.jsonl") if a["error"]]
    assert 0 < len(unsent) < 100
    assert {a["error"]["code"] for a in unsent} == {"over_budget"}
    second = cli("run", "in.jsonl", "-o", "out.jsonl", "--model", "sim-premium")
    assert second.returncode == 0, second.stderr
    assert [a["custom_id"] for a in lines(tmp_path / "out.jsonl")] == [f"r{i}" for i in range(100)]


def test_max_cost_answers_rows_for_auto_without_max_tokens_and_says_what_is_needed_where_it_fits_none(cli: Cli, tmp_path: Path) -> None:
    rows = [{"custom_id": f"r{i}", "prompt": f"Where is parcel number {i}?"} for i in range(60)]
    hard = "Analyze and compare two algorithms step by step, prove which one is better and implement it: ```def f(x): return x```"
    rows[7]["prompt"] = hard  # for a dearer tier: it is asked again with more
    (tmp_path / "in.jsonl").write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows))
    low = cli("run", "in.jsonl", "-o", "out.jsonl", "--max-cost", "0.000001")
    assert low.returncode == 1, low.stderr
    assert "60 rows were left unanswered" in low.stderr
    assert "the cheapest needs $" in low.stderr
    done = cli("run", "in.jsonl", "-o", "out.jsonl", "--max-cost", "5.00", "--json-report", "report.json")
    assert done.returncode == 0, done.stderr
    used = [a["engine"]["model_used"] for a in lines(tmp_path / "out.jsonl")]
    assert len(set(used)) == 2
    assert used.count(used[7]) == 1
    assert 0 < orjson.loads((tmp_path / "report.json").read_bytes())["cost_usd"] <= 5


def test_submit_from_standard_input_then_collect(cli: Cli, tmp_path: Path) -> None:
    rows = prompts(30, 30).replace("question", "piped question")
    submitted = cli("submit", "-", stdin=rows + rows.splitlines()[0])
    assert submitted.returncode == 0, submitted.stderr
    assert "30 requests sent, 1 row merged" in submitted.stderr
    job = submitted.stdout.strip()
    collected = cli("collect", job, "-o", "out.jsonl", "--timeout", "60")
    assert collected.returncode == 0, collected.stderr
    assert {a["custom_id"] for a in lines(tmp_path / "out.jsonl")} == {f"r{i}" for i in range(30)}
    cancelled = cli("cancel", job)
    assert (cancelled.returncode, "is cancelled" in cancelled.stderr) == (0, True)
    unknown = cli("cancel", "nosuchjob")
    assert (unknown.returncode, "No request of a job 'nosuchjob'" in unknown.stderr) == (0, True)


def test_an_estimate_sends_nothing_and_counts_repeats(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text(prompts(40, 10))
    said = cli("run", "in.jsonl", "--estimate")
    assert said.returncode == 0, said.stderr
    assert "75.0 % of the rows, counted" in said.stdout
    assert [p.name for p in tmp_path.iterdir()] == ["in.jsonl"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "missing.jsonl"], "missing.jsonl does not exist"),
        (["run", "in.jsonl", "--max-cost", "much"], "not an amount of dollars"),
        (["run", "in.jsonl", "--deadline", "yesterday"], "--deadline"),
        (["run", "in.jsonl", "-o", "in.jsonl"], "overwrite the requests"),
        (["collect", "nobody", "-o", "nowhere/out.jsonl"], "does not exist"),
    ],
)
def test_mistakes_get_one_clear_message_and_exit_code_2(cli: Cli, tmp_path: Path, arguments: list[str], message: str) -> None:
    (tmp_path / "in.jsonl").write_text(prompts(1, 1))
    done = cli(*arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


Lossy = tuple[dict[str, str], Provider]


@pytest.fixture(scope="module")
def lossy(kafka: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lossy]:
    """An engine before a provider that loses answers where it is told to, and bills them all the same."""
    folder = tmp_path_factory.mktemp("lossy")
    with Provider(folder) as provider:
        ours = {
            "KAFKA_BROKERS": kafka,
            "KAFKA_TOPIC_PREFIX": "lossy.",
            "INFERENCE_ENGINE_HOME": str(folder / "home"),
            "CACHE_SEMANTIC_ENABLED": "false",
            "OPENAI_API_KEY": "sk-test",
            "OPENAI_BASE_URL": f"{provider.url}/v1",
            "COLUMNS": "120",
        }
        environ = {**os.environ, **ours}
        yield environ, provider
        subprocess.run([*COMMAND, "down"], env=environ, capture_output=True, check=True, timeout=120)


def lossy_run(
    environ: dict[str, str], folder: Path, fault: str, max_cost: str
) -> tuple["subprocess.CompletedProcess[str]", dict[str, Any]]:
    rows = [{"custom_id": f"r{i}", "prompt": f"{max_cost} {i} [[fault:{fault}]]", "max_tokens": 20} for i in range(30)]
    (folder / "in.jsonl").write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows))
    asked = ["run", "in.jsonl", "-o", "out.jsonl", "--model", "gpt-5-mini", "--max-cost", max_cost, "--json-report", "report.json"]
    done = subprocess.run([*COMMAND, *asked], env=environ, cwd=folder, capture_output=True, text=True, check=False, timeout=240)
    return done, orjson.loads((folder / "report.json").read_bytes())


def billed(provider: Provider) -> int:
    return sum(line.pico for line in provider.bill())


def test_max_cost_holds_where_every_call_is_billed_and_lost(lossy: Lossy, tmp_path: Path) -> None:
    environ, provider = lossy
    before = billed(provider)
    done, report = lossy_run(environ, tmp_path, "drop", "0.0003")
    assert done.returncode == 1, done.stderr
    assert 0 < billed(provider) - before <= report["possibly_paid_usd"] * 10**12 <= 300 * 10**6
    assert "possibly paid on top" in done.stdout


def test_with_ample_max_cost_lost_calls_lose_no_row(lossy: Lossy, tmp_path: Path) -> None:
    environ, provider = lossy
    before = billed(provider)
    done, report = lossy_run(environ, tmp_path, "drop*1", "5.00")
    assert done.returncode == 0, done.stderr
    assert report["answered"] == 30
    paid = round(report["cost_usd"] * 10**12)
    assert paid < billed(provider) - before <= paid + round(report["possibly_paid_usd"] * 10**12)

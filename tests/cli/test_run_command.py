"""`run` around the job: what is checked before anything is sent, and what is said."""

import os
import stat
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import orjson
import pytest
from typer.testing import CliRunner

from inference_engine.agents import embedders
from inference_engine.cli import main as cli
from inference_engine.cli import run_command
from inference_engine.cli.accounts import JobSummary
from inference_engine.cli.engine import Engine
from inference_engine.cli.run import RunResult
from inference_engine.pipeline.errors import ConfigError

SUMMARY = JobSummary(requests=1, answered=1, cost_usd=Decimal("0.5"))


class Ran:
    """In place of the job: connects, as a job does, and answers all."""

    def __init__(self) -> None:
        self.times = 0
        self.result = RunResult("j", SUMMARY)
        self.meanwhile: Callable[[], object] = lambda: None

    def __call__(self, options: Any, connect: Callable[[], str], *_: Any) -> RunResult:
        self.times += 1
        connect()
        self.meanwhile()
        return self.result


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Ran:
    ran = Ran()
    monkeypatch.setenv("INFERENCE_ENGINE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(run_command, "run_job", ran)
    monkeypatch.setattr(Engine, "start", lambda _self, _say: "nowhere:1")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in.jsonl").write_text('{"prompt": "q"}\n')
    return ran


def run(*arguments: str) -> Any:
    return CliRunner().invoke(cli.app, ["run", "in.jsonl", *arguments])


def test_without_an_embedder_run_and_the_estimate_say_that_the_semantic_tier_is_off(ran: Ran, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "semantic tier is off" not in run().stderr
    monkeypatch.setattr(embedders, "missing_extra", lambda: "no embedder: a package is not installed")
    assert "the semantic tier is off: no embedder: a package is not installed" in run().stderr
    assert "no embedder" in run("--estimate").stdout
    monkeypatch.setenv("CACHE_SEMANTIC_ENABLED", "false")
    assert "semantic tier" not in run().stderr


@pytest.mark.parametrize("place", ["in.jsonl/report.json", "."])
def test_a_report_that_cannot_be_written_is_found_before_anything_is_sent(ran: Ran, place: str) -> None:
    done = run("--json-report", place)
    assert ran.times == 0
    assert isinstance(done.exception, ConfigError)
    assert "Nothing was sent" in str(done.exception)


def test_a_report_that_becomes_impossible_meanwhile_comes_after_the_summary_and_can_be_made_again(ran: Ran, tmp_path: Path) -> None:
    ran.meanwhile = lambda: (tmp_path / "report.json").mkdir()
    done = run("--json-report", "report.json")
    assert "paid" in done.stdout
    assert "asks nothing again" in str(done.exception)


def test_the_report_is_for_whom_the_umask_allows(ran: Ran, tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        assert run("--json-report", "report.json").exit_code == 0
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "report.json").stat().st_mode) == 0o640
    assert orjson.loads((tmp_path / "report.json").read_bytes())["answered"] == 1


@pytest.mark.parametrize(
    ("wrong", "said", "unsaid"), [(2, "Correct them in the requests file", "--retry-failed"), (1, "1 of them would fail", "Correct them")]
)
def test_rows_that_would_fail_again_are_to_be_corrected_not_retried(ran: Ran, wrong: int, said: str, unsaid: str) -> None:
    ran.result = RunResult("j", JobSummary(requests=3, answered=1, failed=2), to_be_corrected=wrong)
    told = run().stderr
    assert said in told
    assert unsaid not in told.replace("in.answers.jsonl", "")


def test_an_unknown_model_is_a_mistake_of_the_command_line(ran: Ran) -> None:
    done = run("--model", "nope")
    assert ran.times == 0
    assert "unknown model 'nope'" in str(done.exception)
    assert run("--model", "gpt-5-mini").exit_code == 0

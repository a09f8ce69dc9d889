"""What every command begins with."""

import io
import os
import subprocess
import sys
from pathlib import Path

import orjson
import pytest
import structlog

from inference_engine.cli.engine import engine


def test_log_lines_go_to_what_is_standard_error_when_they_are_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """A command that ran in this process has closed its own: a line to that one ended whatever wanted to write it."""
    first, second = io.StringIO(), io.StringIO()
    log = structlog.get_logger("test")
    monkeypatch.setattr(sys, "stderr", first)
    engine()
    first.close()
    monkeypatch.setattr(sys, "stderr", second)
    log.warning("heard")
    assert "heard" in second.getvalue()


@pytest.mark.parametrize("command", [["config", "--json"], ["sql", "SELECT count() AS n FROM cost_events", "-f", "json"]])
def test_what_settings_warn_of_does_not_stand_among_the_results(tmp_path: Path, command: list[str]) -> None:
    environ = {**os.environ, "REDIS_URL": "redis://x", "INFERENCE_ENGINE_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-m", "inference_engine.cli.main", *command], env=environ, capture_output=True, text=True, check=False, timeout=120
    )
    assert "Redis" in done.stderr
    if done.stdout:
        orjson.loads(done.stdout)


def test_every_command_has_its_settings_by_the_one_way_that_minds_standard_output() -> None:
    room = Path(__file__).parents[2] / "cli"
    asking = {file.name for file in room.glob("*.py") if "agents.settings import" in (text := file.read_text()) and "load_settings" in
              text.split("agents.settings import", 1)[1].splitlines()[0]}  # fmt: skip
    assert asking == set()

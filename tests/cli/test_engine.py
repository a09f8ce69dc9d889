"""What every command begins with."""

import io
import sys

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

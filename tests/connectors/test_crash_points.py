"""A named crash point kills the process as a power cut would, at the passage that was asked for and at no other time."""

import os
import subprocess
import sys

import pytest

PROGRAM = """
from inference_engine.connectors.crash_points import crash_at
for passage in range(1, 6):
    crash_at("after_intent")
    crash_at("after_send")
    print(passage, flush=True)
"""


def run(crash_at: str | None) -> "subprocess.CompletedProcess[str]":
    env = {k: v for k, v in os.environ.items() if k != "CRASH_AT"} | ({} if crash_at is None else {"CRASH_AT": crash_at})
    return subprocess.run([sys.executable, "-c", PROGRAM], env=env, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(("crash_at", "passages"), [("after_send:3", "1\n2\n"), ("after_intent", ""), ("before_ack:1", "1\n2\n3\n4\n5\n")])
def test_it_dies_at_the_named_passage(crash_at: str, passages: str) -> None:
    done = run(crash_at)
    assert done.stdout == passages
    assert done.returncode == (0 if passages.endswith("5\n") else -9)


def test_without_the_setting_nothing_happens() -> None:
    assert run(None).returncode == 0


def test_an_unknown_point_is_refused() -> None:
    assert "names no crash point" in run("after_lunch:1").stderr

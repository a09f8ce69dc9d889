"""The embedded stack by the real command line: started once, shared, adopted after a crash, stopped as a whole."""

import json
import os
import signal
import subprocess
from pathlib import Path

import psutil

from .engine import COMMAND, Ended, read_rows, row, write_rows
from .provider import clean_environment


def inference_engine(home: Path, *arguments: str) -> Ended:
    environment = clean_environment(
        INFERENCE_ENGINE_HOME=str(home), CACHE_SEMANTIC_ENABLED="false", SIMULATED_LATENCY_MS="10", KAFKA_PARTITIONS="2"
    )
    done = subprocess.run([*COMMAND, *arguments], capture_output=True, cwd=home, env=environment, timeout=180, check=False)
    return Ended(done.returncode, done.stdout.decode(), done.stderr.decode())


def processes_of(home: Path) -> set[int]:
    """Every live process that carries the folder in its arguments."""
    found = set()
    for process in psutil.process_iter(["cmdline", "status"]):
        if process.info["status"] != psutil.STATUS_ZOMBIE and any(str(home) in part for part in process.info["cmdline"] or ()):
            found.add(process.pid)
    return found


def test_up_run_adopt_and_down_by_the_command_line(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    source, target = write_rows(home / "in.jsonl", [row(f"r{i}", f"question {i % 5}", model="auto") for i in range(10)]), home / "out.jsonl"
    try:
        up = inference_engine(home, "up")
        assert up.code == 0, up.err
        assert up.out.startswith("KAFKA_BROKERS=127.0.0.1:")
        running = processes_of(home)
        assert len(running) >= 3

        assert inference_engine(home, "up").out == up.out
        assert processes_of(home) == running, "the second `up` started something"

        ran = inference_engine(home, "run", str(source), "-o", str(target))
        assert ran.code == 0, ran.err
        assert [line["custom_id"] for line in read_rows(target)] == [f"r{i}" for i in range(10)]
        assert processes_of(home) == running, "`run` started something"

        worker = json.loads((home / "worker-0.json").read_text())["pid"]
        os.kill(worker, signal.SIGKILL)
        again = inference_engine(home, "run", str(source), "-o", str(home / "again.jsonl"))
        assert again.code == 0, again.err
        assert len(processes_of(home) - running) == 1, "only the worker that died is started anew"
        rows = inference_engine(home, "sql", "SELECT countIf(cache_tier = 'none'), count() FROM cost_events", "-f", "tsv")
        assert rows.out.splitlines()[1].split("\t") == ["5", "20"], "what was answered before the crash is not paid again"
    finally:
        down = inference_engine(home, "down")
    assert down.code == 0, down.err
    assert processes_of(home) == set()
    assert "nothing was running" in inference_engine(home, "down").err

"""A worker that can't go on ends with an error, so that whoever supervises it starts another one."""

from pathlib import Path

from .conftest import MakeEngine
from .engine import row, write_rows
from .waiting import until


def test_a_worker_whose_consumer_crashes_exits_with_an_error_and_the_next_one_loses_nothing(
    make_engine: MakeEngine, tmp_path: Path
) -> None:
    engine = make_engine(CALL_TIMEOUT_SECONDS="3")
    # aiokafka decompresses by way of this package: without it, the first compressed record ends its consumer.
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "cramjam.py").write_text("raise ImportError('taken away by a test')\n")
    compressed = write_rows(tmp_path / "in.jsonl", [row(f"r{i}", "is anybody there?" * 100) for i in range(10)])
    worker = engine.start_worker(PYTHONPATH=str(broken))
    engine.produce([row(f"h{i}", f"[[fault:hang*1]] {i}", job="hanging") for i in range(10)])
    until(lambda: worker.health()["calls_in_flight"]["standard"] == 10, "the calls are in flight")
    run = engine.start_run(compressed, tmp_path / "out.jsonl")
    assert worker.wait(60) not in (0, None)
    assert "UnsupportedCodecError" in worker.log.read_text()
    engine.start_worker()
    assert run.wait(60) == 0, run.tail()
    assert all(line.error is None for line in engine.answers("hanging", {f"h{i}" for i in range(10)}).values())

"""A worker starts only where all that it relies on is there; else it ends with the reason, and has taken nothing over."""

import subprocess
import sys
from pathlib import Path

import pytest
from confluent_kafka.admin import AdminClient

from inference_engine.agents.names import changelogs

from .conftest import MakeEngine
from .engine import COMMAND, Engine, Process
from .waiting import until


def refused(engine: Engine, words: str, **settings: str) -> None:
    """The command ends with an error that contains the words."""
    state = engine.home / "worker-0.json"
    worker = engine.start("worker-0", "worker", "--state-file", str(state), state=state, **settings)
    assert worker.wait(60) not in (0, None), worker.tail()
    said = " ".join(worker.log.read_text().split())
    assert words in said, said[-2000:]
    assert "Traceback" not in said


@pytest.mark.parametrize("missing", ["lookups", "changelog"])
def test_a_topic_that_is_not_there(make_engine: MakeEngine, missing: str) -> None:
    """Nothing would ever be read from it."""
    engine = make_engine()
    name = changelogs(engine.topics)[0] if missing == "changelog" else engine.topics.lookups
    admin = AdminClient({"bootstrap.servers": engine.brokers, "log_level": 0})
    admin.delete_topics([name])[name].result(20)
    until(lambda: name not in admin.list_topics(timeout=10).topics, "the topic is gone")
    refused(engine, name)


def test_topics_with_other_partitions(make_engine: MakeEngine) -> None:
    """Rows and events would lie on different workers."""
    refused(make_engine(), "partitions", KAFKA_PARTITIONS="8")


def test_a_data_folder_that_is_no_folder(make_engine: MakeEngine) -> None:
    engine = make_engine()
    (engine.home / "data").mkdir()
    (engine.home / "data" / "worker-0").write_text("in the way")
    refused(engine, "can't be written to")


def test_a_data_folder_that_another_worker_uses(make_engine: MakeEngine) -> None:
    engine = make_engine()
    first = engine.start_worker()
    refused(engine, "another worker uses the data folder")
    assert first.alive


def test_a_disk_without_room(make_engine: MakeEngine, tmp_path: Path) -> None:
    """Files may not grow: the kernel refuses as it does where the disk is full."""
    engine = make_engine()
    limited = "import os, resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536)); os.execv(sys.executable, sys.argv[1:])"
    state = engine.home / "worker-0.json"
    ended = Process("worker-0", *_started(engine, [sys.executable, "-c", limited, *COMMAND, "worker", "--state-file", str(state)]))
    assert ended.wait(60) not in (0, None)
    assert "can't be written to" in " ".join(ended.log.read_text().split())


def _started(engine: Engine, command: list[str]) -> "tuple[subprocess.Popen[bytes], Path]":
    log = engine.home / "limited.log"
    with log.open("wb") as out:
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, cwd=engine.home, env=engine.environment()), log


def test_a_faust_without_its_compiled_part(make_engine: MakeEngine, tmp_path: Path) -> None:
    """It would work, and take records in another way than the one that was tested."""
    (tmp_path / "sitecustomize.py").write_text('import sys\nsys.modules["faust._cython.streams"] = None\n')
    refused(make_engine(), "without its compiled part", PYTHONPATH=str(tmp_path))

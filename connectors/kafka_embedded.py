"""Apache Kafka itself, one KRaft node on loopback, from the user's cache."""

import json
import socket
import subprocess
import time
import uuid
from base64 import urlsafe_b64encode
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from ..pipeline.errors import ConfigError
from .class_archive import ClassArchive, class_archive
from .java_runtime import JavaChoice, JavaRuntime, find_java
from .kafka_config import log4j_properties, server_properties
from .kafka_jars import default_cache_dir, kafka_classpath
from .process import created_at, ended, ours, spawn, stop, tail
from .state_file import write_atomically

_TAKEN = ("Address already in use", "BindException")


@dataclass(frozen=True, slots=True)
class RunningKafka:
    """A broker that answered the protocol."""

    pid: int
    created: float
    """Start time of the process, seconds since the epoch: with the pid it names the process for good."""
    port: int
    controller_port: int
    cluster_id: str
    data_dir: str
    java: str
    archive: str = ""
    """Where the class archive belongs that this broker records; empty where it records none."""

    @property
    def bootstrap(self) -> str:
        return f"127.0.0.1:{self.port}"


@dataclass(frozen=True, slots=True)
class EmbeddedKafka:
    """Starts, adopts and stops the broker of a data folder.

    Files in the folder: `logs/` (Kafka's data), `server.properties`, `server.log`, `console.log`, `cluster.id`, `formatted`, `broker.json`.
    """

    java: JavaChoice | None = None
    """None: by INFERENCE_ENGINE_JAVA, else the machine's own first."""
    cache_dir: Path | None = None
    """Where the class path is recorded; None: the user's cache."""
    start_timeout_s: float = 90.0
    heap: tuple[str, str] = ("256m", "768m")
    archive: bool = True
    """Record the classes at the first run, so that later starts take half as long."""
    fast_jit: bool = True
    """Only Java's quick compiler. The thorough one took half of the broker's CPU in the first minutes of an engine on two cores, and
    what it made was no faster at our rates: 0.19 against 0.21 ms per request in the broker's own threads, 0.26 against 0.44 ms in all.
    """
    advertised_port: int | None = None
    """Of a forwarder on loopback that clients are to use in place of the broker's own port."""

    def start(self, data_dir: Path, *, port: int | None = None) -> RunningKafka:
        """Start the broker of `data_dir`, or return the one that runs there already.

        `port` None takes the port of the last time if it is free, else any free one. Raises ConfigError where the port is taken, Java or
        the jars are missing, or the broker doesn't answer in time (with the end of its log). The caller holds the folder's lock.
        """
        data_dir = data_dir.resolve()
        data_dir.mkdir(parents=True, exist_ok=True)
        running = self.adopt(data_dir)
        if running is not None:
            if port is None or running.port == port:
                return running
            raise ConfigError(
                f"the embedded Kafka of {data_dir} already runs on port {running.port}, not {port}; stop it first (inference-engine down)"
            )
        runtime = find_java(self.java)
        jars = kafka_classpath(self.cache_dir)
        self._format(runtime, jars, data_dir)
        for attempt in range(3):
            chosen = port if port is not None else _free_port(_last_port(data_dir) if attempt == 0 else None)
            if port is not None and not _is_free(port):
                raise ConfigError(
                    f"port {port} on 127.0.0.1 is taken by another program; nothing was started. "
                    "Choose another, or leave it out for any free one."
                )
            started = self._launch(runtime, jars, data_dir, chosen)
            if started is not None:
                return started
        raise ConfigError(f"three ports in a row were taken between choosing and binding; see {data_dir / 'server.log'}, then try again")

    def adopt(self, data_dir: Path) -> RunningKafka | None:
        """The running broker of this folder, also one whose starter died before it could record it; None where none answers.

        A broker process that doesn't answer within the time limit is stopped: it would keep the folder locked.
        """
        data_dir = data_dir.resolve()
        recorded = read_record(data_dir)
        for process in find_broker(data_dir):
            deadline = time.monotonic() + self.start_timeout_s
            while recorded is not None and recorded.pid == process.pid and time.monotonic() < deadline:
                if _answers(recorded.bootstrap, recorded.cluster_id, 1.0):
                    return recorded
                if created_at(process.pid) is None:
                    break
            stop(process, timeout_s=30.0)
        return None

    def stop(self, data_dir: Path, *, timeout_s: float = 30.0) -> bool:
        """Stop the broker of this folder, gracefully first. False where it had to be killed; True where it ended or none ran."""
        recorded = read_record(data_dir)
        gracefully = all([stop(process, timeout_s=timeout_s) for process in find_broker(data_dir)])
        if recorded is not None and recorded.archive:
            archive = ClassArchive.of(Path(recorded.archive), data_dir)
            if gracefully:
                archive.keep()
            else:
                archive.discard()
        return gracefully

    def _format(self, runtime: JavaRuntime, jars: tuple[Path, ...], data_dir: Path) -> None:
        """Format the storage once; a format that was cut short is done again under the same cluster id."""
        if (data_dir / "formatted").exists() and (data_dir / "logs" / "meta.properties").exists():
            return
        cluster = data_dir / "cluster.id"
        if not cluster.exists():
            write_atomically(cluster, urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("="))
        properties = data_dir / "server.properties"
        write_atomically(properties, server_properties(port=1, controller_port=2))
        write_atomically(data_dir / "log4j2.properties", log4j_properties())
        archive = class_archive(runtime, jars, self.cache_dir or default_cache_dir(), data_dir)
        flags = archive.flags(train=False)
        command = [
            *_java_command(runtime, jars, data_dir, ("64m", "256m"), fast_jit=True, log_name="format.log", flags=flags),
            # One id in 64 begins with a dash: as a word of its own it would be taken for an option.
            *("kafka.tools.StorageTool", "format", "--ignore-formatted", f"--cluster-id={cluster.read_text()}", "-c", str(properties)),
        ]
        done = subprocess.run(command, capture_output=True, text=True, cwd=data_dir, timeout=self.start_timeout_s, check=False)
        if done.returncode != 0:
            raise ConfigError(
                f"Kafka's storage in {data_dir / 'logs'} could not be formatted; nothing was started. "
                f"Its words:\n{(done.stdout + done.stderr)[-2000:]}"
            )
        write_atomically(data_dir / "formatted", "")

    def _launch(self, runtime: JavaRuntime, jars: tuple[Path, ...], data_dir: Path, port: int) -> RunningKafka | None:
        """One try on one port; None where the port was taken by somebody else in the meantime."""
        controller_port = _free_port(None)
        properties = data_dir / "server.properties"
        write_atomically(properties, server_properties(port=port, controller_port=controller_port, advertised_port=self.advertised_port))
        write_atomically(data_dir / "log4j2.properties", log4j_properties())
        log_start = _size(data_dir / "server.log")
        archive = class_archive(runtime, jars, self.cache_dir or default_cache_dir(), data_dir)
        archive.discard()
        flags = archive.flags(train=self.archive)
        command = [
            *_java_command(runtime, jars, data_dir, self.heap, fast_jit=self.fast_jit, log_name="server.log", flags=flags),
            *("kafka.Kafka", str(properties)),
        ]
        process = spawn(command, log=data_dir / "console.log", cwd=data_dir)
        running = RunningKafka(
            pid=process.pid,
            created=created_at(process.pid) or time.time(),
            port=port,
            controller_port=controller_port,
            cluster_id=(data_dir / "cluster.id").read_text(),
            data_dir=str(data_dir),
            java=f"{runtime.executable} ({runtime.origin}, {runtime.major})",
            archive=str(archive.path) if self.archive and not archive.path.exists() else "",
        )
        write_atomically(data_dir / "broker.json", json.dumps(asdict(running)))
        return running if self._ready(process, running, data_dir, log_start) else None

    def _ready(self, process: psutil.Process, running: RunningKafka, data_dir: Path, log_start: int) -> bool:
        """Wait until it answers; False where its port was taken. Raises ConfigError where it dies or takes too long."""
        deadline = time.monotonic() + self.start_timeout_s
        while time.monotonic() < deadline:
            if ended(process, within_s=0.05):
                if any(word in _since(data_dir / "server.log", log_start) for word in _TAKEN):
                    return False
                raise ConfigError(f"the embedded Kafka ended before it was ready; {_quoted(data_dir)}")
            if _accepts(running.port) and _answers(running.bootstrap, running.cluster_id, 2.0):
                return True
        stop(process, timeout_s=5.0)
        raise ConfigError(f"the embedded Kafka didn't answer within {self.start_timeout_s:.0f} s and was stopped; {_quoted(data_dir)}")


def read_record(data_dir: Path) -> RunningKafka | None:
    """What the last start wrote down; None where there is nothing readable. Says nothing about life."""
    try:
        record: dict[str, Any] = json.loads((data_dir / "broker.json").read_text())
        return RunningKafka(**record)
    except (FileNotFoundError, ValueError, TypeError):
        return None


def find_broker(data_dir: Path) -> list[psutil.Process]:
    """The live broker processes of this folder: at most one, unless somebody meddled."""
    marker = _marker(data_dir.resolve())
    return ours(lambda arguments: marker in arguments)


def _marker(data_dir: Path) -> str:
    """An argument that only the broker of this folder carries: the proof that a process is ours."""
    return f"-Dinference.engine.kafka={data_dir}"


def _java_command(
    runtime: JavaRuntime, jars: tuple[Path, ...], data_dir: Path, heap: tuple[str, str], *, fast_jit: bool, log_name: str, flags: list[str]
) -> list[str]:
    """Java up to the main class, to be run in `data_dir`. The formatter carries the marker too: one left behind is found and ended."""
    return [
        str(runtime.executable),
        f"-Xms{heap[0]}",
        f"-Xmx{heap[1]}",
        "-XX:+UseSerialGC",  # small heap, few cores: no threads for collecting, the quickest start
        *(["-XX:TieredStopAtLevel=1"] if fast_jit else []),
        *flags,
        "-XX:+ExitOnOutOfMemoryError",
        "-Djava.awt.headless=true",
        _marker(data_dir),
        f"-Dkafka.log.file={log_name}",
        "-Dlog4j2.configurationFile=log4j2.properties",
        "-cp",
        ":".join(str(jar) for jar in jars),
    ]


def _answers(bootstrap: str, cluster_id: str, timeout_s: float) -> bool:
    """Whether the broker at this address speaks Kafka and is the one of this cluster, not a stranger on the same port."""
    admin = AdminClient({"bootstrap.servers": bootstrap, "log_level": 0, "socket.timeout.ms": 5000})
    try:
        return bool(admin.list_topics(timeout=timeout_s).cluster_id == cluster_id)
    except KafkaException:
        return False


def _accepts(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1.0):
            return True
    except OSError:
        return False


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _free_port(preferred: int | None) -> int:
    if preferred is not None and _is_free(preferred):
        return preferred
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _last_port(data_dir: Path) -> int | None:
    record = read_record(data_dir)
    return None if record is None else record.port


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _since(path: Path, offset: int) -> str:
    if not path.exists():
        return ""
    with path.open("rb") as file:
        file.seek(offset if offset <= _size(path) else 0)  # the log may have been rolled over
        return file.read().decode("utf-8", "replace")


def _quoted(data_dir: Path) -> str:
    ends = f"{tail(data_dir / 'server.log')}\n{tail(data_dir / 'console.log', lines=5)}"
    return f"its data in {data_dir / 'logs'} is untouched. The end of its log:\n{ends}"

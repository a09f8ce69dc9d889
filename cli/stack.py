"""The embedded stack as a whole: broker, topics, cost sink, workers. Started once, shared by later commands, stopped in reverse order."""

import hashlib
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import psutil

from ..connectors.data_folder import HOME_SETTING, DataFolder, data_folder
from ..connectors.file_lock import held
from ..connectors.kafka_admin import create_topics
from ..connectors.kafka_embedded import EmbeddedKafka, find_broker, read_record
from ..connectors.kafka_jars import recorded_classpath
from ..connectors.process import created_at
from ..pipeline.errors import ConfigError
from ..schemas.topics import TopicSpec
from . import children
from .children import SINK, STATE_OPTION, Birth, Child, worker_name

Say = Callable[[str], None]
"""Told one line for each step that takes time or changes something."""


def _silent(_: str) -> None:
    """The default of `Say`."""


@dataclass(frozen=True, slots=True)
class StackOptions:
    """What a command wants to find running."""

    folder: DataFolder = field(default_factory=data_folder)
    brokers: str | None = None
    """An external cluster (KAFKA_BROKERS): no broker is started then."""
    clickhouse_url: str | None = None
    """An external ClickHouse: the sink then opens no folder."""
    workers: int = 1
    specs: Sequence[TopicSpec] = ()
    """Every topic that must be there before a child starts."""
    replication_factor: int = -1
    fingerprint: str = ""
    """Hash of all settings that matter to the children; a changed one restarts them."""
    command: tuple[str, ...] = (sys.executable, "-m", "inference_engine.cli.main")
    worker_args: tuple[str, ...] = ()
    sink_args: tuple[str, ...] = ()
    environ: Mapping[str, str] | None = None
    """Of the children; None is this process's own."""
    kafka: EmbeddedKafka = field(default_factory=EmbeddedKafka)
    kafka_port: int | None = None
    ready_timeout_s: float = 90.0
    stop_timeout_s: float = 30.0


@dataclass(frozen=True, slots=True)
class Stack:
    """A stack that is ready."""

    brokers: str
    sink: Child
    workers: tuple[Child, ...]
    notes: tuple[str, ...]
    """What was started, restarted or cleaned to get here; empty where everything ran already."""

    @property
    def sink_url(self) -> str:
        return self.sink.url


def ensure(options: StackOptions, say: Say = _silent) -> Stack:
    """Start what isn't running, adopt what is, restart what was started with other settings.

    Safe to interrupt anywhere and to call from several commands at once: the folder's lock is held throughout, and what a dead
    command left behind is recognised by its own arguments. Raises ConfigError and Unavailable, with the end of the log of a child
    that would not start; what is ready by then goes on running.
    """
    if options.workers < 0:
        raise ConfigError(f"{options.workers} workers can't be started; say 0 or more")
    notes: list[str] = []

    def note(line: str) -> None:
        notes.append(line)
        say(line)

    with _locked(options.folder, say):
        brokers = _ensure_broker(options, note)
        made = create_topics(brokers, options.specs, replication_factor=options.replication_factor)
        if made:
            note(f"created {len(made)} topics")
        ready = _ensure_children(options, brokers, note)
    return Stack(brokers, ready[SINK], tuple(ready[worker_name(i)] for i in range(options.workers)), tuple(notes))


def ensure_broker(options: StackOptions, say: Say = _silent) -> str:
    """Only the broker; for commands that need topics and no workers. Returns its address."""
    with _locked(options.folder, say):
        return _ensure_broker(options, say)


@dataclass(frozen=True, slots=True)
class Status:
    """What runs now, without starting or stopping anything."""

    brokers: str | None
    """Address of the embedded broker; None where none runs."""
    children: Mapping[str, Child | None]
    """Live children by name; None where one isn't ready yet."""


def status(folder: DataFolder) -> Status:
    """Takes no lock, so it answers also while another command starts or stops the stack."""
    live = {process.pid for process in find_broker(folder.kafka)}
    broker = read_record(folder.kafka)
    found = children.find(folder)
    return Status(
        brokers=broker.bootstrap if broker is not None and broker.pid in live else None,
        children={name: children.ready(folder, name, process) for name, process in sorted(found.items())},
    )


def down(folder: DataFolder, say: Say = _silent, *, timeout_s: float = 30.0) -> list[str]:
    """Stop workers, then the sink, then the broker; only processes that carry this folder in their arguments. Returns what was stopped."""
    if not folder.root.exists():
        return []
    stopped: list[str] = []
    with _locked(folder, say):
        found = children.find(folder)
        for name in sorted(found, key=lambda name: (name == SINK, name)):
            _end(folder, name, found[name], timeout_s, say)
            stopped.append(name)
        if find_broker(folder.kafka):
            gracefully = EmbeddedKafka().stop(folder.kafka, timeout_s=timeout_s)
            say(
                "stopped the broker"
                if gracefully
                else f"the broker didn't end within {timeout_s:.0f} s and was killed; its log recovers at the next start"
            )
            stopped.append("broker")
        folder.stack_state.unlink(missing_ok=True)
    return stopped


@contextmanager
def _locked(folder: DataFolder, say: Say) -> Iterator[None]:
    try:
        folder.root.mkdir(parents=True, exist_ok=True)
        with held(folder.lock, say):
            yield
    except OSError as error:  # a full disk, no rights: all that is done under the lock writes only in this folder
        raise ConfigError(
            f"the data folder {folder.root} can't be written ({error}); what runs goes on. "
            f"Make room, or set {HOME_SETTING} to a folder that can be written"
        ) from error


def _ensure_broker(options: StackOptions, say: Say) -> str:
    if options.brokers:
        if find_broker(options.folder.kafka):
            say("KAFKA_BROKERS is set: the embedded broker, which still runs, is not used (`inference-engine down` stops it)")
        return options.brokers
    before = {process.pid for process in find_broker(options.folder.kafka)}
    if not before:
        fetched = recorded_classpath(options.kafka.cache_dir) is not None
        say("starting Kafka on this machine" if fetched else "fetching Apache Kafka (45 MB, once), then starting it on this machine")
    running = options.kafka.start(options.folder.kafka, port=options.kafka_port)
    if before and running.pid not in before:
        say("restarted a broker that didn't answer")
    return running.bootstrap


def _ensure_children(options: StackOptions, brokers: str, say: Say) -> dict[str, Child]:
    folder = options.folder
    wanted = _commands(options)
    fingerprints = {name: _fingerprint(options, brokers, command) for name, command in wanted.items()}
    found, known = _keep_fitting(options, fingerprints, say)
    environ = _environ(options, brokers)
    for name, command in wanted.items():
        if name not in found:
            say(f"starting {name}")
            process = children.launch(folder, name, command, environ)
            found[name] = process
            known[name] = Birth(process.pid, created_at(process.pid) or time.time(), fingerprints[name])
            children.record(folder, known)
    deadline = time.monotonic() + options.ready_timeout_s
    return {name: children.wait_ready(folder, name, found[name], deadline=deadline) for name in wanted}


def _keep_fitting(options: StackOptions, fingerprints: Mapping[str, str], say: Say) -> tuple[dict[str, psutil.Process], dict[str, Birth]]:
    """The live children that were started as wanted, and their records; all others are stopped."""
    found = children.find(options.folder)
    births = children.births(options.folder)
    for name, process in list(found.items()):
        started_with = children.started_with(process, births.get(name))
        if name in fingerprints and started_with == fingerprints[name]:
            continue
        if name in fingerprints:
            say(f"restarting {name}: " + ("an interrupted command left it behind" if started_with is None else "the settings have changed"))
        _end(options.folder, name, found.pop(name), options.stop_timeout_s, say)
    return found, {name: births[name] for name in found}


def _end(folder: DataFolder, name: str, process: psutil.Process, timeout_s: float, say: Say) -> None:
    gracefully = children.end(folder, name, process, timeout_s=timeout_s)
    say(f"stopped {name}" if gracefully else f"{name} didn't end within {timeout_s:.0f} s and was killed; its requests are taken up again")


def _commands(options: StackOptions) -> dict[str, tuple[str, ...]]:
    """The sink first: it should listen before the first cost event is made."""
    state = options.folder.state_file
    commands = {SINK: (*options.command, "sink", STATE_OPTION, str(state(SINK)), *options.sink_args)}
    for name in map(worker_name, range(options.workers)):
        commands[name] = (*options.command, "worker", STATE_OPTION, str(state(name)), *options.worker_args)
    return commands


def _environ(options: StackOptions, brokers: str) -> dict[str, str]:
    given = os.environ if options.environ is None else options.environ
    environ = {**given, "KAFKA_BROKERS": brokers, HOME_SETTING: str(options.folder.root)}
    if options.clickhouse_url:
        environ["CLICKHOUSE_URL"] = options.clickhouse_url
    return environ


def _fingerprint(options: StackOptions, brokers: str, command: tuple[str, ...]) -> str:
    parts = [options.fingerprint, brokers, options.clickhouse_url or "", *command]
    return hashlib.sha256(b"".join(len(part.encode()).to_bytes(8, "big") + part.encode() for part in parts)).hexdigest()

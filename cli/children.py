"""The child processes of one stack, the sink and the workers: found, started, waited for, stopped."""

import itertools
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import psutil

from ..connectors.data_folder import DataFolder
from ..connectors.process import ended, ours, same_process, spawn, stop, tail
from ..connectors.state_file import read_state, write_atomically
from ..pipeline.errors import ConfigError

STATE_OPTION = "--state-file"
SINK = "sink"
_BEGIN = "--- started "
"""Begins a line of a child's log, before all that the child itself writes."""


@dataclass(frozen=True, slots=True)
class Child:
    """A child that said it is ready."""

    name: str
    pid: int
    port: int
    """Loopback HTTP: health, and SQL in the sink."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@dataclass(frozen=True, slots=True)
class Birth:
    """What is recorded of a child as soon as it exists."""

    pid: int
    created: float
    fingerprint: str
    """Of everything it was started with: another one means a restart."""


def worker_name(index: int) -> str:
    return f"worker-{index}"


def find(folder: DataFolder) -> dict[str, psutil.Process]:
    """The live children of this folder by name, recognised by their own arguments, so also those nobody could record."""
    return {
        name: process for process in ours(lambda arguments: _name(folder, arguments) is not None) if (name := _name_of(folder, process))
    }


def _name_of(folder: DataFolder, process: psutil.Process) -> str | None:
    try:
        return _name(folder, process.cmdline())
    except psutil.Error:  # it ended since it was listed
        return None


def _name(folder: DataFolder, arguments: Sequence[str]) -> str | None:
    for option, value in itertools.pairwise(arguments):
        if option == STATE_OPTION:
            path = Path(value)
            if path.parent == folder.root and path.suffix == ".json":
                return path.stem
    return None


def births(folder: DataFolder) -> dict[str, Birth]:
    """What the last commands recorded; empty where nothing readable is there. Says nothing about life."""
    try:
        return {name: Birth(**birth) for name, birth in json.loads(folder.stack_state.read_text())["children"].items()}
    except (FileNotFoundError, ValueError, TypeError, KeyError, AttributeError):
        return {}


def record(folder: DataFolder, known: Mapping[str, Birth]) -> None:
    """Write the record whole or not at all."""
    write_atomically(
        folder.stack_state, json.dumps({"version": 1, "children": {name: asdict(birth) for name, birth in known.items()}}, indent=1)
    )


def launch(folder: DataFolder, name: str, command: Sequence[str], environ: Mapping[str, str]) -> psutil.Process:
    """Start one child with a clean state file. Raises ConfigError where the command can't be run.

    It works in the caller's own folder, so that `.env` and relative paths mean the same to both.
    """
    folder.state_file(name).unlink(missing_ok=True)
    folder.child_data(name).mkdir(parents=True, exist_ok=True)
    log = folder.log_file(name)
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a", encoding="utf-8") as file:
        file.write(f"{_BEGIN}{datetime.now(UTC).isoformat(timespec='seconds')}\n")
    try:
        return spawn(command, log=log, env=environ)
    except OSError as error:
        raise ConfigError(f"{name} could not be started ({command[0]}: {error}); nothing was lost") from error


def wait_ready(folder: DataFolder, name: str, process: psutil.Process, *, deadline: float) -> Child:
    """Wait for the state file of exactly this process. Raises ConfigError with the end of its log where it dies or takes too long."""
    while True:
        state = read_state(folder.state_file(name))
        if state is not None and state.pid == process.pid:
            return Child(name, state.pid, state.port)
        if ended(process, within_s=0.05):  # the pause between two looks ends early when it dies
            raise ConfigError(f"{name} ended before it was ready; no accepted request is lost. {_quoted(folder, name)}")
        if time.monotonic() > deadline:
            stop(process, timeout_s=5.0)
            raise ConfigError(
                f"{name} was not ready in time and was stopped; no accepted request is lost. On a slow machine, or with much to recover, "
                f"set START_TIMEOUT_SECONDS higher. {_quoted(folder, name)}"
            )


def ready(folder: DataFolder, name: str, process: psutil.Process) -> Child | None:
    """The child if it said that it is ready, without waiting."""
    state = read_state(folder.state_file(name))
    return Child(name, state.pid, state.port) if state is not None and state.pid == process.pid else None


def started_with(process: psutil.Process, birth: Birth | None) -> str | None:
    """The fingerprint that this process was started with; None where the record means another process."""
    return birth.fingerprint if birth is not None and same_process(process, birth.pid, birth.created) else None


def end(folder: DataFolder, name: str, process: psutil.Process, *, timeout_s: float) -> bool:
    """Stop one child and forget its state file. False where it had to be killed."""
    gracefully = stop(process, timeout_s=timeout_s)
    folder.state_file(name).unlink(missing_ok=True)
    return gracefully


def _quoted(folder: DataFolder, name: str) -> str:
    log = folder.log_file(name)
    return f"The end of {log}:\n{tail(log, after=_BEGIN)}"

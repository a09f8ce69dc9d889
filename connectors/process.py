"""Child processes that outlive the command that started them: start, recognise, stop."""

import contextlib
import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

_CLOCK_SLACK_S = 2.0
"""Linux derives a start time from the wall clock at boot: a step of the clock shifts it."""


def spawn(command: Sequence[str], *, log: Path, cwd: Path | None = None, env: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
    """Start `command` in its own session, its output appended to `log`; the death of the caller doesn't reach it."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as sink:
        return subprocess.Popen(
            list(command),
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=sink,
            start_new_session=True,
            cwd=cwd,
            env=None if env is None else dict(env),
        )


def created_at(pid: int) -> float | None:
    """Start time of a live process, seconds since the epoch; None where there is none (a zombie is none)."""
    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else process.create_time()
    except psutil.NoSuchProcess:
        return None


def find_ours(marker: str, *, pid: int | None = None, created: float | None = None) -> psutil.Process | None:
    """The live process of this user with `marker` as one of its arguments; None where there is none.

    With `pid` and `created` only that process is looked at, so that a reused pid is never taken for ours.
    """
    if pid is not None:
        started = created_at(pid)
        if started is None or (created is not None and abs(started - created) > _CLOCK_SLACK_S):
            return None
        candidate = _process(pid)
        return candidate if candidate is not None and _carries(candidate, marker) else None
    return next((process for process in psutil.process_iter() if _carries(process, marker)), None)


def _process(pid: int) -> psutil.Process | None:
    try:
        return psutil.Process(pid)
    except psutil.NoSuchProcess:
        return None


def _carries(process: psutil.Process, marker: str) -> bool:
    try:
        return (
            process.pid != os.getpid()
            and process.uids().real == os.getuid()
            and process.status() != psutil.STATUS_ZOMBIE
            and marker in process.cmdline()
        )
    except psutil.Error:  # gone in between, or another user's: not ours either way
        return False


def stop(process: psutil.Process, *, timeout_s: float) -> bool:
    """TERM, wait up to `timeout_s`, then KILL. True where it ended by itself. A process that is gone already counts as ended."""
    with contextlib.suppress(psutil.NoSuchProcess):
        process.terminate()
        try:
            _reap(process, timeout_s)
        except psutil.TimeoutExpired:
            process.kill()
            _reap(process, 10.0)
            return False
    return True


def _reap(process: psutil.Process, timeout_s: float) -> None:
    """Wait for the end; where it is our own child this also collects it."""
    process.wait(timeout=timeout_s)


def tail(path: Path, *, lines: int = 20) -> str:
    """The last lines of a log for an error message; never fails."""
    try:
        with path.open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - 16_384))
            text = file.read().decode("utf-8", "replace")
    except OSError as error:
        return f"(no log: {error})"
    return "\n".join(text.splitlines()[-lines:]) or "(the log is empty)"

"""Child processes that outlive the command that started them: start, recognise, stop."""

import contextlib
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import psutil

_CLOCK_SLACK_S = 2.0
"""Linux derives a start time from the wall clock at boot: a step of the clock shifts it."""

_started: list[subprocess.Popen[bytes]] = []
"""Kept, so that a child which ends while this command still runs can be collected."""


def spawn(command: Sequence[str], *, log: Path, cwd: Path | None = None, env: Mapping[str, str] | None = None) -> psutil.Process:
    """Start `command` in its own session, its output appended to `log`; the death of the caller doesn't reach it. Raises OSError."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as sink:
        child = subprocess.Popen(
            list(command),
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=sink,
            start_new_session=True,
            cwd=cwd,
            env=None if env is None else dict(env),
        )
    _started.append(child)
    return psutil.Process(child.pid)


def created_at(pid: int) -> float | None:
    """Start time of a live process, seconds since the epoch; None where there is none (a zombie is none)."""
    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else process.create_time()
    except psutil.NoSuchProcess:
        return None


def same_process(process: psutil.Process, pid: int, created: float) -> bool:
    """Whether a recorded pid and start time mean this process, and not an earlier holder of its pid."""
    return process.pid == pid and same_start(created_at(process.pid), created)


def same_start(now: float | None, created: float) -> bool:
    """Whether `created_at` tells of the process that was recorded with this start time."""
    return now is not None and abs(now - created) <= _CLOCK_SLACK_S


def ours(belongs: Callable[[list[str]], bool]) -> list[psutil.Process]:
    """The live processes of this user whose arguments satisfy `belongs`; their forks, which have the same arguments, are left out."""
    found = [process for process in psutil.process_iter() if _is_ours(process, belongs)]
    pids = {process.pid for process in found}
    return [process for process in found if _parent(process) not in pids]


def _is_ours(process: psutil.Process, belongs: Callable[[list[str]], bool]) -> bool:
    try:
        return (
            process.pid != os.getpid()
            and process.uids().real == os.getuid()
            and process.status() != psutil.STATUS_ZOMBIE
            and belongs(process.cmdline())
        )
    except psutil.Error:  # gone in between, or another user's: not ours either way
        return False


def _parent(process: psutil.Process) -> int | None:
    try:
        return process.ppid()
    except psutil.NoSuchProcess:
        return None


def ended(process: psutil.Process, *, within_s: float) -> bool:
    """Wait up to `within_s` for the end. A zombie has ended: its parent may be a command that will never collect it."""
    try:
        process.wait(timeout=within_s)
    except psutil.TimeoutExpired:
        return created_at(process.pid) is None
    return True


def stop(process: psutil.Process, *, timeout_s: float) -> bool:
    """TERM, wait up to `timeout_s`, then KILL with its whole group. True where it ended by itself or was gone already."""
    try:
        process.terminate()
        remaining = timeout_s
        while remaining > 0:  # in short steps: a zombie of another living command never satisfies a single long wait
            if ended(process, within_s=min(0.25, remaining)):
                return True
            remaining -= 0.25
        _kill_group(process)
    except psutil.NoSuchProcess:
        return True
    for _ in range(40):
        if ended(process, within_s=0.25):
            break
    return False


def _kill_group(process: psutil.Process) -> None:
    if not process.is_running():  # psutil compares the start time: the pid may belong to somebody else by now
        return
    with contextlib.suppress(ProcessLookupError):
        if os.getpgid(process.pid) == process.pid:  # it leads its own session, see spawn
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()


def tail(path: Path, *, lines: int = 20, after: str | None = None) -> str:
    """The last lines of a log for an error message; never fails. `after`: only those behind the last line that begins so."""
    try:
        with path.open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - 16_384))
            text = file.read().decode("utf-8", "replace")
    except OSError as error:
        return f"(no log: {error})"
    found = text.splitlines()
    begin = next((i + 1 for i in reversed(range(len(found))) if after is not None and found[i].startswith(after)), 0)
    return "\n".join(found[begin:][-lines:]) or "(the log is empty)"


def allow_open_files(count: int) -> int:
    """Raises this process's soft limit of open files to `count`, or as far as the hard limit lets it; returns what holds now.

    Where people log in it often is 1,024 (macOS: 256): fewer than calls may be in flight, and each has a connection.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count if hard == resource.RLIM_INFINITY else min(count, hard)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return soft
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return wanted


def end_within(seconds: float, code: int = 70) -> None:
    """Ends this process hard if it still lives after `seconds`: a task that ignores its cancellation, or a thread that is stuck in a
    library, holds the end of an event loop up for ever, and nobody restarts a process that hangs.
    """

    def end() -> None:
        time.sleep(seconds)
        sys.stderr.write(f"something held the end of this process up for {seconds:.0f} s: it ends here and now\n")
        sys.stderr.flush()
        os._exit(code)

    threading.Thread(target=end, name="end within", daemon=True).start()

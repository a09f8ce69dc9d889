"""The file by which a child process says that it is ready."""

import contextlib
import json
import os
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class ChildState:
    """What a ready child wrote about itself."""

    pid: int
    port: int
    """Its loopback HTTP port: health, and SQL in the sink."""
    ready_ms: int
    """UTC epoch milliseconds."""


def write_state(path: Path, *, port: int) -> ChildState:
    """Called by a child once it is ready; whole or not at all. Returns what was written."""
    state = ChildState(pid=os.getpid(), port=port, ready_ms=time.time_ns() // 1_000_000)
    write_atomically(path, json.dumps(asdict(state)))
    return state


def read_state(path: Path) -> ChildState | None:
    """None where there is no such file or it isn't a child's state."""
    try:
        return ChildState(**json.loads(path.read_text()))
    except (FileNotFoundError, ValueError, TypeError):
        return None


def remove_state(path: Path) -> None:
    """Called by a child at a clean end; fine where it is gone already."""
    path.unlink(missing_ok=True)


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write beside, flush to disk, rename: a crash leaves the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, part = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(part)
        raise

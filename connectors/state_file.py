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


def refused(path: Path) -> str | None:
    """Why a file can't be written there, found before there is anything to write; None where it can. Makes the folder."""
    if path.is_dir():
        return "it is a folder"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            return None
    except OSError as error:
        return error.strerror or str(error)


def _umask() -> int:
    """It can only be read by setting it: for threads that make files at this moment it is the strictest."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def write_atomically(path: Path, content: str | bytes, *, private: bool = True) -> None:
    """Write beside, flush to disk, rename: a crash leaves the old file or the new one.

    `private`: for this user alone, else for whom the umask allows.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, part = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        if not private:
            os.fchmod(handle, 0o666 & ~_umask())
        with os.fdopen(handle, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(part)
        raise

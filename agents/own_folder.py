"""The data folder of one worker: its own, and writable, before anything starts."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..pipeline.errors import ConfigError

PROBE = "probe"
PROBE_BYTES = 1024 * 1024
"""What the stores write in their first moments, about."""


@contextmanager
def only_worker_in(folder: Path) -> Iterator[None]:
    """Raises `ConfigError` where another worker uses the folder (two would corrupt each other's stores), or it can't be written to."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / "lock").open("w")
    except OSError as error:
        raise _not_writable(folder, error) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(f"another worker uses the data folder {folder}: give each worker a folder of its own") from None
        write_probe(folder)
        yield


def write_probe(folder: Path) -> None:
    """Raises `ConfigError` where a file of a megabyte does not reach the disk."""
    probe = folder / PROBE
    try:
        with probe.open("wb") as file:
            file.write(os.urandom(PROBE_BYTES))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise _not_writable(folder, error) from error
    finally:
        if probe.is_file():
            probe.unlink()


def _not_writable(folder: Path, error: OSError) -> ConfigError:
    return ConfigError(
        f"the data folder {folder} can't be written to ({error.strerror or error}): nothing was started and nothing is lost; "
        "free or enlarge the disk, correct its permissions, or set INFERENCE_ENGINE_HOME to another folder"
    )

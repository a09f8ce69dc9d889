"""What the benchmarks share: an engine and a simulated provider of their own, what processes cost, one table as output.

Everything is on loopback, in a temporary folder, and ended by pid.
"""

import contextlib
import http.client
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import psutil

from inference_engine.cli.stack import status
from inference_engine.connectors.data_folder import HOME_SETTING, DataFolder
from inference_engine.connectors.kafka_embedded import find_broker

MODEL = "gpt-4o-mini"
"""Any of OpenAI's that the catalogue knows."""
_COMMAND = (sys.executable, "-m", "inference_engine.cli.main")
_OWN_SETTINGS = (
    "KAFKA_",
    "OPENAI_",
    "ANTHROPIC_",
    "VLLM_",
    "CACHE_",
    "BATCH_",
    "QDRANT_",
    "CLICKHOUSE_",
    "MODELS_",
    "EMBEDDING_",
    "PROVIDER_",
)


# --- the provider ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Provider:
    """A simulated provider in a process of its own."""

    url: str
    process: psutil.Process

    @property
    def openai_url(self) -> str:
        return f"{self.url}/v1"

    def ask(self, method: str, path: str) -> dict[str, Any]:
        connection = http.client.HTTPConnection(self.url.removeprefix("http://"), timeout=10)
        try:
            connection.request(method, path)
            found: dict[str, Any] = json.loads(connection.getresponse().read())
        finally:
            connection.close()
        return found

    def bill(self) -> dict[str, Any]:
        return self.ask("GET", "/_bill")

    def reset(self) -> None:
        self.ask("POST", "/_reset")


@contextmanager
def simulated_provider(
    latency_ms: float, *, requests_per_minute: int | None = None, tokens_per_minute: int | None = None, batch_s: float = 0.0
) -> Iterator[Provider]:
    """Ends with the block. `batch_s`: how long its batches take."""
    command = [sys.executable, "-m", "inference_engine.connectors.simulated_server", "--port", "0", "--latency-ms", str(latency_ms)]
    command += ["--batch-s", str(batch_s)]
    if requests_per_minute is not None:
        command += ["--rpm", str(requests_per_minute)]
    if tokens_per_minute is not None:
        command += ["--tpm", str(tokens_per_minute)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            yield Provider(server.stdout.readline().split(" at ")[1].split()[0], psutil.Process(server.pid))
        finally:
            server.terminate()
            server.communicate()


# --- the engine ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Ran:
    """One `inference-engine run`."""

    report: Mapping[str, Any]
    """The `--json-report`."""
    wall_s: float
    """Of the command, Python's start and the look at the stack included."""
    cpu_s: float
    """Of the command's own process."""

    @property
    def seconds(self) -> float:
        """From the first request produced to the last answer on disk."""
        return float(self.report["seconds"])

    @property
    def requests_per_s(self) -> float:
        return int(self.report["answered"]) / self.seconds


@dataclass(slots=True)
class Engine:
    """An embedded stack with its own data folder."""

    home: Path
    environ: dict[str, str]
    _runs: int = field(default=0, init=False)

    def command(self, *arguments: str) -> list[str]:
        return [*_COMMAND, *arguments]

    def call(self, *arguments: str) -> str:
        """Standard output of a command. Raises `RuntimeError` with what it said where it failed."""
        done = subprocess.run(self.command(*arguments), env=self.environ, cwd=self.home, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"`inference-engine {' '.join(arguments)}` ended with {done.returncode}: {done.stderr[-3000:]}")
        return done.stdout

    def up(self) -> str:
        """The brokers, once all parts are ready."""
        return self.call("up").strip().removeprefix("KAFKA_BROKERS=")

    def down(self) -> None:
        self.call("down")

    def start_run(self, prompts: Path, *options: str) -> tuple["subprocess.Popen[bytes]", Path]:
        """The command, running, and the report it will write."""
        self._runs += 1
        report, answers = self.home / f"report-{self._runs}.json", self.home / f"answers-{self._runs}.jsonl"
        command = self.command("run", str(prompts), "-o", str(answers), "--quiet", "--json-report", str(report), *options)
        return subprocess.Popen(command, env=self.environ, cwd=self.home, stderr=subprocess.PIPE), report

    def run(self, prompts: Path, *options: str) -> Ran:
        """Answers a file. Raises `RuntimeError` where a row was not answered."""
        began = time.perf_counter()
        process, report = self.start_run(prompts, *options)
        errors = process.stderr.read() if process.stderr is not None else b""
        _, code, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(code)
        if process.returncode:
            raise RuntimeError(f"`run` ended with {process.returncode}: {errors.decode('utf-8', 'replace')[-3000:]}")
        wall = time.perf_counter() - began
        return Ran(json.loads(report.read_text()), wall, usage.ru_utime + usage.ru_stime)

    def processes(self) -> dict[str, psutil.Process]:
        """broker, sink, worker-0, ...: those that run."""
        folder = DataFolder(self.home)
        found = {name: psutil.Process(child.pid) for name, child in status(folder).children.items() if child is not None}
        return {"broker": find_broker(folder.kafka)[0], **found}


@contextmanager
def engine(provider: Provider, *, semantic: bool, start: bool = True, **settings: str) -> Iterator[Engine]:
    """A stack that asks `provider`, warm; stopped and removed with the block."""
    with tempfile.TemporaryDirectory(prefix="inference-engine-benchmark-") as folder:
        home = Path(folder).resolve()
        environ = {name: value for name, value in os.environ.items() if not name.startswith(_OWN_SETTINGS)}
        environ |= {
            HOME_SETTING: str(home),
            "OPENAI_API_KEY": "x",
            "OPENAI_BASE_URL": provider.openai_url,
            "CACHE_SEMANTIC_ENABLED": str(semantic).lower(),
            # What simulated answers say is gibberish: the learned policy would share none of them.
            "CACHE_POLICY": "static",
            **settings,
        }
        made = Engine(home, environ)
        try:
            if start:
                made.up()
            yield made
        finally:
            made.down()


# --- what it costs ---------------------------------------------------------------------------------------------------


def cpu_seconds(processes: Mapping[str, psutil.Process]) -> dict[str, float]:
    """CPU of each so far, user and system; only what still runs."""
    found: dict[str, float] = {}
    for name, process in processes.items():
        with contextlib.suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            found[name] = times.user + times.system
    return found


def megabytes(process: psutil.Process) -> float:
    """Resident memory."""
    return float(process.memory_info().rss) / 2**20


def percentile(values: Sequence[float], percent: float) -> float:
    """By nearest rank."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, round(percent / 100 * len(ordered) + 0.5) - 1))]


def spread(values: Sequence[float], form: str = ".1f") -> str:
    """median (min to max)."""
    return f"{median(values):{form}} ({min(values):{form}} to {max(values):{form}})"


# --- the table -------------------------------------------------------------------------------------------------------


def machine() -> str:
    memory = psutil.virtual_memory().total / 2**30
    return f"{os.cpu_count()} cores, {memory:.0f} GiB, {platform.system()} {platform.machine()}, Python {platform.python_version()}"


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], notes: Sequence[str] = ()) -> None:
    """Markdown, with the command that made it, the date, the machine and its load."""
    widths = [max(len(row[i]) for row in (columns, *rows)) for i in range(len(columns))]
    command = " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]])
    print(f"\n{title}\n\n    {command}\n")
    print(f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC; {machine()}; load {os.getloadavg()[0]:.1f}\n")
    for cells in (columns, ["-" * width for width in widths], *rows):
        print(
            "| " + " | ".join(_aligned(cell, width, first=i == 0) for i, (cell, width) in enumerate(zip(cells, widths, strict=True))) + " |"
        )
    for note in notes:
        print(f"\n{note}")
    sys.stdout.flush()


def _aligned(cell: str, width: int, *, first: bool) -> str:
    return cell.ljust(width) if first else cell.rjust(width)


def say(line: str) -> None:
    """Progress, on standard error."""
    print(f"{datetime.now(UTC):%H:%M:%S} {line}", file=sys.stderr, flush=True)

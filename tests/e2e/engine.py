"""One engine of its own: topics under a fresh prefix, worker and sink processes, the command line, a data folder in a temporary place."""

import json
import subprocess
import sys
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

import orjson

from inference_engine.agents.names import changelogs
from inference_engine.connectors.kafka_admin import create_topics, topic_specs
from inference_engine.connectors.simulation import Asked, answer
from inference_engine.connectors.state_file import ChildState, read_state
from inference_engine.schemas import packets
from inference_engine.schemas.ledger import (
    Ambiguous,
    BatchClosed,
    BatchPrepared,
    BatchVoid,
    Charged,
    Completion,
    Intent,
    LedgerRecord,
)
from inference_engine.schemas.responses import ResponseLine
from inference_engine.schemas.topics import Topics

from .provider import Provider, clean_environment
from .records import Reader, Writer
from .waiting import until

COMMAND = (sys.executable, "-m", "inference_engine.cli.main")
MODEL = "gpt-4o-mini"
MAX_TOKENS = 60
PARTITIONS = 4


def row(custom_id: str, text: str, *, model: str = MODEL, body: Mapping[str, Any] | None = None, **engine: Any) -> dict[str, Any]:
    """A line of a requests file; `body` has fields beside model and messages."""
    full = {"model": model, "messages": [{"role": "user", "content": text}], "max_tokens": MAX_TOKENS, **(body or {})}
    line: dict[str, Any] = {"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": full}
    return {**line, "engine": engine} if engine else line


def write_rows(path: Path, rows: Iterable[Mapping[str, Any] | bytes]) -> Path:
    """One line each; bytes stand as they are."""
    path.write_bytes(b"".join((r if isinstance(r, bytes) else orjson.dumps(r)) + b"\n" for r in rows))
    return path


def read_rows(path: Path) -> list[dict[str, Any]]:
    return [orjson.loads(line) for line in path.read_bytes().splitlines()]


def text_of(line: ResponseLine | Mapping[str, Any]) -> str:
    """The answer's words."""
    data = line.model_dump() if isinstance(line, ResponseLine) else line
    assert data["response"] is not None, data
    return str(data["response"]["body"]["choices"][0]["message"]["content"])


def expected_answer(text: str, model: str = MODEL) -> str:
    """What the provider answers to a prompt of `row`."""
    return answer(Asked(model, text, 0, MAX_TOKENS)).texts[0]


@dataclass(slots=True)
class Process:
    """A child: killed, stopped, waited for by its own handle."""

    name: str
    popen: "subprocess.Popen[bytes]"
    log: Path
    state: Path | None = None

    @property
    def alive(self) -> bool:
        return self.popen.poll() is None

    def ready(self) -> ChildState:
        """Returns what it wrote when it was ready. Raises AssertionError with its log where it ends before."""
        return until(self._ready, f"{self.name} is ready (see {self.log})", within_s=90)

    def _ready(self) -> ChildState | None:
        assert self.alive, f"{self.name} ended with {self.popen.returncode} before it was ready:\n{self.tail()}"
        found = read_state(self.state) if self.state is not None else None
        return found if found is not None and found.pid == self.popen.pid else None

    def health(self) -> dict[str, Any]:
        """The worker's own words, also where they are that it is not ready: while partitions move, for one."""
        state = read_state(self.state) if self.state is not None else None
        assert state is not None
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{state.port}/health", timeout=10) as response:
                found: dict[str, Any] = json.loads(response.read())
        except urllib.error.HTTPError as error:
            if error.code != 503:
                raise
            found = json.loads(error.read())
        return found

    def kill(self) -> None:
        """As a power cut."""
        self.popen.kill()
        self.popen.wait(30)

    def terminate(self) -> None:
        """Asks it to stop; does not wait."""
        self.popen.terminate()

    def wait(self, within_s: float = 60) -> int:
        """Its exit code."""
        try:
            return self.popen.wait(within_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.name} did not end within {within_s:.0f} s:\n{self.tail()}") from None

    def stop(self, within_s: float = 60) -> int:
        self.terminate()
        return self.wait(within_s)

    def tail(self) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-40:])


@dataclass(frozen=True, slots=True)
class Ended:
    """A command that has ended."""

    code: int
    out: str
    err: str


@dataclass(slots=True)
class Accounts:
    """What the ledger says."""

    records: list[LedgerRecord]

    @property
    def certain(self) -> int:
        """Pico-dollars that were surely paid."""
        paid = sum(r.answer.paid_pico for r in self.records if isinstance(r, Completion))
        return paid + sum(r.paid_pico for r in self.records if isinstance(r, Charged))

    @property
    def ambiguous(self) -> list[Ambiguous]:
        return [r for r in self.records if isinstance(r, Ambiguous)]

    @property
    def caps(self) -> int:
        """Pico-dollars that may have been paid beside `certain`, at most."""
        answered = {r.attempt for r in self.records if isinstance(r, Completion | Charged)}
        return sum(r.cap_pico for r in self.ambiguous if r.attempt not in answered)

    @property
    def intents(self) -> list[Intent]:
        return [r for r in self.records if isinstance(r, Intent)]

    @property
    def open(self) -> set[str]:
        """Attempts without an outcome, those of rows of batches left out."""
        return {r.attempt for r in self.intents} - {r.attempt for r in self.records if not isinstance(r, Intent) and hasattr(r, "attempt")}

    @property
    def open_batches(self) -> set[str]:
        """Batches that are neither closed nor void."""
        over = {r.batch for r in self.records if isinstance(r, BatchClosed | BatchVoid)}
        return {r.batch for r in self.records if isinstance(r, BatchPrepared)} - over


@dataclass
class Engine:
    """What a test starts, asks and reads."""

    brokers: str
    prefix: str
    home: Path
    provider: Provider
    settings: dict[str, str] = field(default_factory=dict)
    processes: list[Process] = field(default_factory=list)
    _readers: dict[str, tuple[Reader, list[Any]]] = field(default_factory=dict)
    _writer: Writer | None = None

    @classmethod
    def create(cls, brokers: str, prefix: str, home: Path, provider: Provider, **settings: str) -> "Engine":
        """With its topics, and nothing running yet."""
        home.mkdir(parents=True, exist_ok=True)
        engine = cls(brokers, prefix, home.resolve(), provider, settings)
        create_topics(brokers, topic_specs(engine.topics, PARTITIONS, changelogs(engine.topics)), replication_factor=1)
        return engine

    @property
    def topics(self) -> Topics:
        return Topics(self.prefix)

    def environment(self, **more: str) -> dict[str, str]:
        return clean_environment(
            **{
                "KAFKA_BROKERS": self.brokers,
                "KAFKA_TOPIC_PREFIX": self.prefix,
                "KAFKA_PARTITIONS": str(PARTITIONS),
                "INFERENCE_ENGINE_HOME": str(self.home),
                "OPENAI_API_KEY": "sk-test",
                "OPENAI_BASE_URL": f"{self.provider.url}/v1",
                "ANTHROPIC_API_KEY": "sk-test",
                "ANTHROPIC_BASE_URL": self.provider.url,
                "CACHE_SEMANTIC_ENABLED": "false",
                "EMBEDDING_THREADS": "1",
                **self.settings,
                **more,
            }
        )

    # --- processes ---------------------------------------------------------------------------------------------------

    def start(self, name: str, *arguments: str, state: Path | None = None, **settings: str) -> Process:
        """Starts a command in the background."""
        log = self.home / "logs" / f"{name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as sink:
            popen = subprocess.Popen(
                [*COMMAND, *arguments], stdin=subprocess.DEVNULL, stdout=sink, stderr=sink, cwd=self.home, env=self.environment(**settings)
            )
        process = Process(name, popen, log, state)
        self.processes.append(process)
        return process

    def start_worker(self, index: int = 0, *, wait: bool = True, **settings: str) -> Process:
        """A worker with the data folder of its index; `wait`: until all its partitions deliver."""
        state = self.home / f"worker-{index}.json"
        state.unlink(missing_ok=True)
        worker = self.start(f"worker-{index}", "worker", "--state-file", str(state), "--index", str(index), state=state, **settings)
        if wait:
            worker.ready()
        return worker

    def start_sink(self, *, wait: bool = True) -> Process:
        state = self.home / "sink.json"
        state.unlink(missing_ok=True)
        sink = self.start("sink", "sink", "--state-file", str(state), state=state)
        if wait:
            sink.ready()
        return sink

    def command(self, *arguments: str, within_s: float = 120, **settings: str) -> Ended:
        """Runs a command to its end."""
        done = subprocess.run(
            [*COMMAND, *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            cwd=self.home,
            env=self.environment(**settings),
            timeout=within_s,
            check=False,
        )
        return Ended(done.returncode, done.stdout.decode(), done.stderr.decode())

    def run(self, source: Path, target: Path, *arguments: str, within_s: float = 120) -> Ended:
        """`inference-engine run`, on the processes that are there."""
        return self.command("run", str(source), "-o", str(target), "--no-start", *arguments, within_s=within_s)

    def start_run(self, source: Path, target: Path, *arguments: str) -> Process:
        return self.start("run", "run", str(source), "-o", str(target), "--no-start", *arguments)

    def close(self) -> None:
        """Ends what is left."""
        for process in self.processes:
            if process.alive:
                process.kill()
        for reader, _ in self._readers.values():
            reader.close()
        self._readers.clear()

    # --- topics ------------------------------------------------------------------------------------------------------

    def produce(self, rows: Iterable[Mapping[str, Any] | bytes], *, tenant: str | None = None) -> None:
        """Writes requests as any program could; returns when the broker has them."""
        headers = [("tenant", tenant.encode())] if tenant is not None else []
        values = [r if isinstance(r, bytes) else orjson.dumps(r) for r in rows]
        self._writer = self._writer or Writer(self.brokers)
        self._writer.write(self.topics.requests, [(None, value, list(headers)) for value in values])

    def ask(self, job: str, rows: Sequence[Mapping[str, Any]], *, tenant: str = "local", within_s: float = 60) -> dict[str, ResponseLine]:
        """Produces the rows as one job and waits for all of its responses, by custom_id."""
        self.produce([{**r, "engine": {**r.get("engine", {}), "job": job}} for r in rows], tenant=tenant)
        return self.answers(job, {str(r["custom_id"]) for r in rows}, tenant=tenant, within_s=within_s)

    def answers(self, job: str, ids: set[str], *, tenant: str = "local", within_s: float = 60) -> dict[str, ResponseLine]:
        """The first response of each id, when all are there."""

        def complete() -> dict[str, ResponseLine] | None:
            found: dict[str, ResponseLine] = {}
            for line in self.responses():
                if line.engine.job == job and line.engine.tenant == tenant:
                    found.setdefault(line.custom_id, line)
            return found if ids <= found.keys() else None

        return until(complete, f"all responses of job {job}", within_s=within_s)

    def responses(self) -> list[ResponseLine]:
        """All records of `responses` so far."""
        reader, seen = self._reader(self.topics.responses)
        seen.extend(ResponseLine.model_validate_json(found.value or b"") for found in reader.more())
        return list(seen)

    @staticmethod
    def pico(line: ResponseLine) -> int:
        """What the response says that it cost."""
        return int(Decimal(line.engine.cost_usd).scaleb(12))

    def distinct(self, job: str) -> dict[str, set[tuple[str, str]]]:
        """By custom_id: the distinct (id, content) that were given as its response. Redelivery repeats one, it never adds one."""
        found: dict[str, set[tuple[str, str]]] = {}
        for line in self.responses():
            if line.engine.job == job:
                content = line.response.model_dump_json() if line.response is not None else f"error {line.error}"
                found.setdefault(line.custom_id, set()).add((line.id, content))
        return found

    def ledger(self) -> Accounts:
        """All committed records of the ledger so far."""
        reader, seen = self._reader(self.topics.ledger)
        for found in reader.more():
            records: list[LedgerRecord] = packets.ledger.decode(found.value or b"")
            seen.extend(records)
        return Accounts(list(seen))

    def raw(self, topic: str) -> list[Any]:
        """All records of a topic so far, as `Found`."""
        reader, seen = self._reader(topic)
        seen.extend(reader.more())
        return list(seen)

    def _reader(self, topic: str) -> tuple[Reader, list[Any]]:
        if topic not in self._readers:
            self._readers[topic] = (Reader(self.brokers, topic), [])
        return self._readers[topic]

    # --- costs -------------------------------------------------------------------------------------------------------

    def sql(self, query: str) -> list[dict[str, Any]]:
        """By `inference-engine sql`."""
        ended = self.command("sql", query, "-f", "json")
        assert ended.code == 0, ended.err
        found: list[dict[str, Any]] = orjson.loads(ended.out)
        return found

    def sink_sql(self, query: str) -> list[list[Any]]:
        """By the sink's own door: cheap enough to be asked again and again."""
        state = read_state(self.home / "sink.json")
        assert state is not None, "the sink does not run"
        request = urllib.request.Request(f"http://127.0.0.1:{state.port}/sql", data=query.encode())
        with urllib.request.urlopen(request, timeout=30) as response:
            rows: list[list[Any]] = orjson.loads(response.read())["rows"]
        return rows

    def stored_cost(self, where: str = "1") -> int:
        """sum(base_cost) in ClickHouse, in pico-dollars."""
        total = Decimal(str(self.sink_sql(f"SELECT toString(sum(base_cost)) FROM cost_events WHERE {where}")[0][0]))
        return int(total.scaleb(12))


def times(values: Iterable[str]) -> dict[int, int]:
    """How many of the values occur how often."""
    return dict(Counter(Counter(values).values()))

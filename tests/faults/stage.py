"""One run: an engine, its provider and its workers on a broker; rows to ask; and everything that is left, gathered as evidence."""

import os
import random
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
import psutil
from confluent_kafka import Consumer, ConsumerGroupTopicPartitions, TopicPartition
from confluent_kafka.admin import AdminClient
from pydantic import ValidationError

from inference_engine.agents.names import EXACT_TABLE, app_id
from inference_engine.connectors.state_file import read_state
from inference_engine.schemas import packets
from inference_engine.schemas.record import Lane

from ..e2e.engine import PARTITIONS, Accounts, Engine, Process, row
from ..e2e.provider import Provider
from ..e2e.records import Found, Reader, Writer
from ..e2e.waiting import until
from .evidence import Asked, Placed, Snapshot, Stored

ROOT = Path(__file__).resolve().parents[2]
MODEL = "gpt-4o-mini"
SECRET = "sk-secret-of-the-fault-tests"
TENANTS = ("acme", "globex")
SETTINGS = {
    "CALL_TIMEOUT_SECONDS": "3",
    "MAX_ATTEMPTS": "4",
    "MAX_IN_FLIGHT": "64",
    "OPENAI_API_KEY": SECRET,
    "ANTHROPIC_API_KEY": SECRET,
}


@dataclass
class Stage:
    """Made by `Stage.create`, ended by `close`."""

    engine: Engine
    provider: Provider
    random: random.Random
    asked: list[Asked] = field(default_factory=list)
    snapshots: list[Snapshot] = field(default_factory=list)
    said: dict[str, bytes] = field(default_factory=dict)
    memory_mb: dict[str, float] = field(default_factory=dict)
    workers: dict[int, Process] = field(default_factory=dict)
    sink: Process | None = None
    broken_at: float = 0.0
    """Of the last fault, by the monotonic clock."""
    kept: tuple[Stored, ...] | None = None
    """Of the cost store, where it is gone by now."""
    marks: dict[str, int] = field(default_factory=dict)
    """By name of a moment, how many requests had been asked."""
    _numbers: int = 0
    _offsets: Consumer | None = None
    _writer: Writer | None = None

    @classmethod
    def create(cls, brokers: str, folder: Path, *, seed: int = 0, latency_ms: int = 100, batch_s: float = 0, **settings: str) -> "Stage":
        folder.mkdir(parents=True, exist_ok=True)
        provider = Provider(folder, "--latency-ms", str(latency_ms), "--seed", str(seed), "--batch-s", str(batch_s))
        provider.start()
        name = f"f-{os.urandom(5).hex()}."
        try:
            engine = Engine.create(brokers, name, folder / "home", provider, **{**SETTINGS, **settings})
        except BaseException:
            provider.stop()
            raise
        return cls(engine, provider, random.Random(seed))

    def close(self) -> None:
        for process in self.workers.values():
            if process.alive:
                process.kill()
        self.engine.close()
        self.provider.stop()
        if self._offsets is not None:
            self._offsets.close()

    # --- processes ---------------------------------------------------------------------------------------------------

    def start_worker(self, index: int = 0, *, wait: bool = True, **settings: str) -> Process:
        """A worker with the folder of its index; `wait`: until its partitions deliver."""
        engine = self.engine
        state, log = engine.home / f"worker-{index}.json", engine.home / "logs" / f"worker-{index}.log"
        state.unlink(missing_ok=True)
        log.parent.mkdir(parents=True, exist_ok=True)
        # A key of its own: so the provider can tell whose calls are open.
        key = f"{SECRET}-{len(engine.processes)}"
        with log.open("ab") as out:
            popen = subprocess.Popen(
                [sys.executable, "-m", "tests.faults.worker", str(state)],
                stdin=subprocess.DEVNULL, stdout=out, stderr=out, cwd=engine.home,
                env=engine.environment(PYTHONPATH=str(ROOT), OPENAI_API_KEY=key, ANTHROPIC_API_KEY=key, **settings),
            )  # fmt: skip
        process = self.workers[index] = Process(f"worker-{index}", popen, log, state)
        engine.processes.append(process)
        if wait:
            process.ready()
        return process

    def start_workers(self, count: int, **settings: str) -> None:
        for index in range(count):
            self.start_worker(index, wait=False, **settings)
        self.until_shared(*range(count))

    def until_shared(self, *indexes: int) -> None:
        """Returns once each of these workers has partitions that deliver: asked before that, one of them may have nothing to do."""
        for index in indexes:
            self.workers[index].ready()
        until(lambda: all(self._share(i) for i in indexes), f"all of the workers {indexes} have partitions", within_s=90)

    def _share(self, index: int) -> list[int]:
        """Partitions that the worker delivers."""
        try:
            health = self.workers[index].health()
        except urllib.error.HTTPError:  # not ready
            return []
        partitions: list[int] = health["partitions"]
        return partitions

    def until_killed(self, index: int, ask: Callable[[], None]) -> None:
        """Asks, round after round, until the worker has met its crash point: how many passages a round brings is chance."""
        assert self.until_ended(index, ask) == -signal.SIGKILL, self.workers[index].tail()

    def until_ended(self, index: int, ask: Callable[[], None], rounds: int = 30) -> int:
        """Asks, round after round, until the worker ends by itself; returns its exit code."""
        worker = self.workers[index]
        for _ in range(rounds):
            ask()
            wanted = {a.key for a in self.asked}
            until(lambda: not worker.alive or wanted <= self.responded(), f"{worker.name} dies, or everyone is answered", within_s=120)  # noqa: B023
            if not worker.alive:
                break
        return worker.wait(1)

    def stand_still(self, index: int, ask: Callable[[], None], rounds: int = 30) -> None:
        """Asks, and stops the worker (SIGSTOP) when calls of its own are under way."""
        worker = self.workers[index]
        for _ in range(rounds):
            ask()
            wanted, own = {a.key for a in self.asked}, self._share(index)
            until(lambda: self._open_in(own) or wanted <= self.responded(), f"{worker.name} calls, or everyone is answered", within_s=120)  # noqa: B023
            worker.popen.send_signal(signal.SIGSTOP)
            if self._open_in(own):
                return
            worker.popen.send_signal(signal.SIGCONT)
        raise AssertionError(f"{worker.name} could not be stopped in the middle of a call")

    def _open_in(self, partitions: Iterable[int]) -> set[str]:
        """Attempts on these partitions of the ledger that have no outcome."""
        inside = set(partitions)
        found = [p.member for p in self.members(self.engine.topics.ledger, packets.ledger) if p.partition in inside]
        return Accounts(found).open

    def start_sink(self) -> None:
        self.sink = self.engine.start_sink()

    # --- asking ------------------------------------------------------------------------------------------------------

    def canary(self, tenant: str) -> str:
        return f"canary-{tenant}-{self.engine.prefix[2:8]}"

    def rows(
        self,
        count: int,
        *,
        mark: str | Callable[[], str] = "",
        repeats: float = 0.2,
        body: Mapping[str, Any] | None = None,
        tenant: str | None = None,
        spelled: bool = False,
        **fixed: Any,
    ) -> list[tuple[Asked, dict[str, Any]]]:
        """Rows of two tenants and all lanes; a part of them repeat an earlier prompt of their tenant. `mark` stands in the prompts.

        `spelled`: their numbers in letters, since prompts with other numbers never share an answer.
        """
        only, made = tenant, list[tuple[Asked, dict[str, Any]]]()
        for _ in range(count):
            tenant = only or self.random.choice(TENANTS)
            number = self._numbers = self._numbers + 1
            earlier = [a.text for a in self.asked if a.tenant == tenant] if repeats else []
            again = bool(earlier) and self.random.random() < repeats
            text = (
                self.random.choice(earlier)
                if again
                else f"{self.canary(tenant)} {mark if isinstance(mark, str) else mark()}question {_spelled(number) if spelled else number}"
            )
            options = {"job": "faults", "priority": self.random.choice(list(Lane)).value, **fixed}
            asked = Asked(tenant, "faults", f"r{number}", MODEL, text)
            made.append((asked, row(asked.custom_id, text, model=MODEL, body=body, **options)))
            self.asked.append(asked)
        return made

    def same_again(self) -> list[tuple[Asked, dict[str, Any]]]:
        """Every request so far under its own id, as one asks who has had no response."""
        return [(a, row(a.custom_id, a.text, model=a.model, job=a.job)) for a in self.asked]

    def write(self, topic: str, records: list[tuple[bytes | None, bytes | None, list[tuple[str, bytes]]]]) -> None:
        """Records as any program could write them."""
        if self._writer is None:
            self._writer = Writer(self.engine.brokers)
        self._writer.write(topic, records)

    def pause(self, least_s: float, most_s: float) -> None:
        """As long as the seed says."""
        time.sleep(self.random.uniform(least_s, most_s))

    def kill_one(self, least_s: float, most_s: float, index: int | None = None, **settings: str) -> None:
        """After a pause this worker, or any of them, is killed, and comes back at once, with these settings."""
        self.pause(least_s, most_s)
        if index is None:
            index = self.random.randrange(len(self.workers))
        self.workers[index].kill()
        self.note()
        self.start_worker(index, wait=False, **settings)

    def again(self, earlier: Iterable[Asked], **fixed: Any) -> list[tuple[Asked, dict[str, Any]]]:
        """The same prompts under ids of their own."""
        made: list[tuple[Asked, dict[str, Any]]] = []
        for a in earlier:
            self._numbers += 1
            asked = Asked(a.tenant, a.job, f"r{self._numbers}", a.model, a.text)
            made.append((asked, row(asked.custom_id, a.text, model=a.model, job=a.job, **fixed)))
            self.asked.append(asked)
        return made

    def ask(self, count: int, **how: Any) -> None:
        self.send(self.rows(count, **how))

    def send(self, rows: Iterable[tuple[Asked, Mapping[str, Any]]]) -> None:
        """Returns when the broker has them: those of the batch lane on the topic for jobs, as `run` and `submit` send them."""
        records: dict[str, list[tuple[bytes | None, bytes | None, list[tuple[str, bytes]]]]] = {topic: [] for topic in self.doors}
        for a, line in rows:
            door = self.doors[line["engine"].get("priority") == Lane.BATCH]
            records[door].append((a.custom_id.encode(), orjson.dumps(line), [("tenant", a.tenant.encode())]))
        for topic, its in records.items():
            self.write(topic, its)

    @property
    def doors(self) -> tuple[str, str]:
        """Where requests come in: anybody's, and those of jobs."""
        return self.engine.topics.requests, self.engine.topics.bulk_requests

    def while_asking(
        self, work: Callable[[], None], *, every_s: float = 0.3, count: int = 12, ask: Callable[[], None] | None = None, **how: Any
    ) -> None:
        """Asks on while `work` breaks things: as `ask` does, else `count` rows at a time."""
        done = threading.Event()
        failed: list[BaseException] = []

        def break_things() -> None:
            try:
                work()
            except BaseException as error:
                failed.append(error)
            finally:
                done.set()

        breaking = threading.Thread(target=break_things, daemon=True)
        breaking.start()
        while not done.wait(every_s):
            ask() if ask is not None else self.ask(count, **how)
        breaking.join()
        if failed:
            raise failed[0]

    # --- looking -----------------------------------------------------------------------------------------------------

    def responded(self) -> set[tuple[str, str, str]]:
        return {(line.engine.tenant, line.engine.job, line.custom_id) for line in self.engine.responses()}

    def wait_for(self, responses: int, within_s: float = 90) -> None:
        until(lambda: len(self.responded()) >= responses, f"{responses} responses", within_s=within_s)

    def passed_the_door(self) -> int:
        """Requests that are committed by the workers."""
        now = self.snapshot()
        return sum(now.committed.get((door, p), 0) for door in self.doors for p in range(PARTITIONS))

    def all_called(self) -> bool:
        """Does everything that was asked lie on the topics of calls, or behind them?"""
        now, topics = self.snapshot(), self.engine.topics
        before = {topics.requests, topics.bulk_requests, topics.lookups, topics.bulk_lookups, *map(topics.misses, Lane)}
        return all(now.committed.get(at, 0) >= end for at, end in now.ends.items() if at[0] in before)

    def until_called(self, calls: int) -> None:
        """Returns once so many calls have been intended and have no outcome."""
        until(lambda: len(self.engine.ledger().open) >= calls, f"{calls} calls are under way")

    def drain(self, within_s: float = 120) -> float:
        """Returns how many seconds after the last fault every id had its response; then waits until workers and sink are done."""
        begin = self.broken_at or time.monotonic()
        wanted = {a.key for a in self.asked}
        try:
            until(lambda: wanted <= self.responded(), "every id has a response", within_s=within_s)
        except AssertionError:
            return float("inf")
        took = time.monotonic() - begin
        until(self._idle, "the workers have committed all that there is", within_s=60)
        until(self._no_batches, "no batch is open", within_s=120)
        if self.sink is not None and self.kept is None:
            until(lambda: not self.unstored(), "the sink has stored all costs", within_s=60)
        return took

    def _idle(self) -> bool:
        now = self.snapshot()
        return all(now.committed.get(tp, 0) >= end for tp, end in now.ends.items() if tp[0] in self.worked)

    def _no_batches(self) -> bool:
        return not self.engine.ledger().open_batches

    def unstored(self) -> int:
        """Packets of costs that the sink has not stored."""
        return sum(self._watermarks(*at)[1] - offset for at, offset in self._sunk().items())

    def _sunk(self) -> dict[tuple[str, int], int]:
        """Offsets that the sink has committed."""
        group = f"{self.engine.prefix}inference-engine-sink"
        topic = self.engine.topics.costs
        wanted = [TopicPartition(topic, p) for p in range(PARTITIONS)]
        admin = AdminClient({"bootstrap.servers": self.engine.brokers, "log_level": 0})
        listed = admin.list_consumer_group_offsets([ConsumerGroupTopicPartitions(group, wanted)])[group].result(10)
        return {(topic, at.partition): max(0, at.offset) for at in listed.topic_partitions}

    @property
    def worked(self) -> list[str]:
        """The topics that workers read."""
        t = self.engine.topics
        by_lane = [topic for lane in Lane for topic in (t.misses(lane), t.calls(lane))]
        return [*self.doors, t.lookups, t.bulk_lookups, t.answers, t.ledger, *by_lane]

    @property
    def rows_topic(self) -> str:
        """The changelog of the exact tier."""
        return f"{app_id(self.engine.topics)}-{EXACT_TABLE}-changelog"

    @property
    def written(self) -> list[str]:
        """All topics on which something may be durable that a committed offset stands for."""
        t = self.engine.topics
        return [*self.worked, t.vectors, t.costs, t.responses, self.rows_topic]

    def _watermarks(self, topic: str, partition: int) -> tuple[int, int]:
        if self._offsets is None:
            self._offsets = Consumer(
                {
                    "bootstrap.servers": self.engine.brokers,
                    "group.id": app_id(self.engine.topics),
                    "enable.auto.commit": False,
                    # What was acknowledged is durable, also where somebody's transaction before it is still open.
                    "isolation.level": "read_uncommitted",
                    "log_level": 0,
                }
            )
        low, high = self._offsets.get_watermark_offsets(TopicPartition(topic, partition), timeout=15)
        return low, high

    def snapshot(self, *, whole: bool = False) -> Snapshot:
        """Committed offsets first: what they promise must be durable by now. `whole`: with the sink's, and all topics."""
        topics = self.worked
        self._watermarks(topics[0], 0)
        assert self._offsets is not None
        asked = [TopicPartition(topic, p) for topic in topics for p in range(PARTITIONS)]
        committed = {(tp.topic, tp.partition): tp.offset for tp in self._offsets.committed(asked, timeout=15) if tp.offset >= 0}
        if whole and self.sink is not None:
            committed |= self._sunk()
        ends = {(topic, p): self._watermarks(topic, p)[1] for topic in (self.written if whole else topics) for p in range(PARTITIONS)}
        return Snapshot(committed, ends)

    def truncated(self) -> bool:
        """Were rows of waiters deleted from their changelog?"""
        return any(self._watermarks(self.rows_topic, p)[0] for p in range(PARTITIONS))

    def note(self) -> None:
        """Something was broken just now: keeps a snapshot for the evidence, and the time, from which the drain counts."""
        self.broken_at = time.monotonic()
        self.snapshots.append(self.snapshot(whole=True))

    def mark(self, moment: str) -> None:
        """What is asked from now on comes after this moment."""
        self.marks[moment] = len(self.asked)

    def listen(self) -> None:
        """Keeps what the workers say of themselves for the evidence, and how much memory they have taken."""
        for process in [*self.workers.values(), *([self.sink] if self.sink is not None else [])]:
            if process.alive:
                self.memory_mb[process.name] = most_memory_mb(process.popen.pid)
        for index, process in self.workers.items():
            state = read_state(process.state) if process.alive and process.state is not None else None
            if state is None:
                continue
            for path in ("health", "metrics"):
                try:
                    with urllib.request.urlopen(f"http://127.0.0.1:{state.port}/{path}", timeout=10) as answer:
                        self.said[f"{path} of worker {index}"] = answer.read()
                except urllib.error.HTTPError as error:
                    self.said[f"{path} of worker {index}"] = error.read()

    # --- topics ------------------------------------------------------------------------------------------------------

    def raw(self, topic: str) -> list[Found]:
        """All records of a topic now."""
        reader = Reader(self.engine.brokers, topic)
        try:
            return reader.more()
        finally:
            reader.close()

    def members(self, topic: str, codec: Any) -> Iterable[Placed[Any]]:
        """Of all packets of a topic, each partition by itself."""
        for found in sorted(self.raw(topic), key=lambda f: (f.partition, f.offset)):
            try:
                members = codec.decode(found.value or b"")
            except ValidationError:
                continue  # garbage that a test has put there
            for member in members:
                yield Placed(topic, found.partition, found.offset, member)


def most_memory_mb(pid: int) -> float:
    """The largest resident size that the process has had (Linux; elsewhere the present one)."""
    status = Path(f"/proc/{pid}/status")
    if status.exists():
        return next(int(line.split()[1]) / 1024 for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    return float(psutil.Process(pid).memory_info().rss) / 2**20


def _spelled(number: int) -> str:
    return str(number).translate(str.maketrans("0123456789", "abcdefghij"))

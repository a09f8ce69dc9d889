"""Why `agents/safe` is there: the same agents, the same faults; plain Faust loses records, ours loses none.

Each hazard is provoked, not waited for. Those of the design, and the pair that shows each (G: in `test_plain_faust_groups.py`):

    commits past an event that is still in flight        test_an_event_in_flight_while_later_ones_finish
    an exception acknowledges the event                  test_an_exception_in_an_agent
    an exception in a `take()` batch                     test_an_exception_in_a_batch
    `send` only enqueues; the broker refuses             test_a_record_that_the_broker_refuses
    table writes ride a buffer                           test_a_broker_that_is_slow_with_the_changelog
    an oversized table write                             test_a_table_row_that_is_larger_than_a_record
    a topic created after the start                      test_a_topic_that_is_made_after_the_start
    two workers start a moment apart                     G: test_a_second_worker_that_starts_while_the_first_one_finds_out_where_to_read
    `stream_wait_empty`: a long event, a worker joins    G: test_a_long_event_while_a_second_worker_comes
    a table write outside of an event                    test_a_table_row_outside_of_an_event
    the web server                                       test_a_web_server_that_shows_tables_to_the_network
    `exactly_once`                                       test_an_event_in_flight_while_transactions_are_on
"""

import shutil
import socket
import subprocess
import sys
import urllib.request
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import orjson
import psutil
import pytest
from confluent_kafka import Consumer, TopicPartition
from confluent_kafka.admin import AdminClient

from inference_engine.connectors.kafka_admin import create_topics
from inference_engine.schemas.topics import TopicSpec

from ..e2e.provider import clean_environment
from ..e2e.records import Reader, Writer
from ..e2e.waiting import until
from .faust_worker import HUNG, IN_A_BATCH, LARGE_ROW, OUTSIDE, RAISED, REFUSED
from .stage import ROOT

IDS = [b"%d" % n for n in range(30)]
LAST = b"99"
HAZARDS = ("flight", "exception", "batch", "refused", "rows")


@dataclass
class Bench:
    """Topics of one partition each, and a worker of one mode."""

    brokers: str
    prefix: str
    folder: Path
    mode: str
    worker: "subprocess.Popen[bytes] | None" = None

    @property
    def group(self) -> str:
        return f"{self.prefix}{self.mode}"

    @property
    def changelog(self) -> str:
        return f"{self.group}-rows-changelog"

    def create(self) -> None:
        names = [*HAZARDS, *(f"{name}-out" for name in (*HAZARDS, "late", "outside") if name != "refused")]
        specs = [TopicSpec(f"{self.prefix}{name}", 1) for name in names]
        specs.append(TopicSpec(f"{self.prefix}refused-out", 1, (("max.message.bytes", "2000"),)))
        specs.append(TopicSpec(self.changelog, 1, (("cleanup.policy", "compact"),)))
        create_topics(self.brokers, specs, replication_factor=1)

    def start(self, state: str, **settings: str) -> None:
        with self._log(state).open("wb") as out:
            self.worker = subprocess.Popen(
                [sys.executable, "-m", "tests.faults.faust_worker", self.mode, self.brokers, self.prefix, str(self.folder / "data"), state],
                stdout=out, stderr=out, cwd=self.folder, env=clean_environment(PYTHONPATH=str(ROOT), **settings),
            )  # fmt: skip

    def said(self, state: str) -> str:
        return self._log(state).read_text(errors="replace")

    def _log(self, state: str) -> Path:
        return self.folder / f"{self.mode}-{state}.log"

    @property
    def ended(self) -> bool:
        return self.worker is not None and self.worker.poll() is not None

    def ports(self) -> set[int]:
        """On which the worker listens."""
        assert self.worker is not None
        return {link.laddr.port for link in psutil.Process(self.worker.pid).net_connections() if link.status == psutil.CONN_LISTEN}

    def members(self) -> int:
        admin = AdminClient({"bootstrap.servers": self.brokers, "log_level": 2})
        return len(admin.describe_consumer_groups([self.group])[self.group].result().members)

    def kill(self) -> None:
        if self.worker is not None:
            self.worker.kill()
            self.worker.wait()

    def write(self, name: str, values: list[bytes]) -> None:
        Writer(self.brokers).write(f"{self.prefix}{name}", [(None, value, []) for value in values])

    def read(self, topic: str) -> list[bytes]:
        reader = Reader(self.brokers, topic)
        try:
            return [(found.value or b"").strip() for found in reader.more()]
        finally:
            reader.close()

    def out(self, name: str) -> set[bytes]:
        return set(self.read(f"{self.prefix}{name}-out"))

    def committed(self, name: str) -> int:
        consumer = Consumer({"bootstrap.servers": self.brokers, "group.id": self.group, "log_level": 0})
        try:
            return max(0, consumer.committed([TopicPartition(f"{self.prefix}{name}", 0)], timeout=15)[0].offset)
        finally:
            consumer.close()


@pytest.fixture(scope="module", params=["plain", "safe"])
def bench(request: pytest.FixtureRequest, kafka: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """All faults at once, kill -9, then a worker without faults that does what is left."""
    folder = tmp_path_factory.mktemp(request.param)
    bench = Bench(kafka, f"p-{uuid.uuid4().hex[:12]}.", folder, request.param)
    bench.create()
    try:
        bench.start("broken")
        for name in HAZARDS:
            bench.write(name, IDS)
        until(lambda: quick_ones_done(bench), "all that can be done is done", within_s=120)
        if bench.mode == "plain":
            until(lambda: all(bench.committed(name) == len(IDS) for name in HAZARDS), "plain Faust has committed everything", within_s=60)
        bench.kill()
        shutil.rmtree(folder / "data", ignore_errors=True)
        bench.start("well")
        for name in HAZARDS:
            bench.write(name, [LAST])
        until(lambda: all(LAST in bench.out(name) for name in HAZARDS), "the last ids are out", within_s=120)
        if bench.mode == "safe":
            until(lambda: all(bench.committed(name) == len(IDS) + 1 for name in HAZARDS), "everything is done", within_s=60)
        yield bench
    finally:
        bench.kill()


def quick_ones_done(bench: Bench) -> bool:
    return len(bench.out("flight")) >= len(IDS) - 1 and IDS[-1] in bench.out("exception") and IDS[-1] in bench.out("refused")


def lost(bench: Bench, name: str) -> set[bytes]:
    return set(IDS) - bench.out(name)


def expect(bench: Bench, found: set[bytes], plain: set[bytes]) -> None:
    assert found == (plain if bench.mode == "plain" else set())


def test_an_event_in_flight_while_later_ones_finish(bench: Bench) -> None:
    """Plain Faust commits past it, and a crash loses it."""
    expect(bench, lost(bench, "flight"), {HUNG})


def test_an_exception_in_an_agent(bench: Bench) -> None:
    """Plain Faust acknowledges the event."""
    expect(bench, lost(bench, "exception"), {RAISED})


def test_an_exception_in_a_batch(bench: Bench) -> None:
    """Plain Faust loses the whole batch, and the ids that were taken with it."""
    found = lost(bench, "batch")
    assert (IN_A_BATCH in found and len(found) > 1) if bench.mode == "plain" else found == set()


def test_a_record_that_the_broker_refuses(bench: Bench) -> None:
    """Plain Faust only queues it: nobody hears of the refusal, the source is acknowledged, and its batch goes with it."""
    found = lost(bench, "refused")
    assert (set(REFUSED) <= found) if bench.mode == "plain" else found == set()


def test_a_broker_that_is_slow_with_the_changelog(bench: Bench) -> None:
    """Plain Faust acknowledges events whose rows wait in a buffer: after the crash the rows are gone."""
    rows = set(bench.read(bench.changelog)) - {b'"99"', b"99"}
    expect(bench, set(IDS) - {row.strip(b'"') for row in rows}, set(IDS))


@pytest.mark.parametrize("mode", ["plain", "safe"])
def test_a_table_row_that_is_larger_than_a_record(mode: str, kafka: str, tmp_path: Path) -> None:
    """Plain Faust ends; whoever starts it again sees it end again, or finds that it had committed the event, whose row is nowhere.
    Ours refuses the row and goes on."""
    bench = Bench(kafka, f"p-{uuid.uuid4().hex[:12]}.", tmp_path, mode)
    bench.create()
    try:
        bench.write("rows", IDS)
        bench.start("large")
        assert bench.worker is not None
        if mode == "plain":
            until(lambda: bench.ended, "the worker has ended")
            assert bench.worker.poll() != 0
            bench.start("large")
            bench.write("rows", [LAST])
            until(lambda: bench.ended or LAST in bench.out("rows"), "it has ended again, or gone on")
            assert max(map(len, bench.read(bench.changelog)), default=0) < 1_000_000
        else:
            until(lambda: bench.out("rows") == {*IDS} - {LARGE_ROW}, "all other rows are written")
            assert bench.worker.poll() is None
    finally:
        bench.kill()


@pytest.mark.parametrize("mode", ["plain", "safe"])
def test_a_topic_that_is_made_after_the_start(mode: str, kafka: str, tmp_path: Path) -> None:
    """Plain Faust stays and never reads it; ours ends and names the topic, and reads all of it once it is there."""
    bench = Bench(kafka, f"p-{uuid.uuid4().hex[:12]}.", tmp_path, mode)
    bench.create()
    late = f"{bench.prefix}late"
    try:
        bench.start("late")
        if mode == "plain":
            bench.write("flight", [b"0"])
            until(lambda: b"0" in bench.out("flight"), "the worker is at work")
        else:
            until(lambda: bench.ended, "the worker has ended")
            assert f"topics do not exist: {late}." in bench.said("late")
        create_topics(kafka, [TopicSpec(late, 1)], replication_factor=1)
        bench.write("late", IDS)
        if mode == "plain":
            bench.write("flight", [LAST])
            until(lambda: LAST in bench.out("flight"), "an id that was asked later, on a topic that was there")
            assert not bench.ended
            assert bench.out("late") == set()
        else:
            bench.start("late")
            until(lambda: bench.out("late") == set(IDS), "all ids")
    finally:
        bench.kill()


def test_a_table_row_outside_of_an_event(bench: Bench) -> None:
    """Plain Faust raises TypeError and the row is nowhere; ours is on the changelog when the write returns."""
    said = until(lambda: bench.out("outside"), "the row was written, or was refused")
    rows = {row.strip(b'"') for row in bench.read(bench.changelog)}
    if bench.mode == "plain":
        assert OUTSIDE not in said | rows
    else:
        assert said == {OUTSIDE}
        assert OUTSIDE in rows


@pytest.mark.parametrize("mode", ["plain", "safe"])
def test_a_web_server_that_shows_tables_to_the_network(mode: str, kafka: str, tmp_path: Path) -> None:
    """Plain Faust opens a port without being asked, shows every row to whoever comes, and ends where another worker has the port.
    Ours opens none, and two of them live on one machine."""
    first = Bench(kafka, f"p-{uuid.uuid4().hex[:12]}.", tmp_path, mode)
    second = replace(first, folder=tmp_path / "second")
    second.folder.mkdir()
    first.create()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    address = {"WEB_PORT": str(port), "WEB_BIND": "127.0.0.1"}  # without WEB_BIND it is 0.0.0.0
    try:
        first.start("web", **address)
        first.write("rows", IDS)
        until(lambda: first.out("rows") == set(IDS), "all rows are written")
        if mode == "plain":
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/table/rows/{IDS[5].decode()}/", timeout=15) as answer:
                assert orjson.loads(answer.read()) == IDS[5].decode()
        assert first.ports() == ({port} if mode == "plain" else set())
        second.start("web", **address)
        if mode == "plain":
            until(lambda: second.ended, "the second worker has ended")
            assert "address already in use" in second.said("web").lower()
        else:
            until(lambda: first.members() == 2, "both are in the group")
            assert not first.ended
            assert not second.ended
    finally:
        first.kill()
        second.kill()


@pytest.mark.parametrize("mode", ["plain", "safe"])
def test_an_event_in_flight_while_transactions_are_on(mode: str, kafka: str, tmp_path: Path) -> None:
    """`exactly_once` of plain Faust commits past it all the same."""
    bench = Bench(kafka, f"p-{uuid.uuid4().hex[:12]}.", tmp_path, mode)
    bench.create()
    try:
        bench.start("transactions")
        bench.write("flight", IDS)
        until(lambda: len(bench.out("flight")) == len(IDS) - 1, "all others are done")
        bench.write("exception", [LAST])
        until(lambda: bench.committed("exception") == 1, "what was done before this is committed too")
        if mode == "plain":
            until(lambda: bench.committed("flight") == len(IDS), "plain Faust has committed everything")
        bench.kill()
        bench.start("transactions-well")
        bench.write("flight", [LAST])
        until(lambda: LAST in bench.out("flight") and (mode == "plain" or HUNG in bench.out("flight")), "the last id is out")
        expect(bench, lost(bench, "flight"), {HUNG})
    finally:
        bench.kill()

"""Two workers of one group, without any crash: what plain Faust loses or holds up, and ours does not.

Each step that makes the difference is held until the other worker has done its part: see `faust_member`.
"""

import subprocess
import sys
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient

from inference_engine.connectors.kafka_admin import create_topics
from inference_engine.schemas.topics import TopicSpec

from ..e2e.provider import clean_environment
from ..e2e.records import Reader
from ..e2e.waiting import until
from .faust_member import COMMITTED, RECORDS
from .stage import ROOT

PARTITIONS = (0, 1)


@dataclass
class Group:
    """One topic of two partitions, and up to two workers of one mode that share it."""

    brokers: str
    prefix: str
    folder: Path
    mode: str
    name: str = ""
    workers: dict[str, "subprocess.Popen[bytes]"] = field(default_factory=dict)

    @property
    def group(self) -> str:
        return f"{self.prefix}{self.mode}"

    def create(self, name: str) -> None:
        self.name = name
        create_topics(self.brokers, [TopicSpec(f"{self.prefix}{each}", 2) for each in (name, f"{name}-out")], replication_factor=1)

    def start(self, place: str) -> None:
        folder = self.folder / place
        folder.mkdir(exist_ok=True)
        with (self.folder / f"{place}.log").open("wb") as out:
            self.workers[place] = subprocess.Popen(
                [sys.executable, "-m", "tests.faults.faust_member", self.mode, self.brokers, self.prefix, str(folder), place, self.name],
                stdout=out, stderr=out, cwd=folder, env=clean_environment(PYTHONPATH=str(ROOT)),
            )  # fmt: skip

    def kill(self) -> None:
        for worker in self.workers.values():
            worker.kill()
            worker.wait()
        self.workers.clear()

    def file(self, name: str) -> Path:
        """By which the first worker and the test tell each other how far they are."""
        return self.folder / "first" / name

    def write(self, numbers: range) -> None:
        producer = Producer({"bootstrap.servers": self.brokers, "acks": "all", "log_level": 2})
        for partition in PARTITIONS:
            for number in numbers:
                producer.produce(f"{self.prefix}{self.name}", identity(partition, number), partition=partition)
        assert producer.flush(30) == 0

    def commit(self, offset: int) -> None:
        """As if the group had run before."""
        with_group = Consumer({"bootstrap.servers": self.brokers, "group.id": self.group, "log_level": 2})
        try:
            with_group.commit(
                offsets=[TopicPartition(f"{self.prefix}{self.name}", partition, offset) for partition in PARTITIONS], asynchronous=False
            )
        finally:
            with_group.close()

    def out(self) -> set[bytes]:
        reader = Reader(self.brokers, f"{self.prefix}{self.name}-out")
        try:
            return {found.value or b"" for found in reader.more()}
        finally:
            reader.close()

    def committed(self) -> list[int]:
        """On each partition."""
        consumer = Consumer({"bootstrap.servers": self.brokers, "group.id": self.group, "log_level": 2})
        try:
            found = consumer.committed([TopicPartition(f"{self.prefix}{self.name}", partition) for partition in PARTITIONS], timeout=15)
            return [at.offset for at in found]
        finally:
            consumer.close()

    def members(self) -> int:
        admin = AdminClient({"bootstrap.servers": self.brokers, "log_level": 2})
        return len(admin.describe_consumer_groups([self.group])[self.group].result().members)


def identity(partition: int, number: int) -> bytes:
    return b"%d-%d" % (partition, number)


def identities(numbers: range) -> set[bytes]:
    return {identity(partition, number) for partition in PARTITIONS for number in numbers}


@pytest.fixture(params=["plain", "safe"])
def group(request: pytest.FixtureRequest, kafka: str, tmp_path: Path) -> Iterator[Group]:
    group = Group(kafka, f"p-{uuid.uuid4().hex[:12]}.", tmp_path, request.param)
    try:
        yield group
    finally:
        group.kill()


def test_a_second_worker_that_starts_while_the_first_one_finds_out_where_to_read(group: Group) -> None:
    """Plain Faust lets records in that belong to the next generation, empties the queues in which they are, and takes the hole for
    offsets that were compacted away: it commits past records that nobody has handled."""
    group.create("start")
    group.write(range(RECORDS))
    group.commit(COMMITTED)
    group.start("first")
    until(group.file("asked").exists, "the first worker has asked where the group stands")
    group.start("second")
    until(lambda: len(group.out()) >= RECORDS - COMMITTED, "the second worker has done its partition")
    group.file("told").touch()
    if group.mode == "plain":
        until(lambda: len(group.out()) > RECORDS - COMMITTED, "the first worker is at work too")
    more = range(RECORDS, RECORDS + 1)
    group.write(more)
    until(lambda: identities(more) <= group.out(), "what came later is done")
    until(lambda: group.committed() == [RECORDS + 1] * len(PARTITIONS), "and committed")
    group.kill()
    group.start("second")
    last = range(RECORDS + 1, RECORDS + 2)
    group.write(last)
    asked = identities(range(COMMITTED, RECORDS + 2))
    until(lambda: identities(last) <= group.out() and (group.mode == "plain" or asked <= group.out()), "the last ids are out")
    lost = asked - group.out()
    if group.mode == "plain":
        assert lost in [{identity(partition, number) for number in range(COMMITTED + 1, RECORDS)} for partition in PARTITIONS]
    else:
        assert lost == set()


def test_a_long_event_while_a_second_worker_comes(group: Group) -> None:
    """With `stream_wait_empty`, on by default, nobody but the worker with the long event has a partition until it is done."""
    group.create("long")
    group.write(range(3))
    group.start("first")
    until(group.file("begun").exists, "the long event has begun")
    group.start("second")
    until(lambda: group.members() == 2, "the second worker asks for partitions")
    if group.mode == "plain":
        until(lambda: group.file("rounds").exists() and int(group.file("rounds").read_text() or 0) >= 3, "the first one holds on to them")
        assert group.out() == set()
    else:
        until(
            lambda: any({identity(partition, number) for number in range(3)} <= group.out() for partition in PARTITIONS),
            "its partition is done",
        )
    assert not group.file("free").exists()
    group.file("free").touch()
    until(lambda: group.out() == identities(range(3)), "all ids")

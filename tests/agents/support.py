"""A world in memory for the stage runners: rows in dicts, topics in lists."""

import asyncio
from collections import defaultdict
from collections.abc import Iterable, Mapping

import orjson

from inference_engine.agents.outbox import Outbox
from inference_engine.agents.safe import Delivered
from inference_engine.schemas.record import JsonObject, Lane
from inference_engine.schemas.topics import Topics

from ..pipeline.support import NOW

TOPICS = Topics()


class MemoryRows:
    """The table's rows; a write begins late, as the real one's does during a rebalance. `refuse` makes it refuse everything."""

    def __init__(self) -> None:
        self.rows: dict[int, dict[bytes, bytes]] = defaultdict(dict)
        self.refuse = False

    def read(self, partition: int, key: bytes) -> bytes | None:
        return self.rows[partition].get(key)

    async def write(self, partition: int, changes: Mapping[bytes, bytes | None]) -> None:
        await asyncio.sleep(0)
        if self.refuse:
            raise ConnectionError("the table refuses")
        for key, value in changes.items():
            if value is None:
                self.rows[partition].pop(key, None)
            else:
                self.rows[partition][key] = value
        await asyncio.sleep(0)

    def scan(self, partition: int) -> Iterable[tuple[bytes, bytes]]:
        return list(self.rows[partition].items())


class MemoryBroker:
    """Topics as lists of (partition, value). `refuse` makes it refuse everything."""

    def __init__(self) -> None:
        self.topics: dict[str, list[tuple[int | None, bytes]]] = defaultdict(list)
        self.refuse = False

    async def append(self, topic: str, key: bytes | None, value: bytes, *, partition: int | None = None) -> int:
        await asyncio.sleep(0)
        if self.refuse:
            raise ConnectionError("the broker refuses")
        self.topics[topic].append((partition, value))
        return len(self.topics[topic]) - 1

    def members(self, topic: str) -> list[JsonObject]:
        """All members of all packets, or all records where the topic has no packets."""
        found: list[JsonObject] = []
        for _, value in self.topics[topic]:
            data = orjson.loads(value)
            found += data if isinstance(data, list) else [data]
        return found

    def responses(self) -> list[JsonObject]:
        return self.members(TOPICS.responses)


class Clock:
    """A clock that is moved by hand."""

    def __init__(self) -> None:
        self.ms = NOW

    def __call__(self) -> int:
        return self.ms


class KeepAll:
    """A keeper with room for everything."""

    def insert(self, partition: int, key: bytes, size: int, saved_pico: int, now_ms: int) -> list[bytes]:
        return []

    def touch(self, partition: int, key: bytes, now_ms: int) -> None:
        return None

    def revalue(self, partition: int, key: bytes, saved_pico: int) -> None:
        return None

    def remove(self, partition: int, key: bytes) -> None:
        return None

    def drop(self, partition: int) -> None:
        return None


def outbox(broker: MemoryBroker, partitions: int = 1) -> Outbox:
    return Outbox(broker.append, TOPICS, partitions)


def event(topic: str, value: bytes, *, partition: int = 0, offset: int = 0, headers: tuple[tuple[str, bytes], ...] = ()) -> Delivered:
    return Delivered(topic=topic, partition=partition, offset=offset, key=None, value=value, headers=headers)


LANES = tuple(Lane)

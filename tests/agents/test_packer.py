"""Packets: members of a partition travel together, and nobody is told before the broker has them."""

import asyncio

import pytest

from inference_engine.agents.packer import Packer, settle
from inference_engine.schemas import packets
from inference_engine.schemas.requests import Miss

from ..pipeline.support import identity, request


class Broker:
    """Remembers records; acknowledges when let."""

    def __init__(self) -> None:
        self.records: list[tuple[int | None, bytes]] = []
        self.gate = asyncio.Event()
        self.error: Exception | None = None

    async def __call__(self, topic: str, key: bytes | None, value: bytes, *, partition: int | None = None) -> int:
        self.records.append((partition, value))
        await self.gate.wait()
        if self.error is not None:
            raise self.error
        return len(self.records)


def miss(i: int) -> Miss:
    return Miss(request=request(who=identity(f"r{i}")))


async def test_the_first_member_leaves_at_once_and_later_ones_share_a_packet() -> None:
    broker = Broker()
    packer = Packer(broker, "misses", packets.misses)
    packer.put(0, miss(0), 10.0)
    await asyncio.sleep(0.01)
    later = [packer.put(0, miss(i), 10.0) for i in (1, 2)]
    await asyncio.sleep(0.01)
    assert len(broker.records) == 1
    later.append(packer.put(0, miss(3), 0.0))  # more urgent: takes the others along
    await asyncio.sleep(0.01)
    assert [len(packets.misses.decode(value)) for _, value in broker.records] == [1, 3]
    assert len({id(f) for f in later}) == 1


async def test_a_packet_is_done_when_the_broker_has_it() -> None:
    broker = Broker()
    future = Packer(broker, "misses", packets.misses).put(1, miss(0), 0.0)
    await asyncio.sleep(0.01)
    assert not future.done()
    broker.gate.set()
    await settle([future, future])
    assert broker.records[0][0] == 1


async def test_a_refused_packet_fails_every_member() -> None:
    broker = Broker()
    broker.error = ConnectionError("refused")
    broker.gate.set()
    packer = Packer(broker, "misses", packets.misses)
    futures = [packer.put(0, miss(i), 0.0) for i in range(3)]
    for future in futures:
        with pytest.raises(ConnectionError):
            await settle([future])


async def test_packets_respect_their_limits() -> None:
    broker = Broker()
    broker.gate.set()
    packer = Packer(broker, "misses", packets.misses, max_members=lambda: 4, max_bytes=100_000)
    await settle([packer.put(0, miss(i), 0.01) for i in range(10)])
    sizes = [len(packets.misses.decode(value)) for _, value in broker.records]
    assert sum(sizes) == 10
    assert max(sizes) <= 4


async def test_a_member_that_stops_waiting_does_not_harm_the_others() -> None:
    broker = Broker()
    packer = Packer(broker, "misses", packets.misses)
    future = packer.put(0, miss(0), 0.0)
    impatient = asyncio.create_task(settle([future]))
    patient = asyncio.create_task(settle([future]))
    await asyncio.sleep(0.01)
    impatient.cancel()
    broker.gate.set()
    await patient


async def test_members_of_different_keys_travel_apart() -> None:
    """A tenant's packet on its way to the provider holds nobody else's calls."""
    records: list[tuple[bytes | None, int]] = []

    async def append(topic: str, key: bytes | None, value: bytes, *, partition: int | None = None) -> int:
        records.append((key, len(packets.misses.decode(value))))
        return len(records)

    packer = Packer(append, "misses", packets.misses)
    packer.put(0, miss(0), 0.0, b"a")
    await settle([packer.put(0, miss(i), 0.01, b"ab"[i % 2 : i % 2 + 1]) for i in range(10)])
    assert sorted(records) == [(b"a", 1), (b"a", 5), (b"b", 5)] or sorted(records) == [(b"a", 6), (b"b", 5)]

"""Misses meet where they may share, and are spread where nothing can be shared."""

import asyncio
from pathlib import Path

import pytest

from inference_engine.agents.compose import compose
from inference_engine.agents.outbox import Outbox
from inference_engine.agents.settings import CachingConfig, Settings
from inference_engine.agents.worker import Worker
from inference_engine.schemas.record import Lane
from inference_engine.schemas.requests import Miss

from ..pipeline.support import identity, request
from .support import TOPICS, MemoryBroker


async def partitions_of(box: Outbox, broker: MemoryBroker, count: int) -> set[int | None]:
    """Where misses of one scope go."""
    sends = box.batch()
    for i in range(count):
        sends.miss(Miss(request=request(f"question {i}", who=identity(f"r{i}"))))
    await sends.settle()
    return {partition for partition, _ in broker.topics[TOPICS.misses(Lane.STANDARD)]}


@pytest.mark.parametrize(("semantic", "partitions"), [(True, 1), (False, 8)])
async def test_one_scope_meets_on_one_partition_only_where_the_semantic_tier_is_on(semantic: bool, partitions: int) -> None:
    broker = MemoryBroker()
    box = Outbox(broker.append, TOPICS, 8, semantic=semantic)
    assert len(await partitions_of(box, broker, 100)) == partitions


def test_a_worker_without_the_semantic_tier_spreads_its_misses(tmp_path: Path) -> None:
    settings = Settings(kafka_brokers="127.0.0.1:9", caching=CachingConfig(semantic_enabled=False), home=tmp_path, kafka_partitions=8)

    async def main() -> set[int | None]:
        box, broker = Worker(compose(settings, tmp_path)).outbox, MemoryBroker()
        for packer in box.packers.misses.values():
            packer._append = broker.append
        return await partitions_of(box, broker, 100)

    assert len(asyncio.run(main())) == 8

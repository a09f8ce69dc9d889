"""Brings local tables up to the end of their changelogs, read by a consumer of its own without a group.

Faust reads changelogs through the same queues as everything else, about 1,500 records/s, and on an exception goes on
without the record.
"""

import logging
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

from aiokafka import AIOKafkaConsumer, TopicPartition

if TYPE_CHECKING:
    from .table import SafeTable

log = logging.getLogger(__name__)


async def recover(
    tables: Sequence["SafeTable"], wanted: Collection[TopicPartition], brokers: Sequence[str], kafka: AIOKafkaConsumer
) -> None:
    """Opens each changelog partition in `wanted` and applies what its store lacks; complete when it returns.

    `kafka` answers for first and last offsets. Raises KafkaError and OSError; may be called again.
    """
    if not wanted:
        return
    by_topic = {table.changelog_spec.name: table for table in tables}
    ends = await kafka.end_offsets(list(wanted))
    firsts = await kafka.beginning_offsets(list(wanted))
    starts: dict[TopicPartition, int] = {}
    for tp in wanted:
        start = _open(by_topic[tp.topic], tp, ends[tp], firsts[tp])
        if start < ends[tp]:
            starts[tp] = start
    if starts:
        await _read(by_topic, starts, ends, brokers)
    for tp in wanted:
        store = by_topic[tp.topic].rows_store
        if ends[tp] and store.checkpoint(tp.partition) != ends[tp] - 1:
            store.apply(tp.partition, {}, ends[tp] - 1)  # the last offsets held no rows


def _open(table: "SafeTable", tp: TopicPartition, end: int, first: int) -> int:
    store = table.rows_store
    store.open_partition(tp.partition)
    checkpoint = store.checkpoint(tp.partition)
    if checkpoint is not None and checkpoint >= end:
        log.warning("%s ends at %d, local rows reflect %d: the topic was made anew, local rows are dropped", tp, end, checkpoint)
        store.wipe(tp.partition)
        checkpoint = None
    return max(-1 if checkpoint is None else checkpoint, first - 1) + 1


async def _read(
    by_topic: dict[str, "SafeTable"], starts: dict[TopicPartition, int], ends: dict[TopicPartition, int], brokers: Sequence[str]
) -> None:
    reader = AIOKafkaConsumer(
        bootstrap_servers=list(brokers),
        group_id=None,
        enable_auto_commit=False,
        auto_offset_reset="earliest",
        fetch_max_wait_ms=100,
        max_partition_fetch_bytes=4 * 1024 * 1024,
    )
    await reader.start()
    try:
        reader.assign(list(starts))
        for tp, start in starts.items():
            reader.seek(tp, start)
        left = set(starts)
        while left:
            for tp, records in (await reader.getmany(*left, timeout_ms=1000, max_records=5000)).items():
                _apply(by_topic[tp.topic], tp.partition, records)
            for tp in list(left):
                if await reader.position(tp) >= ends[tp]:
                    left.discard(tp)
        log.info("recovered %d changelog partitions, %d offsets", len(starts), sum(ends[tp] - start for tp, start in starts.items()))
    finally:
        await reader.stop()


def _apply(table: "SafeTable", partition: int, records: list[Any]) -> None:
    table.rows_store.apply(partition, {record.key: record.value for record in records}, records[-1].offset)

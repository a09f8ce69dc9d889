"""Faust's producer service over one idempotent aiokafka producer, and the two ways to append to a topic."""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError
from aiokafka.producer.transaction_manager import NO_PRODUCER_EPOCH, NO_PRODUCER_ID, PidAndEpoch
from faust.transport.drivers.aiokafka import Producer, Transport

from .consumer import SafeConsumer
from .partitioner import choose_partition, partition_for

if TYPE_CHECKING:
    from .application import SafeApp

log = logging.getLogger(__name__)

Headers = Sequence[tuple[str, bytes]]


class SafeProducer(Producer):
    """Every record acknowledged by all in-sync replicas, in order, without duplicates from its own retries."""

    app: "SafeApp"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._counts: dict[str, int] = {}

    def _settings_extra(self) -> Mapping[str, Any]:
        return {"acks": "all", "enable_idempotence": True, "partitioner": choose_partition}

    @property
    def kafka(self) -> AIOKafkaProducer:
        """The aiokafka producer; raises NotReady before the start."""
        return self._ensure_producer()

    async def on_start(self) -> None:
        await super().on_start()
        # Without its sender every append would fail for ever: better a worker that stops and is started again.
        self.kafka._sender.sender_task.add_done_callback(self._sender_ended)

    def _sender_ended(self, task: "asyncio.Task[None]") -> None:
        if not task.cancelled() and not self.should_stop and task.exception() is not None:
            self._crashing = asyncio.ensure_future(self.app.crash(task.exception() or RuntimeError("the producer stopped")))

    async def append(self, topic: str, key: bytes | None, value: bytes | None, partition: int | None, headers: Headers | None) -> int:
        """Returns the record's offset once the broker has acknowledged it; raises KafkaError where it refused."""
        if partition is None and key is not None:
            partition = partition_for(key, self._counts.get(topic) or await self._count(topic))
        return await self._acknowledged(await self.kafka.send(topic, value, key, partition, None, headers))

    async def _acknowledged(self, sent: "asyncio.Future[Any]") -> int:
        try:
            return int((await sent).offset)
        except KafkaError:
            self._renew_id()
            raise

    def _renew_id(self) -> None:
        """A refused batch has used up sequence numbers that the broker never saw: it would refuse all that follow on the partition.

        Java's producer bumps its epoch then, aiokafka goes on. A new producer id starts anew everywhere; batches that are
        on their way keep the old one, so nothing is written twice.
        """
        state = self.kafka._txn_manager
        if state.has_pid():  # else it is being renewed already, for another record of the same batch
            state._pid_and_epoch = PidAndEpoch(NO_PRODUCER_ID, NO_PRODUCER_EPOCH)
            state._pid_waiter = asyncio.get_running_loop().create_future()
            state._sequence_numbers.clear()

    async def _count(self, topic: str) -> int:
        """Kept for the worker's life: with another count, keys would leave the partition where their rows are."""
        count = self._counts[topic] = len(await self.kafka.partitions_for(topic))
        return count

    async def append_batch(self, topic: str, partition: int, rows: Sequence[tuple[bytes, bytes | None]]) -> tuple[int, int]:
        """Appends as many of `rows` as fit one batch; returns their number and the offset of the first of them."""
        producer = self.kafka
        batch = producer.create_batch()
        for key, value in rows:
            if batch.append(key=key, value=value, timestamp=None) is None:
                break
        batch.close()
        count = batch.record_count()
        return count, await self._acknowledged(await producer.send_batch(batch, topic, partition=partition))


class SafeTransport(Transport):
    """Makes Faust use our consumer and producer."""

    Consumer = SafeConsumer
    Producer = SafeProducer

"""Asks a question on `requests` and waits for its answer on `responses`: for programs that need the answer now."""

import asyncio
import hashlib
from collections.abc import Sequence
from contextlib import suppress

import structlog
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.errors import KafkaError, MessageSizeTooLargeError
from pydantic import ValidationError

from ..pipeline.errors import Rejected, Unavailable
from ..schemas.requests import Identity
from ..schemas.responses import ResponseLine
from ..schemas.topics import Topics

log = structlog.get_logger(__name__)


class NoAnswerYet(Exception):
    """The time is over and the request goes on: who asks again by the same identity gets its answer."""


class Asker:
    """One producer, and one consumer of its own that reads all partitions of `responses` from where they ended at the start.

    It belongs to no consumer group: every process hears every answer and keeps the ones that somebody here waits for.
    """

    def __init__(
        self, brokers: Sequence[str], topics: Topics, *, max_waiting: int = 4096, remember: int = 16_384, ask_again_s: float = 30.0
    ) -> None:
        """`max_waiting` and `remember` bound memory: so many questions wait, and of so many that no longer do it is known what was asked.

        A question without an answer is asked again every `ask_again_s`: the engine pays for it once.
        """
        self._brokers = list(brokers)
        self._topics = topics
        self._max_waiting = max_waiting
        self._remember = remember
        self._ask_again_s = ask_again_s
        self._waiting: dict[bytes, list[asyncio.Future[ResponseLine]]] = {}
        self._asked: dict[bytes, bytes] = {}
        """Identity -> digest of its line, of those that wait."""
        self._earlier: dict[bytes, bytes] = {}
        """The same of the latest that no longer do: an answer to one of them may still come."""
        self._count = 0
        self._producer: AIOKafkaProducer | None = None
        self._consumer: AIOKafkaConsumer | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def waiting(self) -> int:
        return self._count

    @property
    def alive(self) -> bool:
        """Whether answers are still being read."""
        return self._task is not None and not self._task.done()

    async def start(self) -> None:
        """Returns when an answer to the first question could not be missed. Raises `Unavailable`."""
        try:
            self._producer = AIOKafkaProducer(bootstrap_servers=self._brokers, acks="all", enable_idempotence=True, linger_ms=0)
            self._consumer = AIOKafkaConsumer(bootstrap_servers=self._brokers, enable_auto_commit=False, fetch_max_wait_ms=100)
            await self._producer.start()
            await self._consumer.start()
            await self._from_the_end(self._producer, self._consumer)
        except (KafkaError, OSError) as error:
            await self.stop()
            raise Unavailable(
                f"Kafka at {','.join(self._brokers)} can't be reached ({error}): nothing was asked. Start it, or set KAFKA_BROKERS"
            ) from error
        except Unavailable:
            await self.stop()
            raise
        self._task = asyncio.create_task(self._read(self._consumer), name="responses")

    async def _from_the_end(self, producer: AIOKafkaProducer, consumer: AIOKafkaConsumer) -> None:
        topic = self._topics.responses
        if topic not in await consumer.topics():
            raise Unavailable(f"the topic {topic} does not exist: run `inference-engine topics create`")
        partitions = [TopicPartition(topic, p) for p in sorted(await producer.partitions_for(topic))]
        consumer.assign(partitions)
        await consumer.seek_to_end(*partitions)
        for partition in partitions:
            await consumer.position(partition)  # the seek is lazy: an answer might come before it

    async def ask(self, identity: Identity, line: bytes, timeout_s: float) -> ResponseLine:
        """The answer, or the error that the engine gives instead of one. `line` is a `RequestLine` of this identity.

        Raises `NoAnswerYet` after `timeout_s`, `Unavailable` where Kafka doesn't take the request or too many wait already, `Rejected`
        where it is too large, or this identity came with another line before.
        """
        if self._count >= self._max_waiting:
            raise Unavailable(f"{self._count} callers wait already; this request was not taken", retry_after=1.0, code="too_many_waiting")
        self._same(identity, line)
        answer: asyncio.Future[ResponseLine] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(identity.key, []).append(answer)
        self._count += 1
        try:
            async with asyncio.timeout(timeout_s):
                return await self._ask(identity, line, answer)
        except TimeoutError:
            raise NoAnswerYet(f"no answer within {timeout_s:g} s") from None
        finally:
            self._forget(identity.key, answer)

    def _same(self, identity: Identity, line: bytes) -> None:
        # A response says whom it answers, and not what: to another question of the same name it would be a wrong answer.
        key, digest = identity.key, hashlib.blake2b(line, digest_size=16).digest()
        if (self._asked.get(key) or self._earlier.get(key, digest)) != digest:
            raise Rejected(
                f"{identity.custom_id!r} was asked before with another body: this one was not sent; give it an id of its own",
                code="idempotency_key_reused",
            )
        self._asked[key] = digest

    async def _ask(self, identity: Identity, line: bytes, answer: "asyncio.Future[ResponseLine]") -> ResponseLine:
        while True:
            sending: asyncio.Future[None] = asyncio.ensure_future(self._send(identity, line))
            try:
                # Both at once: an answer to an earlier asking may come, or the end of this process, while Kafka doesn't take the request.
                await asyncio.wait((sending, answer), return_when=asyncio.FIRST_COMPLETED)
                if not answer.done():
                    await sending
                    await asyncio.wait([answer], timeout=self._ask_again_s)
            finally:
                sending.cancel()
            if answer.done():
                return answer.result()

    async def _send(self, identity: Identity, line: bytes) -> None:
        if self._producer is None or not self.alive:
            raise Unavailable("answers are not being read: the connection to Kafka is lost", retry_after=5.0)
        await self.tell(self._topics.requests, identity, line)

    async def tell(self, topic: str, identity: Identity, line: bytes, *, key: bytes | None = None) -> None:
        """Returns when Kafka has the record, of the identity's tenant; its key is the identity's where none is given.

        Raises `Rejected` where it is too large, `Unavailable`.
        """
        if self._producer is None:
            raise Unavailable("Kafka is not connected", retry_after=5.0)
        try:
            await self._producer.send_and_wait(topic, line, key=key or identity.key, headers=[("tenant", identity.tenant.encode())])
        except MessageSizeTooLargeError as error:
            raise Rejected("the request is larger than Kafka takes: it was not sent; shorten it", code="request_too_large") from error
        except (KafkaError, OSError) as error:
            raise Unavailable(f"Kafka did not take the request ({error}): ask again", retry_after=1.0) from error

    def _forget(self, key: bytes, answer: "asyncio.Future[ResponseLine]") -> None:
        self._count -= 1
        others = [f for f in self._waiting.get(key, ()) if f is not answer]
        if others:
            self._waiting[key] = others
            return
        self._waiting.pop(key, None)
        self._earlier.pop(key, None)
        self._earlier[key] = self._asked.pop(key)
        if len(self._earlier) > self._remember:
            del self._earlier[next(iter(self._earlier))]

    async def _read(self, consumer: AIOKafkaConsumer) -> None:
        while True:
            try:
                for records in (await consumer.getmany(timeout_ms=1000)).values():
                    for record in records:
                        self._take(record.key, record.value)
            except (KafkaError, OSError) as error:
                log.warning("answers could not be read for a moment", error=str(error))
                await asyncio.sleep(1)

    def _take(self, key: bytes | None, value: bytes | None) -> None:
        waiting = self._waiting.get(key or b"")
        if not waiting or value is None:
            return
        try:
            line = ResponseLine.model_validate_json(value)
        except ValidationError:
            log.warning("a response that this version does not understand was left out", bytes=len(value))
            return
        for answer in waiting:
            if not answer.done():
                answer.set_result(line)

    async def stop(self) -> None:
        """Callers that still wait get `Unavailable`: their requests go on, and their answers stay on the topic."""
        for answer in [f for waiting in self._waiting.values() for f in waiting if not f.done()]:
            answer.set_exception(Unavailable("the gateway stops; the request goes on: ask again by the same id", retry_after=5.0))
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
        if self._consumer is not None:
            await self._consumer.stop()
        if self._producer is not None:
            await self._producer.stop()

"""Stands behind the topics in the gateway's tests: reads `requests` from a real Kafka and answers as the engine would."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import orjson
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer

from inference_engine.schemas.record import Lane
from inference_engine.schemas.requests import Identity, RequestLine
from inference_engine.schemas.responses import CacheInfo, EngineInfo, ErrorPart, ResponseLine, ResponsePart
from inference_engine.schemas.topics import Topics

Behaviour = Callable[[RequestLine], ErrorPart | str | None]
"""The answer's text, an error, or None: no answer."""


class EngineDouble:
    """Answers with what `behaviour` says; remembers what it was asked, with headers."""

    def __init__(self, brokers: str, topics: Topics, behaviour: Behaviour) -> None:
        self.asked: list[tuple[str, RequestLine]] = []
        self._brokers, self._topics, self._behaviour = brokers, topics, behaviour

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        consumer = AIOKafkaConsumer(self._topics.requests, bootstrap_servers=self._brokers, auto_offset_reset="earliest")
        producer = AIOKafkaProducer(bootstrap_servers=self._brokers)
        await consumer.start()
        await producer.start()
        task = asyncio.create_task(self._run(consumer, producer))
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await consumer.stop()
            await producer.stop()

    async def _run(self, consumer: AIOKafkaConsumer, producer: AIOKafkaProducer) -> None:
        async for record in consumer:
            line = RequestLine.model_validate_json(record.value)
            tenant = dict(record.headers)["tenant"].decode()
            self.asked.append((tenant, line))
            result = self._behaviour(line)
            if result is not None:
                identity = Identity(tenant=tenant, job=line.engine.job or "default", custom_id=line.custom_id)
                await producer.send_and_wait(
                    self._topics.responses, response_to(identity, line, result).model_dump_json().encode(), key=identity.key
                )


def response_to(identity: Identity, line: RequestLine, result: ErrorPart | str) -> ResponseLine:
    info = EngineInfo(
        tenant=identity.tenant,
        job=identity.job,
        model_used="gpt-4o-mini",
        cost_usd="0.000012",
        cache=CacheInfo(tier="semantic", similarity=0.97),
        lane=(line.engine.priority or Lane.STANDARD).value,
        latency_ms=3,
        attempts=0,
    )
    if isinstance(result, ErrorPart):
        return ResponseLine(id="r-1", custom_id=line.custom_id, error=result, engine=info)
    body = {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "gpt-4o-mini",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": result}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7},
    }
    part = ResponsePart(status_code=200, request_id="req-1", body=orjson.loads(orjson.dumps(body)))
    return ResponseLine(id="r-1", custom_id=line.custom_id, response=part, engine=info)

"""Stands for the whole pipeline in tests of the command line: reads `requests`, writes `responses`, as badly as told."""

import random
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import orjson
from confluent_kafka.admin import AdminClient, NewTopic  # type: ignore[attr-defined]  # re-exported without saying so

from inference_engine.connectors.kafka_bulk import BulkConsumer, BulkProducer
from inference_engine.schemas.topics import Topics


def make_topics(brokers: str, topics: Topics, partitions: int = 3) -> None:
    admin = AdminClient({"bootstrap.servers": brokers})
    wanted = [NewTopic(n, partitions, 1) for n in (topics.requests, topics.responses)]
    wanted.append(NewTopic(topics.controls, 1, 1, config={"cleanup.policy": "compact"}))
    for made in admin.create_topics(wanted).values():
        made.result(20)


def response_line(custom_id: str, tenant: str, job: str, **engine: Any) -> dict[str, Any]:
    body = {"choices": [{"message": {"role": "assistant", "content": f"answer to {custom_id}"}, "finish_reason": "stop"}]}
    return {
        "id": f"resp_{custom_id}",
        "custom_id": custom_id,
        "response": {"status_code": 200, "request_id": "", "body": body},
        "error": None,
        "engine": {"tenant": tenant, "job": job, "cost_usd": "0.001", "lane": "standard", "latency_ms": 1, "attempts": 1, **engine},
    }


def as_error(line: dict[str, Any], code: str, cost: str = "0") -> dict[str, Any]:
    engine = {**line["engine"], "cost_usd": cost}
    return {**line, "response": None, "error": {"code": code, "message": "it went wrong"}, "engine": engine}


@dataclass
class FakeEngine:
    """One thread between the topics. Each identity costs once, however often it is asked: as the real one."""

    brokers: str
    topics: Topics
    answer: Callable[[dict[str, Any], dict[str, Any]], dict[str, Any] | None] = lambda _request, line: line
    """(request, response) -> the response to give; None: none, this time."""
    shuffle: bool = False
    twice: float = 0.0
    """Share of responses that are given twice."""
    delay_s: float = 0.0
    seed: int = 7
    goes_on: bool = False
    """Reads only what comes from now on, as the real one after a restart: it does not ask again what it has answered."""
    asked: Counter[str] = field(default_factory=Counter)
    """Requests by custom_id, as often as they came."""
    tenants: set[str] = field(default_factory=set)
    error: BaseException | None = None

    def __post_init__(self) -> None:
        self._end = threading.Event()
        self._random = random.Random(self.seed)
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> "FakeEngine":
        self._consumer = BulkConsumer(self.brokers, self.topics.requests)
        self._consumer.assign(self._consumer.end_offsets() if self.goes_on else None)
        self._producer = BulkProducer(self.brokers)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join(20)
        self._producer.close()
        self._consumer.close()
        assert self.error is None, self.error

    def _run(self) -> None:
        try:
            while not self._end.is_set():
                self._serve(self._consumer.poll_batch(500, 0.02))
        except BaseException as error:
            self.error = error

    def _serve(self, records: list[tuple[bytes | None, bytes | None]]) -> None:
        if records and self.delay_s:
            self._end.wait(self.delay_s)
        out: list[tuple[bytes, dict[str, Any]]] = []
        for key, value in records:
            assert key is not None
            assert value is not None
            request = orjson.loads(value)
            custom_id, job = request["custom_id"], request["engine"]["job"]
            self.asked[custom_id] += 1
            line = self.answer(request, response_line(custom_id, "local", job))
            if line is not None:
                out += [(key, line)] * (2 if self._random.random() < self.twice else 1)
        if self.shuffle:
            self._random.shuffle(out)
        for key, line in out:
            self._producer.produce(self.topics.responses, key, orjson.dumps(line))
        self._producer.flush(20)

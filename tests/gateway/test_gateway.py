"""The gateway, asked by OpenAI's own client, in front of a real Kafka."""

import asyncio
import itertools
import os
import socket
import sys
import time
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest
import uvicorn
from aiokafka import AIOKafkaConsumer
from openai import AsyncOpenAI
from openai.types.chat import ChatCompletionMessageParam
from prometheus_client import CollectorRegistry

from inference_engine.agents.settings import Settings
from inference_engine.agents.settings_shown import effective
from inference_engine.connectors.asker import Asker, NoAnswerYet
from inference_engine.connectors.kafka_admin import create_topics
from inference_engine.connectors.models_toml import load_catalogue
from inference_engine.gateway.app import Gateway, create_app
from inference_engine.gateway.keys import Access, Keys, load_keys
from inference_engine.gateway.revocations import Costs
from inference_engine.pipeline.complexity import Weights
from inference_engine.pipeline.errors import ConfigError, Rejected, Unavailable
from inference_engine.pipeline.feedback import read_feedback
from inference_engine.pipeline.ingest import Door
from inference_engine.schemas.requests import Identity, RequestLine
from inference_engine.schemas.responses import ErrorPart
from inference_engine.schemas.topics import Topics, TopicSpec

from .engine_double import Behaviour, EngineDouble

QUESTION: list[ChatCompletionMessageParam] = [{"role": "user", "content": "How do I locate my card?"}]


class House:
    """A gateway that listens, its client, and the engine behind the topics."""

    def __init__(self, url: str, double: EngineDouble) -> None:
        self.url = url
        self.double = double

    def client(self, key: str = "any") -> AsyncOpenAI:
        return AsyncOpenAI(api_key=key, base_url=f"{self.url}/v1", max_retries=0)


@contextmanager
def no_costs() -> Iterator[Any]:
    raise Unavailable("no sink runs", code="sink_down")
    yield


@asynccontextmanager
async def house(
    kafka: str,
    prefix: str,
    behaviour: Behaviour,
    *,
    timeout_s: float = 20.0,
    keys: Keys | None = None,
    ask_again_s: float = 30.0,
    costs: Costs | None = None,
) -> AsyncIterator[House]:
    topics = Topics(prefix)
    await asyncio.to_thread(
        create_topics, kafka, [TopicSpec(name, 2) for name in (topics.requests, topics.responses, topics.feedback, topics.corrections)]
    )
    gateway = Gateway(
        asker=Asker([kafka], topics, ask_again_s=ask_again_s),
        door=Door(catalogue=load_catalogue().for_providers(["simulated"]), default_ttl_s=60),
        access=Access(keys, "local"),
        timeout_s=timeout_s,
        weights=Weights(),
        shown=lambda: effective(Settings()),
        now_ms=lambda: time.time_ns() // 1_000_000,
        registry=CollectorRegistry(),
        costs=costs or no_costs,
        feedback_topic=topics.feedback,
        corrections_topic=topics.corrections,
    )
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(create_app(gateway), log_level="warning"))
        running = asyncio.create_task(server.serve(sockets=[listener]))
        double = EngineDouble(kafka, topics, behaviour)
        async with double.serving():
            while not server.started:
                assert not running.done(), "the gateway did not start"
                await asyncio.sleep(0.01)
            yield House(f"http://127.0.0.1:{listener.getsockname()[1]}", double)
        server.should_exit = True
        await running


async def test_openais_client_gets_its_answer_and_what_it_cost(kafka: str, topic_prefix: str) -> None:
    async with house(kafka, topic_prefix, lambda line: f"answer to {line.body['messages'][-1]['content']}") as h, h.client() as client:
        raw = await client.chat.completions.with_raw_response.create(
            model="gpt-4", messages=QUESTION, temperature=0.7, extra_body={"engine": {"user_id": "u-7", "feature_name": "chat"}}
        )
        answer = raw.parse()
    assert answer.choices[0].message.content == "answer to How do I locate my card?"
    assert answer.usage is not None
    assert answer.usage.total_tokens == 7
    assert (answer.model_extra or {})["engine"]["cost_usd"] == "0.000012"
    assert (raw.headers["x-engine-cache"], raw.headers["x-engine-model"]) == ("semantic", "gpt-4o-mini")
    [(tenant, line)] = h.double.asked
    assert tenant == "local"
    assert (line.engine.priority, line.engine.job, line.engine.user_id, line.engine.feature_name) == ("express", "gateway", "u-7", "chat")
    assert line.body == {"model": "gpt-4", "messages": QUESTION, "temperature": 0.7}
    assert raw.headers["x-request-id"] == line.custom_id


async def test_a_stream_is_the_whole_answer_in_openais_chunks(kafka: str, topic_prefix: str) -> None:
    async with house(kafka, topic_prefix, lambda line: "one two three") as h, h.client() as client:
        stream = await client.chat.completions.create(model="auto", messages=QUESTION, stream=True, stream_options={"include_usage": True})
        chunks = [chunk async for chunk in stream]
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == "one two three"
    assert [c.choices[0].finish_reason for c in chunks if c.choices] == [None, "stop"]
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.total_tokens == 7
    assert "stream" not in h.double.asked[0][1].body, "a streamed question must share its answer with a plain one"


async def test_many_at_once_each_get_their_own_answer(kafka: str, topic_prefix: str) -> None:
    async with house(kafka, topic_prefix, lambda line: str(line.body["messages"][0]["content"])) as h, h.client() as client:

        async def ask(i: int) -> str | None:
            answer = await client.chat.completions.create(model="auto", messages=[{"role": "user", "content": f"n {i}"}])
            return answer.choices[0].message.content

        assert await asyncio.gather(*(ask(i) for i in range(50))) == [f"n {i}" for i in range(50)]


@pytest.mark.parametrize(
    ("code", "raised", "status"),
    [
        ("over_budget", openai.RateLimitError, 429),
        ("provider_rejected", openai.BadRequestError, 400),
        ("no_capable_model", openai.UnprocessableEntityError, 422),
        ("provider_unavailable", openai.InternalServerError, 503),
        ("attempts_exhausted", openai.InternalServerError, 502),
        ("deadline_passed", openai.InternalServerError, 504),
    ],
)
async def test_an_error_of_the_engine_arrives_as_openais_own(
    code: str, raised: type[openai.APIStatusError], status: int, kafka: str, topic_prefix: str
) -> None:
    async with house(kafka, topic_prefix, lambda line: ErrorPart(code=code, message="why it is so")) as h, h.client() as client:
        with pytest.raises(raised, match="why it is so") as error:
            await client.chat.completions.create(model="auto", messages=QUESTION)
    assert (error.value.status_code, error.value.code) == (status, code)


async def test_what_can_never_succeed_is_refused_without_asking(kafka: str, topic_prefix: str) -> None:
    json = {"content-type": "application/json"}
    cases: list[tuple[bytes, dict[str, str], int, str]] = [
        (b"{", json, 400, "invalid_json"),
        (b"[]", json, 400, "invalid_request"),
        (b'{"model": "auto"}', json, 400, "missing_messages"),
        (b'{"model": "gpt-400", "messages": [{"role": "user", "content": "x"}]}', json, 404, "unknown_model"),
        (b'{"messages": [{"role": "user", "content": "x"}], "engine": {"prio": 1}}', json, 422, "invalid_engine_options"),
        (b'{"messages": [{"role": "user", "content": "\\ud800"}]}', json, 400, "invalid_json"),
        (b'{"messages": [{"role": "user", "content": "' + b"x" * (1 << 20) + b'"}]}', json, 413, "request_too_large"),
        (b'{"messages": [{"role": "user", "content": "x"}]}', {"content-type": "text/plain"}, 415, "not_json"),
        (b'{"messages": [{"role": "user", "content": "x"}]}', {**json, "host": "evil.example"}, 401, "invalid_api_key"),
    ]
    async with house(kafka, topic_prefix, lambda line: "never") as h, aiohttp.ClientSession() as session:
        for body, headers, status, code in cases:
            async with session.post(f"{h.url}/v1/chat/completions", data=body, headers=headers) as response:
                error = (await response.json())["error"]
                assert (response.status, error["code"]) == (status, code)
                assert set(error) == {"message", "type", "param", "code"}
    assert h.double.asked == []


async def test_an_answer_that_is_late_can_be_had_by_the_same_id(kafka: str, topic_prefix: str) -> None:
    answers: list[str | None] = [None, "here it is"]
    async with house(kafka, topic_prefix, lambda line: answers.pop(0), timeout_s=1.0) as h, h.client() as client:
        with pytest.raises(openai.InternalServerError, match="Idempotency-Key: order-66") as late:
            await client.chat.completions.create(model="auto", messages=QUESTION, extra_headers={"Idempotency-Key": "order-66"})
        again = await client.chat.completions.create(model="auto", messages=QUESTION, extra_headers={"Idempotency-Key": "order-66"})
    assert late.value.status_code == 504
    assert again.choices[0].message.content == "here it is"
    assert [line.custom_id for _, line in h.double.asked] == ["order-66", "order-66"]


def asking(text: str) -> list[ChatCompletionMessageParam]:
    return [{"role": "user", "content": text}]


async def test_two_questions_at_once_with_one_request_id_each_get_their_own_answer_and_the_id_back(kafka: str, topic_prefix: str) -> None:
    async with house(kafka, topic_prefix, lambda line: str(line.body["messages"][0]["content"])) as h, h.client() as client:
        ids: set[str] = set()

        async def ask(text: str) -> tuple[str | None, str | None]:
            headers = {"X-Request-Id": "trace-1"}
            raw = await client.chat.completions.with_raw_response.create(model="auto", messages=asking(text), extra_headers=headers)
            ids.add(raw.headers["x-engine-request-id"])
            return raw.parse().choices[0].message.content, raw.headers["x-request-id"]

        assert await asyncio.gather(*(ask(text) for text in ("one", "two"))) == [("one", "trace-1"), ("two", "trace-1")]
    assert len(ids) == 2
    assert {line.custom_id for _, line in h.double.asked} == ids


async def test_an_idempotency_key_that_comes_again_with_another_body_is_refused_at_once_and_later(kafka: str, topic_prefix: str) -> None:
    reached, release = asyncio.Event(), asyncio.Event()

    def behaviour(_: RequestLine) -> str | None:
        reached.set()
        return "first" if release.is_set() else None

    async with house(kafka, topic_prefix, behaviour, ask_again_s=0.2) as h, h.client() as client:

        async def ask(text: str) -> str | None:
            headers = {"Idempotency-Key": "order-66"}
            answer = await client.chat.completions.create(model="auto", messages=asking(text), extra_headers=headers)
            return answer.choices[0].message.content

        first = asyncio.create_task(ask("one"))
        await reached.wait()
        with pytest.raises(openai.UnprocessableEntityError, match="order-66") as at_once:
            await ask("two")
        release.set()
        assert await first == "first"
        with pytest.raises(openai.UnprocessableEntityError):
            await ask("two")
    assert at_once.value.code == "idempotency_key_reused"
    assert {line.body["messages"][0]["content"] for _, line in h.double.asked} == {"one"}


async def test_the_same_question_twice_at_once_with_one_idempotency_key_gets_the_one_answer_twice(kafka: str, topic_prefix: str) -> None:
    numbers = itertools.count(1)
    async with house(kafka, topic_prefix, lambda line: f"answer {next(numbers)}") as h, h.client() as client:

        async def ask() -> str | None:
            answer = await client.chat.completions.create(model="auto", messages=QUESTION, extra_headers={"Idempotency-Key": "order-66"})
            return answer.choices[0].message.content

        both = await asyncio.gather(ask(), ask())
    assert [*both] == ["answer 1", "answer 1"]
    assert {line.custom_id for _, line in h.double.asked} == {"order-66"}


async def test_bodies_are_remembered_for_the_latest_keys_alone_and_for_all_that_wait(kafka: str, topic_prefix: str) -> None:
    topics = Topics(topic_prefix)
    await asyncio.to_thread(create_topics, kafka, [TopicSpec(topics.requests, 1), TopicSpec(topics.responses, 1)])
    asker = Asker([kafka], topics, remember=2)
    await asker.start()

    def ask(name: str, text: str, timeout_s: float = 0.01) -> Coroutine[None, None, object]:
        return asker.ask(Identity(tenant="t", job="j", custom_id=name), text.encode(), timeout_s)

    waits = asyncio.create_task(ask("waits", "one", 30))
    for name in ("a", "b", "c"):
        with pytest.raises(NoAnswerYet):
            await ask(name, "one")
    for name in ("waits", "b", "c"):
        with pytest.raises(Rejected, match="another body"):
            await ask(name, "two")
    with pytest.raises(NoAnswerYet):
        await ask("a", "two")
    await asker.stop()
    with pytest.raises(Unavailable):
        await waits


async def test_a_question_that_got_lost_is_asked_again_by_itself(kafka: str, topic_prefix: str) -> None:
    answers: list[str | None] = [None, "found"]
    async with house(kafka, topic_prefix, lambda line: answers.pop(0), ask_again_s=0.5) as h, h.client() as client:
        answer = await client.chat.completions.create(model="auto", messages=QUESTION)
    assert answer.choices[0].message.content == "found"
    assert len({line.custom_id for _, line in h.double.asked}) == 1


async def test_with_keys_each_caller_is_its_tenant_and_nobody_else_gets_in(kafka: str, topic_prefix: str, tmp_path: Path) -> None:
    file = tmp_path / "keys.toml"
    file.write_text('[[keys]]\ntenant = "acme"\nkey = "acme-0123456789abcdef"\n')
    async with house(kafka, topic_prefix, lambda line: "yes", keys=load_keys(file)) as h:
        async with h.client("acme-0123456789abcdef") as client:
            await client.chat.completions.create(model="auto", messages=QUESTION)
        async with h.client("wrong") as client:
            with pytest.raises(openai.AuthenticationError):
                await client.chat.completions.create(model="auto", messages=QUESTION)
            with pytest.raises(openai.AuthenticationError):
                await client.models.list()
    assert [tenant for tenant, _ in h.double.asked] == ["acme"]


async def test_models_health_metrics_config_and_complexity_are_served(kafka: str, topic_prefix: str) -> None:
    async with house(kafka, topic_prefix, lambda line: "yes") as h, h.client() as client, aiohttp.ClientSession(h.url) as session:

        async def get(path: str) -> str:
            async with session.get(path) as response:
                assert response.status == 200
                return await response.text()

        names = {m.id async for m in client.models.list()}
        assert {"auto", "gpt-4", "gpt-4o-mini"} <= names
        assert '"economy"' in await get("/models")
        assert '"requests_processed":0' in await get("/health")
        await client.chat.completions.create(model="auto", messages=QUESTION)
        assert '"cache_hit_rate":1.0,"requests_processed":1' in await get("/health")
        assert 'gateway_answered_total{tier="semantic"} 1.0' in await get("/metrics")
        assert '"CACHE_TTL_SECONDS":{"value":' in await get("/config")
        async with session.post(
            "/debug/estimate-complexity", json={"prompt": "Compare and analyze the trade-offs, explain why"}
        ) as response:
            harder = await response.json()
        async with session.post("/debug/estimate-complexity", json={"prompt": "Hi"}) as response:
            easier = await response.json()
    assert harder["complexity"] > easier["complexity"]
    assert easier["tier"] == "economy"


async def test_a_caller_beyond_the_limit_is_sent_away_and_those_who_wait_hear_the_stop(kafka: str, topic_prefix: str) -> None:
    topics = Topics(topic_prefix)
    await asyncio.to_thread(create_topics, kafka, [TopicSpec(topics.requests, 1), TopicSpec(topics.responses, 1)])
    asker = Asker([kafka], topics, max_waiting=1)
    await asker.start()

    def ask(name: str, timeout_s: float) -> Coroutine[None, None, object]:
        line = RequestLine(custom_id=name, body={"messages": QUESTION})
        return asker.ask(Identity(tenant="t", job="j", custom_id=name), line.model_dump_json().encode(), timeout_s)

    first = asyncio.ensure_future(ask("a", 30))
    await asyncio.sleep(0)
    with pytest.raises(Unavailable, match="wait already"):
        await ask("b", 30)
    await asker.stop()
    with pytest.raises(Unavailable, match="the gateway stops"):
        await first
    assert asker.waiting == 0


@pytest.mark.parametrize("processes", [1, 2])
async def test_a_gateway_that_is_asked_to_stop_ends_with_0(kafka: str, topic_prefix: str, tmp_path: Path, processes: int) -> None:
    topics = Topics(topic_prefix)
    await asyncio.to_thread(create_topics, kafka, [TopicSpec(topics.requests, 1), TopicSpec(topics.responses, 1)])
    settings = {"KAFKA_BROKERS": kafka, "KAFKA_TOPIC_PREFIX": topic_prefix, "INFERENCE_ENGINE_HOME": str(tmp_path)}
    gateway = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "inference_engine.cli.main", "gateway", "--no-start", "--port", "0"),
        env={**os.environ, **settings, "API_WORKERS": str(processes)}, cwd=tmp_path, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert gateway.stderr is not None
    said, started = b"", 0
    try:
        async with asyncio.timeout(60):
            while started < processes:
                line = await gateway.stderr.readline()
                assert line, said
                said, started = said + line, started + (b"startup complete" in line)
            gateway.terminate()
            said += await gateway.stderr.read()
            assert await gateway.wait() == 0, said
    finally:
        if gateway.returncode is None:
            gateway.kill()
    assert b"Traceback" not in said
    assert b"never retrieved" not in said


async def test_without_its_topic_or_its_broker_the_gateway_says_so(kafka: str, topic_prefix: str) -> None:
    with pytest.raises(Unavailable, match="topics create"):
        await Asker([kafka], Topics(topic_prefix)).start()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        with pytest.raises(Unavailable, match="KAFKA_BROKERS"):
            await Asker([f"127.0.0.1:{taken.getsockname()[1]}"], Topics(topic_prefix)).start()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "keys = 1",
        "[[keys]]\ntenant = 'a'",
        "[[keys]]\ntenant = 'a'\nkey = 'canary'",
        "[[keys]]\ntenant = ''\nkey = 'canary-0123456789'",
        "[[keys]]\ntenant = 'a'\nsha256 = 'canary'",
        "[[keys]]\ntenant = 'a'\nkey = 'canary-0123456789'\n[[keys]]\ntenant = 'b'\nkey = 'canary-0123456789'",
        "[[keys]]\ntenant = 'a'\nkee = 'canary-0123456789'",
    ],
)
def test_a_bad_file_of_keys_is_refused_without_telling_a_key(text: str, tmp_path: Path) -> None:
    file = tmp_path / "keys.toml"
    file.write_text(text)
    with pytest.raises(ConfigError) as error:
        load_keys(file)
    assert "canary" not in str(error.value)


async def test_feedback_is_written_for_the_callers_tenant_and_bad_feedback_is_refused(kafka: str, topic_prefix: str) -> None:
    async with house(kafka, topic_prefix, lambda line: "hi") as h, aiohttp.ClientSession() as session:
        async with session.post(f"{h.url}/v1/feedback", json={"custom_id": "req-1", "score": 0.25, "comment": "dull"}) as taken:
            assert taken.status == 202
        async with session.post(f"{h.url}/v1/feedback", json={"custom_id": "req-1", "score": 7}) as refused:
            assert refused.status == 400
            assert "score" in (await refused.json())["error"]["message"]
        consumer = AIOKafkaConsumer(Topics(topic_prefix).feedback, bootstrap_servers=kafka, auto_offset_reset="earliest")
        await consumer.start()
        try:
            record = await asyncio.wait_for(consumer.getone(), 20)
        finally:
            await consumer.stop()
    assert dict(record.headers) == {"tenant": b"local"}
    assert read_feedback(record.value, "local", "other", 1).identity == Identity(tenant="local", job="gateway", custom_id="req-1")

"""The sink process's flow on a real Kafka and the real engine: every cost once, exact to the last digit, whatever happens."""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from decimal import Decimal
from pathlib import Path

import pytest
from aiohttp import ClientSession
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

from inference_engine.agents.sink_worker import SinkOptions, run_sink
from inference_engine.connectors.clickhouse import ClickHouseStore
from inference_engine.connectors.data_folder import DataFolder
from inference_engine.connectors.kafka_admin import create_topics
from inference_engine.connectors.sink_http import SinkClient
from inference_engine.connectors.state_file import read_state
from inference_engine.pipeline.errors import ConfigError, Rejected, Unavailable
from inference_engine.schemas import packets
from inference_engine.schemas.costs import CostEvent
from inference_engine.schemas.topics import Topics, TopicSpec

PARTITIONS = 3


def options_for(kafka: str, prefix: str, root: Path, *, port: int = 0) -> SinkOptions:
    folder = DataFolder(root)
    return SinkOptions(brokers=(kafka,), folder=folder, state_file=folder.state_file("sink"), prefix=prefix, port=port)


@asynccontextmanager
async def running(options: SinkOptions) -> AsyncIterator[SinkClient]:
    """A sink that is ready; stopped at the end."""
    stop = asyncio.Event()
    task = asyncio.create_task(run_sink(options, stop=stop))
    try:
        deadline = time.monotonic() + 60
        while (state := read_state(options.state_file)) is None:
            assert time.monotonic() < deadline, "the sink was not ready within a minute"
            done, _ = await asyncio.wait([task], timeout=0.05)
            if done:
                task.result()
        yield SinkClient(f"http://127.0.0.1:{state.port}")
    finally:
        stop.set()
        await task
    assert read_state(options.state_file) is None


def event(event_id: str, pico: int, version: int = 0) -> CostEvent:
    return CostEvent(
        event_id=event_id, version=version, kind="answer", timestamp_ms=1_763_000_000_000, request_id=event_id, tenant_id="t", job="j",
        base_cost_pico=pico,
    )  # fmt: skip


async def produce(kafka: str, topic: str, values: Sequence[tuple[int, bytes]]) -> dict[int, int]:
    """Appends (partition, packet)s; returns the topic's end offsets."""
    async with AIOKafkaProducer(bootstrap_servers=kafka) as producer:
        for partition, value in values:
            await producer.send(topic, value, partition=partition)
        await producer.flush()
    consumer = AIOKafkaConsumer(bootstrap_servers=kafka)
    await consumer.start()
    try:
        ends = await consumer.end_offsets([TopicPartition(topic, p) for p in range(PARTITIONS)])
        return {tp.partition: offset for tp, offset in ends.items()}
    finally:
        await consumer.stop()


async def caught_up(sink: SinkClient, ends: Mapping[int, int], timeout: float = 60) -> bool:
    return await asyncio.to_thread(lambda: sink.wait_until_caught_up(ends, timeout=timeout))


async def ask(sink: SinkClient, sql: str) -> list[tuple[object, ...]]:
    return (await asyncio.to_thread(sink.query, sql))[1]


@pytest.fixture
def topics(kafka: str, topic_prefix: str) -> Topics:
    made = Topics(topic_prefix)
    create_topics(kafka, [TopicSpec(made.costs, PARTITIONS), TopicSpec(made.dead_letters, 1)])
    return made


def scattered(events: Sequence[CostEvent], seed: int) -> list[tuple[int, bytes]]:
    """Packets of 1 to 40 events; one event's deliveries share its partition."""
    rng = random.Random(seed)
    values, by_partition = [], [[e for e in events if int(e.event_id) % PARTITIONS == p] for p in range(PARTITIONS)]
    for partition, own in enumerate(by_partition):
        while own:
            size = rng.randint(1, 40)
            values.append((partition, packets.costs.encode(own[:size])))
            own = own[size:]
    return values


async def test_every_cost_is_counted_once_exactly_over_redelivery_and_a_restart(
    kafka: str, topics: Topics, topic_prefix: str, tmp_path: Path
) -> None:
    """Packets arrive twice, a sink stops half-way, the next one goes on: the sum agrees to the last pico-dollar."""
    rng = random.Random(7)
    events = [event(str(i), rng.randint(0, 10**15)) for i in range(3_000)]
    expected = [(3_000, Decimal(sum(e.base_cost_pico for e in events)).scaleb(-12))]
    question = "SELECT count(), sum(base_cost) FROM cost_events"
    options = options_for(kafka, topic_prefix, tmp_path)
    half = scattered(events[:1_500], 1)
    ends = await produce(kafka, topics.costs, half)
    async with running(options) as sink:
        assert await caught_up(sink, ends)
        assert (await ask(sink, question))[0][0] == 1_500
    ends = await produce(kafka, topics.costs, half + scattered(events[1_500:], 2))  # the first half is delivered again
    async with running(options) as sink:
        assert await caught_up(sink, ends)
        assert await ask(sink, question) == expected
        async with ClientSession() as session, session.get(sink.url + "/health") as response:
            health = await response.json()
    assert health["ready"]
    assert health["stored_rows"] == 3_000  # what was acknowledged before the restart did not come again


async def test_nothing_is_acknowledged_while_the_store_is_down_and_nothing_is_lost_when_it_is_back(
    kafka: str, topics: Topics, topic_prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, down, tried = ClickHouseStore.insert, True, asyncio.Event()
    loop = asyncio.get_running_loop()

    def insert(self: ClickHouseStore, rows: Sequence[CostEvent]) -> None:
        loop.call_soon_threadsafe(tried.set)
        if down:
            raise Unavailable("ClickHouse is down")
        real(self, rows)

    monkeypatch.setattr(ClickHouseStore, "insert", insert)
    options = options_for(kafka, topic_prefix, tmp_path)
    ends = await produce(kafka, topics.costs, scattered([event(str(i), i) for i in range(300)], 3))
    async with running(options) as sink:
        await asyncio.wait_for(tried.wait(), 30)
        assert not await caught_up(sink, ends, timeout=0.3)
        assert (await ask(sink, "SELECT count() FROM cost_events")) == [(0,)]
    down = False  # the first sink ended without having stored anything: all of it comes again
    async with running(options) as sink:
        assert await caught_up(sink, ends)
        assert await ask(sink, "SELECT count(), sum(base_cost) FROM cost_events") == [(300, Decimal(sum(range(300))).scaleb(-12))]


async def test_a_packet_that_can_never_be_stored_becomes_a_dead_letter_and_the_rest_goes_on(
    kafka: str, topics: Topics, topic_prefix: str, tmp_path: Path
) -> None:
    good, huge = packets.costs.encode([event("1", 5)]), packets.costs.encode([event("2", 10**30), event("3", 6)])
    ends = await produce(kafka, topics.costs, [(0, b"not json"), (0, huge), (0, good)])
    async with running(options_for(kafka, topic_prefix, tmp_path)) as sink:
        assert await caught_up(sink, ends)
        assert await ask(sink, "SELECT event_id FROM cost_events ORDER BY event_id") == [("1",), ("3",)]
    consumer = AIOKafkaConsumer(topics.dead_letters, bootstrap_servers=kafka, auto_offset_reset="earliest")
    await consumer.start()
    letters = [await asyncio.wait_for(consumer.getone(), 20) for _ in range(2)]
    await consumer.stop()
    assert {letter.value for letter in letters} == {b"not json", huge}
    by_value = {letter.value: dict(letter.headers) for letter in letters}
    assert by_value[huge]["source.offset"] == b"1"
    assert b"'2'" in by_value[huge]["error.message"]


async def test_a_question_is_answered_from_all_that_was_produced_before_it(
    kafka: str, topics: Topics, topic_prefix: str, tmp_path: Path
) -> None:
    """Nobody waits for the sink: right after a job `sql` shows the whole job."""
    async with running(options_for(kafka, topic_prefix, tmp_path)) as sink:
        for number in range(1, 6):
            await produce(kafka, topics.costs, [(number % PARTITIONS, packets.costs.encode([event(str(number), 5)]))])
            assert await ask(sink, "SELECT count() FROM cost_events") == [(number,)]


async def test_the_door_answers_sql_and_refuses_the_rest_clearly(kafka: str, topics: Topics, topic_prefix: str, tmp_path: Path) -> None:
    ends = await produce(kafka, topics.costs, [(0, packets.costs.encode([event("1", 5)]))])
    async with running(options_for(kafka, topic_prefix, tmp_path)) as sink:
        assert await caught_up(sink, ends)
        async with ClientSession() as session:
            async with session.post(sink.url + "/sql", data="SELECT sum(base_cost) AS cost FROM cost_events") as response:
                assert await response.json() == {"columns": ["cost"], "types": ["decimal"], "rows": [["0.000000000005"]]}
            async with session.post(sink.url + "/sql", data="DROP TABLE cost_events_raw") as response:
                assert response.status == 400
                assert (await response.json())["error"]["code"] == "read_only"
            async with session.post(sink.url + "/sql", data="SELECT 1", headers={"Host": "evil.example"}) as response:
                assert response.status == 403
            async with session.post(sink.url + "/caught_up", data="[]") as response:
                assert response.status == 400
        columns = await asyncio.to_thread(sink.query, "SELECT event_id FROM cost_events WHERE job = {job:String}", {"job": "j"})
        assert columns == (["event_id"], [("1",)])
        with pytest.raises(Rejected, match="nope"):
            await asyncio.to_thread(sink.query, "SELECT nope FROM cost_events")
    with pytest.raises(Unavailable, match="does not answer"):
        sink.query("SELECT 1")


async def test_a_missing_topic_or_a_taken_port_ends_the_sink_with_the_reason(
    kafka: str, topics: Topics, topic_prefix: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="do not exist"):
        await run_sink(options_for(kafka, "nobody-made-", tmp_path / "a"))
    async with running(options_for(kafka, topic_prefix, tmp_path / "b")):
        port = int(read_state(DataFolder(tmp_path / "b").state_file("sink")).port)  # type: ignore[union-attr]
        with pytest.raises(ConfigError, match="can't listen"):
            await run_sink(options_for(kafka, topic_prefix, tmp_path / "b", port=port))

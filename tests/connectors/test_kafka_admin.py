"""Topics are made as the engine needs them, or refused; never changed behind somebody's back."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import (  # type: ignore[attr-defined]  # re-exported without saying so
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    ResourceType,
)
from hypothesis import given
from hypothesis import strategies as st

from inference_engine.connectors.kafka_admin import DAY_MS, create_topics, topic_problems, topic_specs, verify_topics
from inference_engine.pipeline.errors import ConfigError, Unavailable
from inference_engine.schemas.record import Lane
from inference_engine.schemas.topics import Topics, TopicSpec

from ..e2e.waiting import until


def test_every_topic_is_created_once_and_again_is_a_no_op(kafka: str, topic_prefix: str) -> None:
    """Create returns what it made; the second time it makes nothing and refuses nothing."""
    specs = topic_specs(Topics(topic_prefix), 3, [f"{topic_prefix}answers-changelog"])
    assert sorted(create_topics(kafka, specs)) == sorted(spec.name for spec in specs)
    assert create_topics(kafka, specs) == []
    verify_topics([kafka], specs)


def test_a_created_topic_takes_records_at_once(kafka: str, topic_prefix: str) -> None:
    """Awaited means: no record is refused for an unknown topic or a missing leader right after."""
    specs = topic_specs(Topics(topic_prefix), 8)
    create_topics(kafka, specs)
    refused: list[object] = []
    producer = Producer({"bootstrap.servers": kafka, "message.timeout.ms": 5000})
    for spec in specs:
        for partition in range(spec.partitions):
            producer.produce(
                spec.name, b"x", key=b"k", partition=partition, on_delivery=lambda error, _: refused.append(error) if error else None
            )
    assert producer.flush(10) == 0
    assert refused == []


def test_another_partition_count_is_refused_and_nothing_is_created(kafka: str, topic_prefix: str) -> None:
    topics = Topics(topic_prefix)
    create_topics(kafka, [TopicSpec(topics.ledger, 2)])
    with pytest.raises(ConfigError, match=r"ledger has 2 partitions, the engine needs 4"):
        create_topics(kafka, topic_specs(topics, 4))
    assert topics.requests not in AdminClient({"bootstrap.servers": kafka}).list_topics(timeout=10).topics


def test_a_compacted_ledger_is_refused(kafka: str, topic_prefix: str) -> None:
    """A ledger that forgets rows would forget payments."""
    topics = Topics(topic_prefix)
    specs = topic_specs(topics, 1)
    create_topics(kafka, specs)
    _alter(kafka, topics.ledger, "cleanup.policy", "compact")
    with pytest.raises(ConfigError, match=r"ledger has cleanup.policy=compact"):
        verify_topics(kafka, specs)


def test_a_retention_below_the_horizon_is_refused_and_a_longer_one_is_fine(kafka: str, topic_prefix: str) -> None:
    topics = Topics(topic_prefix)
    specs = topic_specs(topics, 1)
    create_topics(kafka, specs)
    _alter(kafka, topics.requests, "retention.ms", str(3 * DAY_MS))
    _alter(kafka, topics.answers, "retention.ms", "-1")
    _alter(kafka, topics.responses, "retention.ms", str(90 * DAY_MS))
    assert topic_problems(kafka, specs) == [
        f"topic {topics.requests} has retention.ms={3 * DAY_MS}, the engine needs at least {8 * DAY_MS}"
    ]


def test_missing_topics_are_all_named(kafka: str, topic_prefix: str) -> None:
    topics = Topics(topic_prefix)
    create_topics(kafka, [spec for spec in topic_specs(topics, 1) if spec.name not in (topics.costs, topics.vectors)])
    problems = topic_problems(kafka, topic_specs(topics, 1))
    assert sorted(problems) == [f"topic {topics.costs} is missing", f"topic {topics.vectors} is missing"]


def test_commands_that_race_to_create_all_succeed(kafka: str, topic_prefix: str) -> None:
    """Two commands started at the same moment both find their topics; each topic is claimed by one of them."""
    specs = topic_specs(Topics(topic_prefix), 2)
    with ThreadPoolExecutor(4) as pool:
        made = [future.result() for future in [pool.submit(create_topics, kafka, specs) for _ in range(4)]]
    assert sorted(name for names in made for name in names) == sorted(spec.name for spec in specs)


def test_only_controls_corrections_routers_and_changelogs_are_compacted() -> None:
    """Packets have no key of their own: compaction would drop all but the last."""
    compacted = {spec.name for spec in topic_specs(Topics("p."), 4, ["p.table-changelog"]) if ("cleanup.policy", "compact") in spec.config}
    assert compacted == {"p.controls", "p.corrections", "p.routers", "p.table-changelog"}


def test_every_lane_has_its_topics_with_the_same_partition_count() -> None:
    """Co-location needs equal counts; only what every worker reads whole is a single partition."""
    topics = Topics()
    by_name = {spec.name: spec.partitions for spec in topic_specs(topics, 6, ["c"])}
    assert {by_name[name(lane)] for lane in Lane for name in (topics.misses, topics.calls)} == {6}
    assert {name for name, count in by_name.items() if count != 6} == {"controls", "corrections", "routers"}


@given(st.integers(1, 365))
def test_every_kept_record_outlives_the_horizon(days: int) -> None:
    """Also where the horizon is set to a year; the ledger with room for what is still open at its end."""
    retention = {
        spec.name: int(dict(spec.config)["retention.ms"])
        for spec in topic_specs(Topics(), 1, horizon_days=days)
        if ("cleanup.policy", "compact") not in spec.config
    }
    assert min(retention.values()) >= (days + 1) * DAY_MS
    assert retention["ledger"] == 2 * days * DAY_MS


def test_no_partition_at_all_is_refused() -> None:
    with pytest.raises(ConfigError, match="at least one partition"):
        topic_specs(Topics(), 0)


def test_one_name_with_two_meanings_is_refused(kafka: str, topic_prefix: str) -> None:
    spec = TopicSpec(f"{topic_prefix}x", 1)
    with pytest.raises(ConfigError, match="asked for twice"):
        create_topics(kafka, [spec, replace(spec, partitions=2)])


def test_an_unreachable_broker_says_where_to_look() -> None:
    with pytest.raises(Unavailable, match="KAFKA_BROKERS"):
        verify_topics("127.0.0.1:1", topic_specs(Topics(), 1), timeout_s=1)


def _alter(kafka: str, topic: str, name: str, value: str) -> None:
    entry = ConfigEntry(name, value, incremental_operation=AlterConfigOpType.SET)
    admin = AdminClient({"bootstrap.servers": kafka})
    futures = admin.incremental_alter_configs([ConfigResource(ResourceType.TOPIC, topic, incremental_configs=[entry])])
    for future in futures.values():
        future.result()
    # The controller has it; the broker that is asked may read of it a moment later.
    until(lambda: _config(admin, topic)[name].value == value, f"{topic} has {name}={value}")


def _config(admin: AdminClient, topic: str) -> dict[str, ConfigEntry]:
    [described] = admin.describe_configs([ConfigResource(ResourceType.TOPIC, topic)]).values()
    found: dict[str, ConfigEntry] = described.result(10)
    return found

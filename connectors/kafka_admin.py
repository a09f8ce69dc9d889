"""Topics: what they must be like, created and verified before anything starts.

Faust never consumes a topic that appears after its start and loses rows where a changelog has another partition count, so both are
settled here, by librdkafka's admin client.
"""

import time
from collections.abc import Iterable, Sequence
from typing import Any

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import (  # type: ignore[attr-defined]  # re-exported without saying so
    AdminClient,
    ConfigResource,
    NewTopic,
    ResourceType,
)

from ..pipeline.errors import ConfigError, Unavailable
from ..schemas.record import Lane
from ..schemas.topics import Topics, TopicSpec

MAX_MESSAGE_BYTES = 8 * 1024 * 1024
DAY_MS = 24 * 3600 * 1000

Brokers = str | Sequence[str]
"""`host:port,host:port`, or the same as a sequence."""

_AT_LEAST = ("retention.ms", "max.message.bytes")
"""Settings where more than asked is as good."""


def topic_specs(topics: Topics, partitions: int, changelogs: Sequence[str] = (), *, horizon_days: int = 7) -> list[TopicSpec]:
    """Every topic of the engine. `changelogs`: full names of the tables' changelog topics, compacted, `partitions` each.

    Retention outlives the dedupe horizon (`horizon_days`) wherever a record may still be asked for. Only `controls`, `corrections`,
    `routers` and the changelogs are compacted: the other internal topics carry packets, whose keys name no single record, and a compacted
    ledger would forget payments.
    """
    if partitions < 1:
        raise ConfigError(f"a topic needs at least one partition, not {partitions}")
    in_work, known, told = horizon_days + 1, 2 * horizon_days, max(30, 2 * horizon_days)
    by_days = {
        topics.requests: in_work,
        topics.bulk_requests: in_work,
        topics.lookups: in_work,
        topics.bulk_lookups: in_work,
        **{topics.misses(lane): in_work for lane in Lane},
        **{topics.calls(lane): in_work for lane in Lane},
        topics.ledger: known,
        topics.answers: known,
        topics.responses: known,
        topics.vectors: told,
        topics.costs: told,
        topics.dead_letters: told,
        topics.feedback: in_work,
        topics.lessons: in_work,
    }
    kept = [TopicSpec(name, partitions, _delete(days)) for name, days in by_days.items()]
    # Read whole by every worker: order matters more than width.
    whole = [TopicSpec(name, 1, _compact()) for name in (topics.controls, topics.corrections, topics.routers)]
    return [*kept, *whole, *(TopicSpec(name, partitions, _compact()) for name in changelogs)]


def create_topics(brokers: Brokers, specs: Sequence[TopicSpec], *, replication_factor: int = -1, timeout_s: float = 30.0) -> list[str]:
    """Create what is missing, and return the created names once every partition has a leader. Safe to repeat and to race.

    `replication_factor` -1 is the cluster's default. Raises ConfigError where an existing topic has another partition count or a
    setting that would lose records (nothing is changed then), Unavailable where the brokers can't be reached in time.
    """
    admin = _admin(brokers)
    deadline = time.monotonic() + timeout_s
    wanted = _unique(specs)
    _refuse(_problems(admin, wanted, timeout_s, missing_is_one=False))
    known = _counts(admin, timeout_s)
    missing = [spec for spec in wanted if spec.name not in known]
    created = _create(admin, missing, replication_factor, timeout_s)
    while any(_counts(admin, timeout_s).get(spec.name) != spec.partitions for spec in missing):
        if time.monotonic() > deadline:
            raise Unavailable(
                f"{len(missing)} topics were created, and not all of their partitions have a leader after {timeout_s:.0f} s; try again"
            )
        admin.poll(0.05)
    # Somebody else may have created one of them in the meantime, otherwise than we need it.
    _refuse(_problems(admin, wanted, timeout_s, missing_is_one=True))
    return created


def verify_topics(brokers: Brokers, specs: Sequence[TopicSpec], *, timeout_s: float = 15.0) -> None:
    """Raises ConfigError that lists every topic that is missing or unfit, Unavailable where the brokers can't be reached."""
    _refuse(topic_problems(brokers, specs, timeout_s=timeout_s))


def topic_problems(brokers: Brokers, specs: Sequence[TopicSpec], *, timeout_s: float = 15.0) -> list[str]:
    """One sentence for each topic that is missing or unfit; empty where all is well. Raises Unavailable."""
    return _problems(_admin(brokers), _unique(specs), timeout_s, missing_is_one=True)


def _delete(days: int) -> tuple[tuple[str, str], ...]:
    return (("cleanup.policy", "delete"), ("retention.ms", str(days * DAY_MS)), ("max.message.bytes", str(MAX_MESSAGE_BYTES)))


def _compact() -> tuple[tuple[str, str], ...]:
    return (
        ("cleanup.policy", "compact"),
        ("max.message.bytes", str(MAX_MESSAGE_BYTES)),
        # The open segment is never compacted: small ones keep a recovery short.
        ("segment.bytes", str(64 * 1024 * 1024)),
        ("segment.ms", str(DAY_MS)),
        ("min.cleanable.dirty.ratio", "0.3"),
    )


def _admin(brokers: Brokers) -> AdminClient:
    address = brokers if isinstance(brokers, str) else ",".join(brokers)
    return AdminClient({"bootstrap.servers": address, "log_level": 0, "socket.timeout.ms": 10_000})


def _unique(specs: Iterable[TopicSpec]) -> list[TopicSpec]:
    by_name: dict[str, TopicSpec] = {}
    for spec in specs:
        if by_name.setdefault(spec.name, spec) != spec:
            raise ConfigError(f"topic {spec.name} is asked for twice with different settings")
    return list(by_name.values())


def _create(admin: AdminClient, specs: Sequence[TopicSpec], replication_factor: int, timeout_s: float) -> list[str]:
    if not specs:
        return []
    new = [
        NewTopic(spec.name, num_partitions=spec.partitions, replication_factor=replication_factor, config=dict(spec.config))
        for spec in specs
    ]
    created: list[str] = []
    for name, future in admin.create_topics(new, operation_timeout=timeout_s, request_timeout=timeout_s).items():
        try:
            future.result()
            created.append(name)
        except KafkaException as error:
            if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                raise _consequence(error, f"topic {name} could not be created") from error
    return created


def _counts(admin: AdminClient, timeout_s: float) -> dict[str, int]:
    """Partitions with a leader, by topic."""
    try:
        found = admin.list_topics(timeout=timeout_s).topics
    except KafkaException as error:
        raise _consequence(error, "the brokers could not be asked for their topics") from error
    return {name: sum(1 for p in topic.partitions.values() if p.leader != -1) for name, topic in found.items() if topic.error is None}


def _problems(admin: AdminClient, specs: Sequence[TopicSpec], timeout_s: float, *, missing_is_one: bool) -> list[str]:
    try:
        found = {name: len(topic.partitions) for name, topic in admin.list_topics(timeout=timeout_s).topics.items() if topic.error is None}
    except KafkaException as error:
        raise _consequence(error, "the brokers could not be asked for their topics") from error
    problems = [f"topic {spec.name} is missing" for spec in specs if missing_is_one and spec.name not in found]
    present = [spec for spec in specs if spec.name in found]
    problems += [
        f"topic {spec.name} has {found[spec.name]} partitions, the engine needs {spec.partitions}"
        for spec in present
        if found[spec.name] != spec.partitions
    ]
    configs = _configs(admin, [spec.name for spec in present], timeout_s)
    for spec in present:
        problems += [problem for name, wanted in spec.config if (problem := _unfit(spec.name, name, wanted, configs[spec.name].get(name)))]
    return problems


def _configs(admin: AdminClient, names: Sequence[str], timeout_s: float) -> dict[str, dict[str, str]]:
    if not names:
        return {}
    resources = [ConfigResource(ResourceType.TOPIC, name) for name in names]
    found: dict[str, dict[str, str]] = {}
    for resource, future in admin.describe_configs(resources, request_timeout=timeout_s).items():
        try:
            entries: dict[str, Any] = future.result()
        except KafkaException as error:
            raise _consequence(error, f"the settings of topic {resource.name} could not be read") from error
        found[resource.name] = {name: str(entry.value) for name, entry in entries.items()}
    return found


def _unfit(topic: str, name: str, wanted: str, found: str | None) -> str | None:
    """Only settings whose difference loses records are a problem; segment sizes and the like are the operator's business."""
    if found is None or found == wanted:
        return None
    if name == "cleanup.policy":
        return f"topic {topic} has cleanup.policy={found}, the engine needs {wanted}: records would be lost"
    if name in _AT_LEAST and int(found) != -1 and int(found) < int(wanted):
        return f"topic {topic} has {name}={found}, the engine needs at least {wanted}"
    return None


def _refuse(problems: Sequence[str]) -> None:
    if problems:
        raise ConfigError(
            f"the topics don't fit, and starting would lose records: {'; '.join(problems)}. "
            "Missing ones: `inference-engine topics create`. Unfit ones are never changed by themselves: "
            "alter their settings, use another topic prefix, or delete them if their records may go."
        )


def _consequence(error: KafkaException, what: str) -> Exception:
    cause: KafkaError = error.args[0]
    if cause.retriable() or cause.code() in (
        KafkaError._TRANSPORT,
        KafkaError._ALL_BROKERS_DOWN,
        KafkaError._TIMED_OUT,
        KafkaError._TIMED_OUT_QUEUE,
    ):
        return Unavailable(f"{what}: {cause.str()}. Nothing was lost; check the address in KAFKA_BROKERS and that the broker runs")
    return ConfigError(f"{what}: {cause.str()} ({cause.name()}). Nothing was started; check the rights and the limits of the cluster")

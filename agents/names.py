"""Names that every process of one engine must agree on."""

from collections.abc import Sequence
from dataclasses import replace

from ..connectors.kafka_admin import topic_specs
from ..schemas.topics import Topics, TopicSpec
from .settings import Settings

EXACT_TABLE = "exact"
DECISIONS_TABLE = "decisions"
"""What was learned about sharing answers, by scope shard."""
LESSONS_TABLE = "lessons"


def app_id(topics: Topics) -> str:
    """The consumer group of the workers."""
    return f"{topics.prefix}inference-engine"


def changelogs(topics: Topics) -> tuple[str, ...]:
    """Changelog topics of the workers' tables, to be created before any worker starts."""
    return tuple(f"{app_id(topics)}-{table}-changelog" for table in (EXACT_TABLE, DECISIONS_TABLE, LESSONS_TABLE))


def specs(settings: Settings) -> Sequence[TopicSpec]:
    """Every topic of an engine with these settings: created by these, verified by these."""
    topics = settings.topics
    known = topic_specs(topics, settings.kafka_partitions, changelogs(topics), horizon_days=settings.dedupe_horizon_days)
    shared = next(spec for spec in known if spec.name == topics.requests)
    return [*known, *(replace(shared, name=name) for name in tenant_topics(settings))]


def tenant_topics(settings: Settings) -> dict[str, str]:
    """Full name of a requests topic -> the only tenant that may write to it."""
    return {f"{settings.topics.prefix}{name}": tenant for name, tenant in settings.tenant_topics.items()}

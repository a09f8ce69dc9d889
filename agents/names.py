"""Names that every process of one engine must agree on."""

from ..schemas.topics import Topics

EXACT_TABLE = "exact"


def app_id(topics: Topics) -> str:
    """The consumer group of the workers."""
    return f"{topics.prefix}inference-engine"


def changelogs(topics: Topics) -> tuple[str, ...]:
    """Changelog topics of the workers' tables, to be created before any worker starts."""
    return (f"{app_id(topics)}-{EXACT_TABLE}-changelog",)

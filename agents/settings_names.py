"""Environment names: which are ours, which were somebody else's, and what a misspelt one was meant to be."""

import difflib
import re
from collections.abc import Iterable, Mapping

from ..pipeline.errors import ConfigError

NAMESPACES = ("API_", "BATCH_", "CACHE_", "CLICKHOUSE_", "EMBEDDING_", "KAFKA_", "MODELS_", "QDRANT_", "ROUTING_", "SIMULATED_")
"""A name that begins so and is not known is an error: it was meant for us."""

SWITCH = re.compile(r"MODELS_([A-Z0-9_]+)_ENABLED")

REPLACED = {
    "REDIS_": "the exact cache is a table of the engine itself, on the Kafka topic `answers`: nothing is stored in Redis",
    "TIMESCALEDB_": "costs are kept in ClickHouse: set CLICKHOUSE_URL, or nothing for the embedded one",
}

_READ_ELSEWHERE = frozenset({"INFERENCE_ENGINE_JAVA"})
# Set by Kafka's own scripts, by the images of Qdrant and ClickHouse, and by Kubernetes for each service of the namespace.
_FOREIGN = re.compile(
    r"KAFKA_(HOME|OPTS|\w+_OPTS|DEBUG|LOG4J_CMD_OPTS)|QDRANT__\w+|CLICKHOUSE_(USER|PASSWORD|DB|CONFIG|UID|GID|DO_NOT_CHOWN)"
    r"|\w+_SERVICE_(HOST|PORT(_\w+)?)|\w+_PORT(_\d+_(TCP|UDP)(_\w+)?)"
)


def is_address_of_a_service(value: str) -> bool:
    """Kubernetes sets API_PORT=tcp://10.0.0.1:80 where a service is called `api`: not a setting."""
    return value.startswith(("tcp://", "udp://"))


def check_names(values: Mapping[str, str], known: Iterable[str], source: str) -> list[str]:
    """Sentences about settings that something else replaced. Raises `ConfigError` for a name that nobody knows.

    `source` says where the names stand, for the message.
    """
    names = {*known, *_READ_ELSEWHERE}
    notices = []
    for name, value in sorted(values.items()):
        if name in names or SWITCH.fullmatch(name) or _FOREIGN.fullmatch(name) or is_address_of_a_service(value):
            continue
        replaced = next((text for prefix, text in REPLACED.items() if name.startswith(prefix)), None)
        if replaced is not None:
            notices.append(f"{name} ({source}) has no effect: {replaced}")
        elif name.startswith((*NAMESPACES, "INFERENCE_ENGINE_")):
            raise ConfigError(f"{source} sets {name}, which is no setting of this engine; {_meant(name, names)}")
    return notices


def _meant(name: str, names: Iterable[str]) -> str:
    models = name.startswith("MODELS_")
    near = difflib.get_close_matches(name, sorted(names), 1, 0.9 if models else 0.6)
    if near:
        return f"did you mean {near[0]}?"
    if models:
        return "models are switched by MODELS_<NAME>_ENABLED=true|false, and described in the file that MODELS_FILE names"
    return "remove it; `inference-engine config` lists all settings"

"""Apache Kafka's own jars: resolved once through `jgo`, then found again without any network."""

import json
import os
from pathlib import Path

from ..pipeline.errors import ConfigError

KAFKA_COORDINATE = "org.apache.kafka:kafka_2.13:4.3.1"
LOGGING_COORDINATE = "org.apache.logging.log4j:log4j-slf4j-impl:2.25.4"
"""The slf4j back end that fits the log4j 2.25.4 which Kafka brings; without one its log is thrown away."""

_RECORD_VERSION = 1


def default_cache_dir() -> Path:
    """Where the class path is recorded: `inference-engine` beside jgo's own cache."""
    import platformdirs

    return Path(platformdirs.user_cache_dir("inference-engine"))


def kafka_classpath(cache_dir: Path | None = None) -> tuple[Path, ...]:
    """All jars of the broker, in a fixed order.

    The first call resolves them (network, about 10 s, 45 MB) and records the result; later calls read the record as long as every
    file is there with its size, and never ask the network. Raises ConfigError that names what couldn't be fetched.
    """
    cache_dir = cache_dir or default_cache_dir()
    recorded = recorded_classpath(cache_dir)
    if recorded is not None:
        return recorded
    jars = _resolve()
    _record(cache_dir, jars)
    return jars


def recorded_classpath(cache_dir: Path | None = None) -> tuple[Path, ...] | None:
    """The recorded jars, or None where there is no record or a file is missing or has another size. Touches no network."""
    path = _record_path(cache_dir or default_cache_dir())
    try:
        record = json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return None
    if record.get("version") != _RECORD_VERSION or record.get("coordinates") != [KAFKA_COORDINATE, LOGGING_COORDINATE]:
        return None
    jars: list[Path] = []
    for name, size in record["jars"]:
        jar = Path(name)
        if not jar.is_file() or jar.stat().st_size != size:
            return None
        jars.append(jar)
    return tuple(jars) or None


def _record_path(cache_dir: Path) -> Path:
    return cache_dir / "kafka-classpath.json"


def _record(cache_dir: Path, jars: tuple[Path, ...]) -> None:
    cache_dir.mkdir(parents=True, exist_ok=True)
    record = {
        "version": _RECORD_VERSION,
        "coordinates": [KAFKA_COORDINATE, LOGGING_COORDINATE],
        "jars": [[str(jar), jar.stat().st_size] for jar in jars],
    }
    part = _record_path(cache_dir).with_suffix(f".{os.getpid()}.part")
    part.write_text(json.dumps(record, indent=1))
    part.replace(_record_path(cache_dir))


def _resolve() -> tuple[Path, ...]:
    # Two resolutions on purpose: jgo imports the managed versions of every coordinate it is given together, and the logging
    # parent manages kafka-clients 3.9, with which the 4.3 broker doesn't start.
    kafka = _build(KAFKA_COORDINATE)
    names = {jar.name for jar in kafka}
    logging = [jar for jar in _build(LOGGING_COORDINATE) if jar.name.startswith("log4j-slf4j-impl") and jar.name not in names]
    return (*kafka, *logging)


def _build(coordinate: str) -> list[Path]:
    import jgo
    from jgo.config import GlobalSettings

    try:
        mirrors = GlobalSettings.load().repositories or None  # jgo.build itself doesn't read the user's mirrors
        return [Path(str(jar)) for jar in jgo.build(coordinate, repositories=mirrors).all_jars]
    except Exception as error:  # jgo lets requests' and its own RuntimeErrors through: all mean the same to the user
        raise ConfigError(
            f"the embedded Kafka needs {coordinate} and its jars, and they could not be fetched: {_innermost(error)}. "
            "Nothing was started and no data was touched. Ways round it: set KAFKA_BROKERS to a running cluster; or run any command "
            "once with network access; or copy the folders .m2/repository and .cache/jgo from a machine that has them into the home "
            "folder (M2_REPO and JGO_CACHE_DIR move them; a jgo.conf may name a mirror)."
        ) from error


def _innermost(error: BaseException) -> str:
    chain = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None:
        chain.append(cause)
    told = f"{type(error).__name__}: {error}"
    return told if len(chain) == 1 else f"{told} ({type(chain[-1]).__name__}: {chain[-1]})"

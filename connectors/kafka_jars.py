"""Apache Kafka's own jars: resolved once through `jgo` into one folder of the user's cache, then found again without any network."""

import json
import shutil
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

import platformdirs

from ..pipeline.errors import ConfigError

KAFKA_COORDINATE = "org.apache.kafka:kafka_2.13:4.3.1"
LOGGING_COORDINATE = "org.apache.logging.log4j:log4j-slf4j-impl:2.25.4"
"""The slf4j back end that fits the log4j 2.25.4 which Kafka brings; without one its log is thrown away."""

_RECORD = "classpath.json"


def default_cache_dir() -> Path:
    """The user's cache folder of this engine."""
    return Path(platformdirs.user_cache_dir("inference-engine"))


def jars_dir(cache_dir: Path | None = None) -> Path:
    """The one folder that holds all jars: copied to another machine it serves there without any network."""
    return (cache_dir or default_cache_dir()) / "kafka-4.3.1"


def kafka_classpath(cache_dir: Path | None = None) -> tuple[Path, ...]:
    """All jars of the broker, in a fixed order.

    The first call resolves them (network, about 10 s, 45 MB); later calls only look whether every file is there with its size.
    An interrupted first call leaves nothing behind that a later one would use. Raises ConfigError that names what couldn't be fetched.
    """
    known = recorded_classpath(cache_dir)
    if known is not None:
        return known
    _fetch(jars_dir(cache_dir))
    known = recorded_classpath(cache_dir)
    if known is None:
        raise ConfigError(f"the jars in {jars_dir(cache_dir)} changed while they were written; delete the folder and try again")
    return known


def recorded_classpath(cache_dir: Path | None = None) -> tuple[Path, ...] | None:
    """The jars, or None where there is no record or a file is missing or has another size. Touches no network."""
    folder = jars_dir(cache_dir)
    try:
        record = json.loads((folder / _RECORD).read_text())
        sizes = {folder / str(name): int(size) for name, size in record["jars"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    if record.get("coordinates") != [KAFKA_COORDINATE, LOGGING_COORDINATE]:
        return None
    whole = all(jar.is_file() and jar.stat().st_size == size for jar, size in sizes.items())
    return tuple(sizes) if whole and sizes else None


def _fetch(folder: Path) -> None:
    """Fetch beside, check, rename: other commands see no jars or all of them."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".kafka-", dir=folder.parent) as scratch:
        jars = _resolve(Path(scratch))
        part = Path(scratch) / "whole"
        part.mkdir()
        for jar in jars:
            shutil.copyfile(jar, part / jar.name)
        record = {"coordinates": [KAFKA_COORDINATE, LOGGING_COORDINATE], "jars": {jar.name: jar.stat().st_size for jar in jars}}
        (part / _RECORD).write_text(json.dumps(record, indent=1))
        if folder.exists():  # incomplete, or of another make
            shutil.rmtree(folder, ignore_errors=True)
        try:
            part.rename(folder)
        except OSError:
            if recorded_classpath(folder.parent) is None:  # else another command was quicker, and its jars are as good
                raise


def _resolve(scratch: Path) -> list[Path]:
    # Two resolutions on purpose: jgo imports the managed versions of every coordinate it is given together, and the logging
    # parent manages kafka-clients 3.9, with which the 4.3 broker doesn't start.
    kafka = _build(KAFKA_COORDINATE, scratch)
    names = {jar.name for jar in kafka}
    logging = [jar for jar in _build(LOGGING_COORDINATE, scratch) if jar.name.startswith("log4j-slf4j-impl") and jar.name not in names]
    return [*kafka, *logging]


def _build(coordinate: str, scratch: Path) -> list[Path]:
    """The user's own Maven repository serves first; where something in it is missing or broken, all comes from the network."""
    from jgo.constants import default_maven_repo

    try:
        return _jars(coordinate, scratch / "with-local", [Path(default_maven_repo())])
    except Exception:  # an interrupted download of any program leaves half a file there, and jgo tells that in many ways
        try:
            return _jars(coordinate, scratch / "remote-only", [])
        except Exception as error:
            raise ConfigError(
                f"the embedded Kafka needs {coordinate} and its jars, and they could not be fetched: {_told(error)}. "
                "Nothing was started and no data was touched. Ways round it: set KAFKA_BROKERS to a running cluster; or run any command "
                f"once with network access; or copy the folder {scratch.parent / jars_dir().name} from a machine that has it. "
                "A mirror can be named under [repositories] in jgo.conf, a proxy in HTTPS_PROXY."
            ) from error


def _jars(coordinate: str, scratch: Path, local: Sequence[Path]) -> list[Path]:
    """Raises whatever jgo raises, and ValueError where a jar is not whole."""
    from jgo.config import GlobalSettings
    from jgo.constants import MAVEN_CENTRAL_URL
    from jgo.env import EnvironmentBuilder, LinkStrategy
    from jgo.maven import MavenContext

    context = MavenContext(
        repo_cache=scratch / "repository",
        local_repos=list(local),
        remote_repos={**GlobalSettings.load().repositories, "central": MAVEN_CENTRAL_URL},
    )
    builder = EnvironmentBuilder(context=context, cache_dir=scratch / "environment", link_strategy=LinkStrategy.AUTO)
    jars = [Path(str(jar)) for jar in builder.from_endpoint(coordinate).all_jars]
    for jar in jars:
        if not zipfile.is_zipfile(jar):
            raise ValueError(f"{jar.name} is not a whole jar")
    return jars


def _told(error: BaseException) -> str:
    chain = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None:
        chain.append(cause)
    told = f"{type(error).__name__}: {error}"
    return told if len(chain) == 1 else f"{told} ({type(chain[-1]).__name__}: {chain[-1]})"

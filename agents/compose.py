"""The composition root of a worker: settings become parts."""

import asyncio
import signal
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import structlog

from ..connectors.data_folder import DataFolder
from ..connectors.experiments_toml import load_experiments
from ..connectors.heap import look_less_often
from ..connectors.models_toml import load_catalogue
from ..connectors.process import allow_open_files, end_within
from ..connectors.providers import build_batches, build_providers
from ..connectors.providers.simulated import SimulatedOptions
from ..connectors.qdrant import QdrantEdgeIndex, QdrantServerIndex
from ..connectors.simulated_batches import BatchOptions
from ..connectors.state_file import remove_state, write_state
from ..pipeline.billing import unpriced
from ..pipeline.breaker import BreakerPolicy
from ..pipeline.coalesce import load_clustering
from ..pipeline.errors import ConfigError
from ..pipeline.hedge import HedgePolicy
from ..pipeline.ingest import Door
from ..pipeline.lanes import LAWS, Bounds
from ..pipeline.learned_settings import LearnedSettings
from ..pipeline.models import Catalogue, Model, ProviderName
from ..pipeline.ports import BatchProvider, Provider, VectorIndex
from ..pipeline.prices import day_of
from ..pipeline.semantic import StaticPolicy
from ..pipeline.window import WindowPolicy, window_policies
from ..schemas.record import Lane
from .attempt import CallSettings
from .coalesce import CoalesceSettings
from .embedders import embedder_of, embedding_price
from .keeper import EvictionKeeper
from .learners import Promised
from .ledger import LedgerSettings
from .names import specs, tenant_topics
from .routers import Routers
from .routing import asked_model, judge_of, policies_of, route_with, rules_of
from .settings import Settings, secret
from .throttle import ThrottleSettings
from .watchdog import WatchdogSettings
from .worker import Worker, now_ms
from .worker_parts import Grading, Judging, Learning, SemanticParts, WorkerParts

log = structlog.get_logger(__name__)

SPARE_FILES = 1024
"""Of a worker, besides a connection for each call in flight."""
EXIT_S = 20.0
"""For the interpreter to end once the worker has: what still runs then would run for ever."""

EXPRESS_SHARE = 8
"""One in so many permits is kept for the express lane, which so never waits for a full batch lane."""


def catalogue_of(settings: Settings) -> Catalogue:
    """The models that can be asked with these settings."""
    known = load_catalogue(settings.models_file, settings.models_enabled).for_providers(settings.providers)
    return known.standing_in(settings.routing.equivalents)


def permits_of(settings: Settings) -> dict[Lane, int]:
    """Calls in flight by lane; together `MAX_IN_FLIGHT`."""
    express = max(1, settings.max_in_flight // EXPRESS_SHARE)
    rest = max(1, settings.max_in_flight - express)
    return {Lane.EXPRESS: express, Lane.STANDARD: max(1, rest // 2), Lane.BATCH: max(1, rest - rest // 2)}


def _make_index(settings: Settings, folder: Path, partition: int) -> VectorIndex:
    dimension = settings.caching.embedding_dimension
    if settings.qdrant_url is not None:
        return QdrantServerIndex.connect(
            settings.qdrant_url, settings.qdrant_collection_name, dimension, api_key=secret(settings.qdrant_api_key)
        )
    # Filled from the topic at every start: so it never holds what was revoked meanwhile.
    return QdrantEdgeIndex.recreate(folder / "vectors" / str(partition), dimension)


def _windows(settings: Settings) -> Mapping[Lane, WindowPolicy]:
    batching = settings.batching
    return window_policies(
        min_size=batching.min_size,
        max_size=batching.max_size,
        max_wait_ms=batching.max_wait_ms,
        express_max_wait_ms=batching.express_max_wait_ms,
        batch_max_wait_ms=batching.batch_max_wait_ms,
    )


def _throttle(settings: Settings) -> ThrottleSettings:
    batching, window = settings.batching, _windows(settings)[Lane.BATCH]
    longest = max(1.0, float(window.max_wait_ms))
    bounds = Bounds(window.min_size, window.max_size, min_window_ms=min(10.0, longest), max_window_ms=longest)
    held = batching.priority_lanes and batching.lane_law != "fixed"
    return ThrottleSettings(float(batching.target_latency_p95), bounds, LAWS[batching.lane_law], enabled=held)


def _semantic(settings: Settings, catalogue: Catalogue, folder: Path) -> SemanticParts | None:
    found = embedder_of(settings)
    if found.embedder is None:
        log.warning(f"the semantic tier is off: {found.reason}")
        return None
    load_clustering()
    caching, batching = settings.caching, settings.batching
    return SemanticParts(
        embedder=found.embedder,
        make_index=partial(_make_index, settings, folder),
        keeper=EvictionKeeper(
            caching.eviction_policy, caching.semantic_cache_size, caching.max_memory_mb * 1024 * 1024, settings.kafka_partitions
        ),
        policy=sharing_of(settings, catalogue),
        judge_similarity=caching.judge_similarity,
        price=embedding_price(settings, day_of(now_ms())),
        coalesce=CoalesceSettings(
            windows=_windows(settings), group_similarity=batching.similarity_threshold, enabled=batching.enable_semantic_grouping
        ),
    )


def sharing_of(settings: Settings, catalogue: Catalogue) -> StaticPolicy | Learning:
    """Who may share an answer, and how often that may be wrong. Raises `ConfigError` where the judge can't be asked."""
    caching = settings.caching
    if caching.policy == "static":
        return StaticPolicy(threshold=caching.similarity_threshold, min_access_count=caching.min_access_count)

    def promised(tenant: str, feature: str) -> Promised:
        bound = caching.error_bound_tenants.get(tenant, caching.error_bound)
        if feature not in caching.error_bound_features:
            return Promised(tenant, "", bound)
        own = caching.error_bound_features[feature]
        return Promised(tenant, feature, min(bound, own) if tenant in caching.error_bound_tenants else own)

    learned = LearnedSettings(per=caching.error_bound_per, audit_rate=caching.audit_rate)
    return Learning(learned, promised, judging_of(settings, catalogue))


def judging_of(settings: Settings, catalogue: Catalogue) -> Judging | None:
    """The model that compares answers; None where their embeddings do. Raises `ConfigError` where it can't be asked, or has no price."""
    name = settings.caching.judge_model
    if name is None:
        return None
    return _judging(settings, catalogue, asked_model(catalogue, name, "CACHE_JUDGE_MODEL can't compare answers"))


def grading_of(settings: Settings, catalogue: Catalogue) -> Grading | None:
    """The model that says what answers are worth; None where none is named. Raises `ConfigError` as `judging_of` does."""
    model = judge_of(settings, catalogue)
    return None if model is None else Grading(_judging(settings, catalogue, model), settings.routing.judge_rate)


def _judging(settings: Settings, catalogue: Catalogue, model: Model) -> Judging:
    rules = rules_of(settings, catalogue)
    return Judging(model, lambda tenant: rules.forbids(model, tenant) is None)


def _call_settings(settings: Settings) -> CallSettings:
    timeout_s = settings.call_timeout_seconds
    return CallSettings(
        max_attempts=settings.max_attempts,
        call_timeout_s=timeout_s,
        # After a crash a call is waited for until timeout and slack are over: short calls should not wait for a long slack.
        intent_slack_s=min(CallSettings().intent_slack_s, max(2.0, timeout_s)),
        give_up_s=settings.give_up_seconds,
        max_record_bytes=6_000_000,
        stream=settings.provider_streaming,
        cascade_score=settings.routing.cascade_score,
        fall_back=settings.routing.fallback_on_answers if settings.routing.fallback_enabled else "never",
    )


def _batches(settings: Settings, providers: Mapping[ProviderName, Provider]) -> dict[str, BatchProvider]:
    config = settings.provider_batches
    if not config.enabled:
        return {}
    built = build_batches(
        providers,
        openai_api_key=secret(settings.openai_api_key),
        openai_base_url=settings.openai_base_url,
        anthropic_api_key=secret(settings.anthropic_api_key),
        anthropic_base_url=settings.anthropic_base_url,
        # One folder for all workers: whoever takes a partition over finds its batches.
        simulated=BatchOptions(turnaround_s=settings.simulated_batch_seconds, folder=settings.data_dir / "simulated-batches"),
    )
    for batches in built.values():
        batches.traits = batches.traits.adjusted(
            gather_s=config.gather_seconds, poll_s=config.poll_seconds, turnaround_s=config.turnaround_seconds,
            reserve_s=config.reserve_seconds, rows=config.max_rows,
        )  # fmt: skip
    return {str(name): batches for name, batches in built.items()}


def _watchdog_settings(settings: Settings) -> WatchdogSettings:
    # A call that is under way makes no step until it times out.
    call_s = settings.call_timeout_seconds + CallSettings().intent_slack_s
    return WatchdogSettings(stall_s=settings.stall_timeout_seconds + call_s, recovery_s=settings.recovery_timeout_seconds)


def compose(settings: Settings, folder: Path, index: int = 0) -> WorkerParts:
    """The parts of the worker with this index. Takes seconds where an embedder is loaded.

    Raises `ConfigError` where the settings can't work.
    """
    if not settings.brokers:
        raise ConfigError("a worker needs KAFKA_BROKERS; `inference-engine up` starts a Kafka and workers together")
    providers = build_providers(
        openai_api_key=secret(settings.openai_api_key),
        openai_base_url=settings.openai_base_url,
        anthropic_api_key=secret(settings.anthropic_api_key),
        anthropic_base_url=settings.anthropic_base_url,
        vllm_base_url=settings.vllm_base_url,
        vllm_api_key=secret(settings.vllm_api_key),
        cohere_api_key=secret(settings.cohere_api_key),
        cohere_base_url=settings.cohere_base_url,
        simulated=SimulatedOptions(latency_s=settings.simulated_latency_ms / 1000) if settings.providers == ("simulated",) else None,
    )
    catalogue = catalogue_of(settings)
    for name, why in unpriced(catalogue, day_of(now_ms())).items():
        log.warning("a model without a known price is never chosen", model=name, why=why)
    caching, experiments = settings.caching, load_experiments(settings.routing.experiments_file, catalogue)
    routers = Routers() if "learned" in policies_of(settings, experiments) else None
    door = Door(catalogue, caching.ttl_seconds, priority_lanes=settings.batching.priority_lanes, experiments=experiments)
    return WorkerParts(
        brokers=tuple(settings.brokers),
        topics=settings.topics,
        specs=specs(settings),
        partitions=settings.kafka_partitions,
        data_dir=folder,
        store=settings.store,
        catalogue=catalogue,
        door=door,
        providers={str(name): provider for name, provider in providers.items()},
        keeper=EvictionKeeper(caching.eviction_policy, caching.exact_cache_size, None, settings.kafka_partitions),
        decide_route=route_with(settings, catalogue, routers, experiments),
        routers=routers,
        grading=grading_of(settings, catalogue),
        semantic=_semantic(settings, catalogue, folder),
        tenants=tenant_topics(settings),
        default_tenant=settings.default_tenant,
        permits=permits_of(settings),
        breaker=BreakerPolicy(threshold=settings.routing.circuit_breaker_threshold),
        hedge=HedgePolicy.of(settings.hedge_after_seconds, settings.hedge_tenants),
        throttle=_throttle(settings),
        call=_call_settings(settings),
        batches=_batches(settings, providers),
        on_ambiguous=lambda tenant: settings.on_ambiguous_tenants.get(tenant, settings.on_ambiguous),
        metrics_port=settings.prometheus_port + index if settings.prometheus_port else 0,
        watchdog=_watchdog_settings(settings),
        prefix_enabled=caching.prefix_enabled,
        prefix_cache_size=caching.prefix_cache_size,
        ledger=LedgerSettings(horizon_ms=settings.dedupe_horizon_days * 24 * 3600 * 1000),
    )


async def run_worker(settings: Settings, *, state_file: Path | None = None, index: int = 0) -> None:
    """Runs a worker until SIGTERM or SIGINT, as the last thing that this process does: it ends soon after this returned.

    Writes `state_file` when it is ready, removes it at the end.
    """
    files = allow_open_files(settings.max_in_flight + SPARE_FILES)
    if 0 <= files < settings.max_in_flight + SPARE_FILES:
        log.warning("a call may fail for want of open files: raise the hard limit (ulimit -Hn) or lower MAX_IN_FLIGHT", open_files=files)
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    folder = DataFolder(settings.data_dir)
    if state_file is None:
        state_file = folder.state_file(f"worker-{index}")
    elif (named := state_file.stem.rpartition("-")[2]).isdecimal():
        index = int(named)
    if settings.enable_tracing:
        log.warning("ENABLE_TRACING is set, but this version writes no spans; metrics are on PROMETHEUS_PORT")
    data = folder.child_data(state_file.stem)
    parts = await asyncio.to_thread(compose, settings, data, index)

    def ready(port: int) -> None:
        look_less_often()
        write_state(state_file, port=port)

    try:
        await Worker(parts).run(stop, on_ready=ready)
    finally:
        remove_state(state_file)
        end_within(EXIT_S)

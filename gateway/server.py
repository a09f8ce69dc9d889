"""Puts the gateway together from the settings, and serves it."""

import signal
import sys
import time
from functools import partial
from types import FrameType

import uvicorn
from fastapi import FastAPI
from prometheus_client import CollectorRegistry

from ..agents.settings import Settings, load_settings
from ..agents.settings_shown import effective
from ..connectors.asker import Asker
from ..connectors.costs_access import CostsLocation, open_running
from ..connectors.data_folder import DataFolder
from ..connectors.models_toml import load_catalogue
from ..pipeline.complexity import Weights
from ..pipeline.errors import ConfigError
from ..pipeline.ingest import Door
from .app import Gateway, create_app
from .keys import Access, load_keys


def gateway_of(settings: Settings) -> Gateway:
    """Raises `ConfigError`. KAFKA_BROKERS must be set: who starts an embedded stack passes its address on."""
    if not settings.brokers:
        raise ConfigError("the gateway needs a broker: set KAFKA_BROKERS, or start it by `inference-engine gateway`")
    known = load_catalogue(settings.models_file, settings.models_enabled).for_providers(settings.providers)
    catalogue = known.standing_in(settings.routing.equivalents)
    return Gateway(
        asker=Asker(settings.brokers, settings.topics),
        door=Door(catalogue=catalogue, default_ttl_s=settings.caching.ttl_seconds),
        access=Access(load_keys(settings.api_keys_file) if settings.api_keys_file else None, settings.default_tenant),
        timeout_s=settings.api_timeout_seconds,
        weights=Weights.of(settings.routing.complexity_weights),
        shown=lambda: effective(settings),
        now_ms=lambda: time.time_ns() // 1_000_000,
        registry=CollectorRegistry(),
        costs=partial(open_running, costs_of(settings)),
        feedback_topic=settings.topics.feedback,
        corrections_topic=settings.topics.corrections,
    )


def costs_of(settings: Settings) -> CostsLocation:
    """A server where CLICKHOUSE_URL names one, else the sink of this machine."""
    folder = DataFolder(settings.data_dir)
    return CostsLocation(settings.clickhouse_url, folder.state_file("sink"), folder.costs)


def app_of_environment() -> FastAPI:
    """For uvicorn, which makes the application anew in each of its processes."""
    return create_app(gateway_of(load_settings()))


def serve(settings: Settings) -> None:
    """Serves until it is told to stop. Raises `ConfigError` before anything is opened."""
    gateway_of(settings)  # mistakes are told here, once, and not by each process
    # Once it has stopped, uvicorn sends itself the signal that it was stopped by: whoever is asked to end and does so has not failed.
    signal.signal(signal.SIGTERM, _end)
    uvicorn.run(
        "inference_engine.gateway.server:app_of_environment",
        factory=True,
        host=settings.api_host,
        port=settings.api_port,
        workers=settings.api_workers,
        log_level=settings.log_level.lower(),
        timeout_graceful_shutdown=10,
    )


def _end(_signal: int, _frame: FrameType | None) -> None:
    sys.exit(0)

"""What the settings say about the engine that commands talk to: start it, find it, end it."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from logging import DEBUG, WARNING, basicConfig, getLevelNamesMapping

import structlog

from ..agents.names import specs
from ..agents.settings import Settings
from ..connectors.data_folder import DataFolder
from ..connectors.models_toml import load_catalogue
from ..pipeline.errors import ConfigError
from ..pipeline.models import Catalogue
from .command_settings import load_settings
from .stack import StackOptions, ensure, status
from .submitted import Submissions

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Engine:
    """One engine as this process sees it."""

    settings: Settings

    @property
    def folder(self) -> DataFolder:
        return DataFolder(self.settings.data_dir)

    @property
    def stack_options(self) -> StackOptions:
        settings = self.settings
        return StackOptions(
            folder=self.folder,
            brokers=settings.kafka_brokers,
            clickhouse_url=settings.clickhouse_url,
            workers=settings.workers,
            specs=specs(settings),
            replication_factor=settings.kafka_replication_factor,
            fingerprint=settings.hash_for_workers(),
            ready_timeout_s=settings.start_timeout_seconds,
        )

    def start(self, say: Say) -> str:
        """The brokers, once broker, sink and workers are ready; what runs already is used."""
        return ensure(self.stack_options, say).brokers

    def running(self) -> str:
        """The brokers, where they are set or run; starts nothing. Raises `ConfigError`."""
        brokers = self.settings.kafka_brokers or status(self.folder).brokers
        if brokers is None:
            raise ConfigError("no engine runs on this machine and KAFKA_BROKERS is not set: start one with `inference-engine up`")
        return brokers

    def catalogue(self) -> Catalogue:
        settings = self.settings
        known = load_catalogue(settings.models_file, settings.models_enabled).for_providers(settings.providers)
        return known.standing_in(settings.routing.equivalents)

    def submissions(self) -> Submissions:
        return Submissions(self.folder.root)


def engine() -> Engine:
    """By the environment and `.env`; log lines go to standard error, since standard output is for results. Raises `ConfigError`."""
    settings = load_settings()
    level = getLevelNamesMapping()[settings.log_level]
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(level))
    # The libraries' own logs: their news at INFO is ours at DEBUG.
    basicConfig(level=level if level <= DEBUG else max(level, WARNING))
    return Engine(settings)


def now_ms() -> int:
    return int(datetime.now(UTC).timestamp() * 1000)

"""The settings: one frozen object, read once from the environment and the file `.env`.

what the program says  >  the environment  >  .env in the working folder  >  defaults

Settings(caching=CachingConfig(similarity_threshold=0.95), kafka_brokers="broker:9092")
"""

import hashlib
import json
import warnings
from collections.abc import Callable, Iterator, Mapping
from decimal import Decimal
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, Self
from urllib.parse import urlsplit, urlunsplit

import structlog
from pydantic import BaseModel, Field, SecretStr, ValidationError, model_validator
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, EnvSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict

from ..connectors.data_folder import HOME_SETTING, data_folder
from ..pipeline.errors import ConfigError
from ..pipeline.models import ProviderName
from ..schemas.topics import Topics
from .settings_fields import BatchingConfig, CachingConfig, ProviderBatchConfig, RoutingConfig, env
from .settings_names import SWITCH, check_names, is_address_of_a_service

__all__ = ["BatchingConfig", "CachingConfig", "RoutingConfig", "Settings", "SettingsWarning", "load_settings"]

log = structlog.get_logger(__name__)

_MAPPINGS: Mapping[str, str] = {
    "ROUTING_COMPLEXITY_WEIGHTS": '{"length": 0.2, "reasoning": 0.3, ...}',
    "ROUTING_EQUIVALENTS": '{"gpt-4": ["gpt-4o"]}',
    "ROUTING_TENANT_MODELS": '{"acme": ["gpt-4o"]}',
    "ROUTING_TENANT_REGIONS": '{"acme": ["eu"]}',
    "TENANT_TOPICS": '{"requests.acme": "acme"}',
    "ON_AMBIGUOUS_TENANTS": '{"acme": "fail"}',
    "CACHE_ERROR_BOUND_TENANTS": '{"acme": 0.002}',
    "CACHE_ERROR_BOUND_FEATURES": '{"legal": 0}',
}
"""Settings that are JSON, and what they look like."""
_LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})
_NOT_FOR_WORKERS = frozenset({"api_host", "api_port", "api_workers", "api_keys_file", "api_timeout_seconds", "start_timeout_seconds"})


class SettingsWarning(UserWarning):
    """A setting that is accepted and has no effect."""


class Settings(BaseSettings):
    """All settings. Raises `ConfigError` for unknown names and pydantic's `ValidationError` for bad values."""

    model_config = SettingsConfigDict(
        frozen=True, extra="forbid", case_sensitive=True, env_ignore_empty=True, env_file=".env", env_file_encoding="utf-8",
        hide_input_in_errors=True,
    )  # fmt: skip

    batching: BatchingConfig = BatchingConfig()
    caching: CachingConfig = CachingConfig()
    routing: RoutingConfig = RoutingConfig()
    provider_batches: ProviderBatchConfig = ProviderBatchConfig()

    # Where everything is. Nothing set: the embedded stack.
    kafka_brokers: str | None = env("KAFKA_BROKERS", None, "host:port[,host:port]; unset: an embedded Apache Kafka")
    kafka_topic_prefix: str = env("KAFKA_TOPIC_PREFIX", "", "begins the name of every topic and group", pattern=r"^[A-Za-z0-9._-]*$")
    kafka_partitions: int = env("KAFKA_PARTITIONS", 4, "of every topic; can't be changed later", ge=1, le=1000)
    kafka_replication_factor: int = env("KAFKA_REPLICATION_FACTOR", 1, "of every topic", ge=1, le=10)
    qdrant_url: str | None = env("QDRANT_URL", None, "a Qdrant server; unset: Qdrant's engine in each worker")
    qdrant_api_key: SecretStr | None = env("QDRANT_API_KEY", None, "its key")
    qdrant_collection_name: str = env("QDRANT_COLLECTION_NAME", "semantic_cache", "the collection of the vectors", min_length=1)
    clickhouse_url: str | None = env(
        "CLICKHOUSE_URL", None, "http[s]://[user[:password]@]host[:port][/database]; unset: ClickHouse's engine in the sink"
    )
    home: Path | None = env("INFERENCE_ENGINE_HOME", None, "data folder; unset: the user's")

    # Providers
    openai_api_key: SecretStr | None = env("OPENAI_API_KEY", None, "opens OpenAI's models; several: k1,k2, each with its own limits")
    openai_base_url: str | None = env("OPENAI_BASE_URL", None, "another address of OpenAI's protocol")
    anthropic_api_key: SecretStr | None = env("ANTHROPIC_API_KEY", None, "opens Anthropic's models; several: k1,k2")
    anthropic_base_url: str | None = env("ANTHROPIC_BASE_URL", None, "another address of Anthropic's protocol")
    cohere_api_key: SecretStr | None = env("COHERE_API_KEY", None, "opens Cohere's models")
    cohere_base_url: str | None = env("COHERE_BASE_URL", None, "another address of Cohere's protocol")
    vllm_base_url: str | None = env("VLLM_BASE_URL", None, "a vLLM server, e.g. http://host:8000/v1")
    vllm_api_key: SecretStr | None = env("VLLM_API_KEY", None, "its key, where it wants one")
    simulated_latency_ms: int = env("SIMULATED_LATENCY_MS", 50, "how long the simulated provider thinks", ge=0, le=600_000)
    simulated_batch_seconds: float = env("SIMULATED_BATCH_SECONDS", 2.0, "how long its batches take", ge=0, le=86_400, allow_inf_nan=False)
    models_file: Path | None = env("MODELS_FILE", None, "a models.toml, merged over the built-in one")
    models_enabled: Mapping[str, bool] = Field(default_factory=dict, description="by MODELS_<NAME>_ENABLED")

    # Embeddings
    embedding_model: str | None = env("EMBEDDING_MODEL", None, "folder of a sentence-transformers model, or the endpoint's model")
    embedding_base_url: str | None = env("EMBEDDING_BASE_URL", None, "an OpenAI-compatible embeddings endpoint")
    embedding_api_key: SecretStr | None = env("EMBEDDING_API_KEY", None, "its key")
    embedding_max_tokens: int | None = env(
        "EMBEDDING_MAX_TOKENS", None, "what the endpoint's model sees of a text; unset: 8192 for OpenAI's own models, 256 for others", ge=8
    )
    embedding_price_per_mtok: Decimal | None = env(
        "EMBEDDING_PRICE_PER_MTOK", None, "USD per million tokens of the endpoint's model; unset: known for OpenAI's own, else 0",
        ge=0, decimal_places=6,
    )  # fmt: skip
    embedding_backend: Literal["auto", "torch", "openvino", "onnx"] = env(
        "EMBEDDING_BACKEND", "auto", "auto | torch | openvino | onnx: what runs the model; auto is openvino, else onnx, as installed"
    )
    embedding_threads: int | None = env("EMBEDDING_THREADS", None, "threads of the embedder in one worker; unset: all cores", ge=1)

    # Promises
    max_attempts: int = env("MAX_ATTEMPTS", 3, "payments of one request, at most", ge=1, le=20)
    call_timeout_seconds: float = env("CALL_TIMEOUT_SECONDS", 120.0, "of one provider call", gt=0, le=3600, allow_inf_nan=False)
    provider_streaming: bool = env("PROVIDER_STREAMING", False, "answers of single calls are taken as streams")
    give_up_seconds: float = env(
        "GIVE_UP_SECONDS", 600.0, "so long a request is tried while its provider can't be reached", ge=0, le=86_400, allow_inf_nan=False
    )
    max_in_flight: int = env("MAX_IN_FLIGHT", 4096, "provider calls at once, per worker", ge=1, le=100_000)
    dedupe_horizon_days: int = env("DEDUPE_HORIZON_DAYS", 7, "a paid answer is not paid again for so long", ge=1, le=365)
    on_ambiguous: Literal["retry", "fail"] = env("ON_AMBIGUOUS", "retry", "after a call that may have been billed: pay again, or fail")
    hedge_after_seconds: float | None = env(
        "HEDGE_AFTER_SECONDS", None, "an unanswered call of HEDGE_TENANTS is made a second time; unset: never", gt=0, le=3600
    )
    hedge_tenants: str = env("HEDGE_TENANTS", "", "tenants that allow to pay twice for the sake of time, separated by commas; *: all")
    on_ambiguous_tenants: Mapping[str, Literal["retry", "fail"]] = env(
        "ON_AMBIGUOUS_TENANTS", {}, 'tenants that want it otherwise than ON_AMBIGUOUS says, JSON: {"acme": "fail"}'
    )
    tenant_topics: Mapping[str, str] = env(
        "TENANT_TOPICS", {}, 'requests topics that one tenant writes to by itself, JSON: {"requests.acme": "acme"}'
    )
    default_tenant: str = env("DEFAULT_TENANT", "local", "of the command line and of callers on loopback", min_length=1, max_length=256)

    # Workers
    workers: int = env("WORKERS", 1, "worker processes of the embedded stack", ge=1, le=64)
    start_timeout_seconds: float = env(
        "START_TIMEOUT_SECONDS",
        90.0,
        "so long a command waits until the workers that it started are ready",
        ge=1,
        le=3600,
        allow_inf_nan=False,
    )
    stall_timeout_seconds: float = env(
        "STALL_TIMEOUT_SECONDS", 300.0, "a worker that gets nowhere for so long ends itself", ge=10, le=86_400, allow_inf_nan=False
    )
    recovery_timeout_seconds: float = env(
        "RECOVERY_TIMEOUT_SECONDS", 600.0, "so does one whose partitions are not recovered by then", ge=10, le=86_400, allow_inf_nan=False
    )
    store: Literal["rocksdb", "memory"] = env("STORE", "rocksdb", "where a worker keeps its tables")

    # The gateway
    api_host: str = env("API_HOST", "127.0.0.1", "where the gateway listens; beyond loopback only with API_KEYS_FILE")
    api_port: int = env("API_PORT", 8000, "its port", ge=0, le=65535)
    api_workers: int = env("API_WORKERS", 1, "its processes", ge=1, le=64)
    api_keys_file: Path | None = env("API_KEYS_FILE", None, "TOML: which key is which tenant")
    api_timeout_seconds: float = env(
        "API_TIMEOUT_SECONDS", 120.0, "how long a caller waits for an answer", gt=0, le=3600, allow_inf_nan=False
    )

    # What it tells
    prometheus_port: int | None = env("PROMETHEUS_PORT", None, "port of the workers' metrics; unset: none", ge=1, le=65535)
    enable_tracing: bool = env("ENABLE_TRACING", False, "OpenTelemetry spans; no effect yet")
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = env("LOG_LEVEL", "INFO", "DEBUG, INFO, WARNING or ERROR")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """What the program says, the environment, `.env`: each by the names of the fields."""
        assert isinstance(env_settings, EnvSettingsSource)
        assert isinstance(dotenv_settings, EnvSettingsSource)
        return (
            Said(settings_cls, init_settings),
            Named(settings_cls, env_settings.env_vars, "the environment"),
            Named(settings_cls, dotenv_settings.env_vars, "the file .env"),
        )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.api_host not in _LOOPBACK and self.api_keys_file is None:
            raise ValueError(
                f"API_HOST={self.api_host} opens the gateway to the network, where every caller needs a key; "
                "set API_KEYS_FILE, or API_HOST=127.0.0.1"
            )
        if self.kafka_brokers is not None and not self.brokers:
            raise ValueError("KAFKA_BROKERS names no broker; give host:port[,host:port], or unset it for the embedded Kafka")
        return self

    @property
    def brokers(self) -> list[str]:
        """Addresses out of KAFKA_BROKERS; empty where the embedded stack is used."""
        return [b.strip() for b in (self.kafka_brokers or "").split(",") if b.strip()]

    @property
    def topics(self) -> Topics:
        return Topics(self.kafka_topic_prefix)

    @property
    def data_dir(self) -> Path:
        """Where the embedded stack and the workers keep their data; absolute."""
        return data_folder({HOME_SETTING: str(self.home)} if self.home else {}).root

    @property
    def providers(self) -> tuple[ProviderName, ...]:
        """Those that are set up; only `simulated` where none is."""
        set_up: list[tuple[ProviderName, object]] = [
            ("openai", self.openai_api_key or self.openai_base_url),
            ("anthropic", self.anthropic_api_key or self.anthropic_base_url),
            ("vllm", self.vllm_base_url),
            ("cohere", self.cohere_api_key or self.cohere_base_url),
        ]
        return tuple(name for name, given in set_up if given) or ("simulated",)

    def hash_for_workers(self) -> str:
        """Hex SHA-256 of all that a worker's behaviour depends on: it is started anew where this differs.

        Covers secrets, the version and the content of the models and the experiments file.
        """
        values = {name: _plain(getattr(self, name)) for name in sorted(type(self).model_fields) if name not in _NOT_FOR_WORKERS}
        contents = [
            hashlib.sha256(path.read_bytes() if path is not None and path.is_file() else b"").hexdigest()
            for path in (self.models_file, self.routing.experiments_file)
        ]
        text = json.dumps([version("inference-engine"), values, contents], sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()

    def __repr_args__(self) -> Iterator[tuple[str | None, Any]]:
        for name, value in super().__repr_args__():
            yield name, redacted(value)


class Said(PydanticBaseSettingsSource):
    """What the program gives to `Settings(...)`: a group says only the fields that it sets, the rest comes from the environment."""

    def __init__(self, settings_cls: type[BaseSettings], given: Callable[[], dict[str, Any]]) -> None:
        super().__init__(settings_cls)
        self._given = given

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        return None, field_name, False

    def __call__(self) -> dict[str, Any]:
        return {k: v.model_dump(exclude_unset=True) if isinstance(v, BaseModel) else v for k, v in self._given().items()}


class Named(PydanticBaseSettingsSource):
    """Values by their environment names."""

    def __init__(self, settings_cls: type[BaseSettings], values: Mapping[str, str | None], source: str) -> None:
        super().__init__(settings_cls)
        self._values = {name: value for name, value in values.items() if value}
        self._source = source

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        return None, field_name, False

    def __call__(self) -> dict[str, Any]:
        names = env_names()
        for notice in check_names(self._values, names, self._source):
            warnings.warn(notice, SettingsWarning, stacklevel=2)
        found: dict[str, Any] = {}
        for name, path in names.items():
            value = self._values.get(name)
            if value is not None and not is_address_of_a_service(value):
                *groups, field = path
                (found.setdefault(groups[0], {}) if groups else found)[field] = _parsed(name, value)
        if switches := self._switches():
            found["models_enabled"] = switches
        return found

    def _switches(self) -> dict[str, str]:
        return {m[1].lower(): value for name, value in self._values.items() if (m := SWITCH.fullmatch(name))}


def env_names() -> dict[str, tuple[str, ...]]:
    """Every environment name -> the path of its field: ("kafka_brokers",) or ("caching", "ttl_seconds")."""
    return dict(_walk(Settings, ()))


def _walk(model: type[BaseModel], path: tuple[str, ...]) -> Iterator[tuple[str, tuple[str, ...]]]:
    for name, field in model.model_fields.items():
        extra = field.json_schema_extra
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _walk(field.annotation, (*path, name))
        elif isinstance(extra, dict) and "env" in extra:
            yield str(extra["env"]), (*path, name)


def _parsed(name: str, value: str) -> Any:
    """Text, which pydantic turns into the field's type; JSON for the mappings."""
    example = _MAPPINGS.get(name)
    if example is None:
        return value
    try:
        return json.loads(value)
    except ValueError:
        raise ConfigError(f"{name} is not JSON; give it as {example}") from None


def _plain(value: Any) -> Any:
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    return value.model_dump(mode="json") if isinstance(value, BaseModel) else value


def secret(value: SecretStr | None) -> str | None:
    """In clear, for whoever sends it."""
    return value.get_secret_value() if value is not None else None


def redacted(value: Any) -> Any:
    """The value as it may be shown: secrets masked, passwords taken out of addresses."""
    if isinstance(value, SecretStr):
        return "**********"
    if isinstance(value, str) and "://" in value and "@" in value:
        parts = urlsplit(value)
        return urlunsplit(parts._replace(netloc="***@" + parts.netloc.rpartition("@")[2]))
    return value


def load_settings(**said: Any) -> Settings:
    """For programs with people in front of them: every mistake is a `ConfigError`, replaced settings are logged."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", SettingsWarning)
        try:
            settings = Settings(**said)
        except ValidationError as error:
            raise ConfigError(_explained(error)) from None
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"the file .env can't be read ({error}); correct or remove it") from None
    for item in caught:
        log.warning(str(item.message))
    return settings


def _explained(error: ValidationError) -> str:
    by_path = {path: name for name, path in env_names().items()}
    lines = []
    for item in error.errors(include_url=False, include_input=False):
        path = tuple(str(p) for p in item["loc"])
        name = by_path.get(path) or next((n for p, n in by_path.items() if p == path[: len(p)]), None)
        text = item["msg"].removeprefix("Value error, ")
        if path[:1] == ("models_enabled",) and len(path) > 1:
            name = f"MODELS_{path[1].upper()}_ENABLED"
        lines.append(f"{name or '.'.join(path)}: {text}" if path and (name or path[-1] not in ("batching", "routing")) else text)
    return "the settings are wrong, nothing was started: " + "; ".join(lines)

"""The settings: who wins, what is refused, what is never shown."""

import os
from pathlib import Path

import orjson
import pytest
import typer
from pydantic import SecretStr, ValidationError
from typer.testing import CliRunner

import inference_engine
from inference_engine.agents.compose import compose
from inference_engine.agents.names import specs, tenant_topics
from inference_engine.agents.settings import env_names
from inference_engine.cli.config import config_command
from inference_engine.config import BatchingConfig, CachingConfig, RoutingConfig, Settings, SettingsWarning, load_settings
from inference_engine.pipeline.errors import ConfigError

ISSUE_NAMES = [
    "CACHE_SIMILARITY_THRESHOLD",
    "CACHE_TTL_SECONDS",
    "CACHE_EXACT_SIZE",
    "CACHE_SEMANTIC_SIZE",
    "CACHE_SEMANTIC_ENABLED",
    "CACHE_PREFIX_ENABLED",
    "CACHE_EVICTION_POLICY",
    "CACHE_MAX_MEMORY_MB",
    "EMBEDDING_DIMENSION",
    "BATCH_MIN_SIZE",
    "BATCH_MAX_SIZE",
    "BATCH_MAX_WAIT_MS",
    "BATCH_TARGET_LATENCY_P95",
    "ROUTING_STRATEGY",
    "ROUTING_COST_WEIGHT",
    "OPENAI_API_KEY",
    "OPENAI_BASE_URL",
    "ANTHROPIC_API_KEY",
    "ANTHROPIC_BASE_URL",
    "COHERE_API_KEY",
    "VLLM_BASE_URL",
    "QDRANT_URL",
    "QDRANT_COLLECTION_NAME",
    "CLICKHOUSE_URL",
    "KAFKA_BROKERS",
    "API_HOST",
    "API_PORT",
    "API_WORKERS",
    "PROMETHEUS_PORT",
    "ENABLE_TRACING",
    "LOG_LEVEL",
]


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """No setting of the machine, no .env of the checkout."""
    for name in list(os.environ):
        if name in env_names() or name.startswith(("MODELS_", "REDIS_")):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_documented_name_is_a_setting() -> None:
    assert set(ISSUE_NAMES) <= set(env_names())


def test_the_design_documents_env_file_is_accepted_and_redis_named_as_replaced(bare: Path) -> None:
    (bare / ".env").write_text(
        "API_HOST=127.0.0.1\nAPI_PORT=8000\nAPI_WORKERS=4\nOPENAI_API_KEY=sk-x\nANTHROPIC_API_KEY=sk-ant\nCOHERE_API_KEY=  # Optional\n"
        "REDIS_URL=redis://localhost:6379\nREDIS_MAX_CONNECTIONS=50\nQDRANT_URL=http://localhost:6333\n"
        "QDRANT_COLLECTION_NAME=semantic_cache\nBATCH_MIN_SIZE=4\nBATCH_MAX_SIZE=64\nBATCH_MAX_WAIT_MS=50\nBATCH_TARGET_LATENCY_P95=100\n"
        "CACHE_SEMANTIC_ENABLED=true\nCACHE_SIMILARITY_THRESHOLD=0.92\nCACHE_PREFIX_ENABLED=true\nCACHE_TTL_SECONDS=3600\n"
        "ROUTING_STRATEGY=cost_optimal  # cost_optimal, latency_optimal, balanced\nROUTING_COST_WEIGHT=0.7\nMODELS_GPT4_ENABLED=true\n"
        "MODELS_GPT35_ENABLED=false\nMODELS_CLAUDE_ENABLED=true\nPROMETHEUS_PORT=9090\nENABLE_TRACING=true\nLOG_LEVEL=INFO\n"
    )
    with pytest.warns(SettingsWarning) as warned:
        settings = Settings()
    assert [str(w.message).split(" ")[0] for w in warned] == ["REDIS_MAX_CONNECTIONS", "REDIS_URL"]
    assert all("nothing is stored in Redis" in str(w.message) for w in warned)
    assert settings.models_enabled == {"gpt4": True, "gpt35": False, "claude": True}
    assert settings.providers == ("openai", "anthropic")
    assert (settings.api_workers, settings.enable_tracing, settings.caching.similarity_threshold) == (4, True, 0.92)


def test_the_design_documents_program_works_as_written() -> None:
    settings = Settings(
        batching=BatchingConfig(enable_semantic_grouping=True, similarity_threshold=0.85, priority_lanes=True, express_max_wait_ms=10),
        caching=CachingConfig(exact_cache_size=10000, semantic_cache_size=50000, prefix_cache_size=1000, eviction_policy="lru"),
        routing=RoutingConfig(
            strategy="cost_optimal",
            fallback_enabled=True,
            circuit_breaker_threshold=5,
            complexity_weights={"length": 0.2, "reasoning": 0.3, "domain": 0.2, "context": 0.15, "output": 0.15},
        ),
    )
    assert settings.caching.exact_cache_size == 10000


def test_the_program_wins_over_the_environment_wins_over_dotenv_wins_over_the_default(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (bare / ".env").write_text("CACHE_TTL_SECONDS=1\nCACHE_EXACT_SIZE=1\nCACHE_SEMANTIC_SIZE=1\n")
    monkeypatch.setenv("CACHE_TTL_SECONDS", "2")
    monkeypatch.setenv("CACHE_EXACT_SIZE", "2")
    caching = Settings(caching=CachingConfig(ttl_seconds=3)).caching
    assert (caching.ttl_seconds, caching.exact_cache_size, caching.semantic_cache_size, caching.prefix_cache_size) == (3, 2, 1, 1000)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("CACHE_SIMILARITY_TRESHOLD", "CACHE_SIMILARITY_THRESHOLD"),
        ("KAFKA_BROKER", "KAFKA_BROKERS"),
        ("QDRANT_COLLECTION", "QDRANT_COLLECTION_NAME"),
        ("INFERENCE_ENGINE_HOM", "INFERENCE_ENGINE_HOME"),
        ("MODELS_GPT4", "MODELS_<NAME>_ENABLED"),
    ],
)
def test_a_misspelt_name_is_refused_with_the_nearest_right_one(name: str, meant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "x")
    with pytest.raises(ConfigError, match=meant):
        Settings()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("KAFKA_HEAP_OPTS", "-Xmx1g"),
        ("QDRANT__SERVICE__HTTP_PORT", "1"),
        ("KAFKA_SERVICE_HOST", "10.0.0.1"),
        ("API_PORT", "tcp://10.0.0.1:80"),
        ("CACHE_TTL_SECONDS", ""),
    ],
)
def test_names_that_other_programs_set_and_empty_values_change_nothing(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = Settings()
    monkeypatch.setenv(name, value)
    assert Settings() == expected


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("CACHE_SIMILARITY_THRESHOLD", "1.5", "CACHE_SIMILARITY_THRESHOLD: .*less than or equal to 1"),
        ("CACHE_SIMILARITY_THRESHOLD", "nan", "CACHE_SIMILARITY_THRESHOLD"),
        ("BATCH_MIN_SIZE", "100", r"BATCH_MIN_SIZE \(100\) is above BATCH_MAX_SIZE"),
        ("CACHE_EVICTION_POLICY", "fifo", "CACHE_EVICTION_POLICY: .*'lru', 'lfu' or 'cost_aware'"),
        ("ROUTING_COMPLEXITY_WEIGHTS", '{"length": 1}', "ROUTING_COMPLEXITY_WEIGHTS.*exactly length, reasoning"),
        ("ROUTING_COMPLEXITY_WEIGHTS", "length=1", "not JSON"),
        ("MODELS_GPT4_ENABLED", "maybe", "MODELS_GPT4_ENABLED"),
        ("API_HOST", "0.0.0.0", "every caller needs a key"),
        ("KAFKA_BROKERS", " , ", "names no broker"),
        ("STORE", "redis", "STORE"),
    ],
)
def test_a_bad_value_is_a_config_error_that_names_the_setting(name: str, value: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=said):
        load_settings()


def test_secrets_are_in_no_representation_and_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "canary-1")
    monkeypatch.setenv("CLICKHOUSE_URL", "http://user:canary-2@host:8123/db")
    settings = Settings()
    assert isinstance(settings.openai_api_key, SecretStr)
    assert settings.openai_api_key.get_secret_value() == "canary-1"
    monkeypatch.setenv("API_PORT", "canary-3")
    with pytest.raises(ConfigError) as refused:
        load_settings()
    assert "canary" not in f"{settings!r} {settings} {refused.value}"


def test_config_shows_each_value_its_source_and_no_secret(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (bare / ".env").write_text("CACHE_TTL_SECONDS=60\n")
    monkeypatch.setenv("OPENAI_API_KEY", "canary-1")
    monkeypatch.setenv("QDRANT_URL", "http://user:canary-2@host:6333")
    monkeypatch.setenv("MODELS_GPT4_ENABLED", "false")
    app = typer.Typer()
    app.command()(config_command)
    plain, json = CliRunner().invoke(app, []), CliRunner().invoke(app, ["--json"])
    assert plain.exit_code == json.exit_code == 0
    assert "canary" not in plain.output + json.output
    shown = orjson.loads(json.output)
    assert shown["CACHE_TTL_SECONDS"] == {"value": 60, "source": ".env"}
    assert shown["OPENAI_API_KEY"] == {"value": "**********", "source": "environment"}
    assert shown["QDRANT_URL"]["value"] == "http://***@host:6333"
    assert shown["MODELS_GPT4_ENABLED"] == {"value": False, "source": "environment"}
    assert shown["API_PORT"] == {"value": 8000, "source": "default"}
    assert "CACHE_TTL_SECONDS=60  # .env" in plain.output


def test_workers_restart_for_what_changes_them_and_for_nothing_else(tmp_path: Path) -> None:
    models = tmp_path / "models.toml"
    models.write_text("# one")
    first = Settings(models_file=models).hash_for_workers()
    assert Settings(models_file=models, api_port=1234).hash_for_workers() == first
    assert Settings(models_file=models, openai_api_key=SecretStr("other")).hash_for_workers() != first
    assert Settings(models_file=models, caching=CachingConfig(ttl_seconds=1)).hash_for_workers() != first
    models.write_text("# two")
    assert Settings(models_file=models).hash_for_workers() != first


def test_settings_are_frozen_and_reachable_from_the_top() -> None:
    assert inference_engine.Settings is Settings
    with pytest.raises(ValidationError):
        Settings().api_port = 1
    with pytest.raises(AttributeError):
        inference_engine.__getattr__("Sesttings")


def test_a_tenants_own_topics_are_read_and_belong_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TENANT_TOPICS", '{"requests.acme": "acme"}')
    monkeypatch.setenv("KAFKA_TOPIC_PREFIX", "t.")
    settings = load_settings()
    assert tenant_topics(settings) == {"t.requests.acme": "acme"}
    assert "t.requests.acme" in {spec.name for spec in specs(settings)}
    monkeypatch.setenv("TENANT_TOPICS", "acme")
    with pytest.raises(ConfigError, match="not JSON"):
        load_settings()


def test_what_becomes_of_an_ambiguous_call_is_each_tenants_own_choice(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ON_AMBIGUOUS_TENANTS", '{"acme": "fail"}')
    monkeypatch.setenv("CACHE_SEMANTIC_ENABLED", "false")
    monkeypatch.setenv("KAFKA_BROKERS", "127.0.0.1:1")
    parts = compose(load_settings(), tmp_path)
    assert (parts.on_ambiguous("acme"), parts.on_ambiguous("globex")) == ("fail", "retry")
    monkeypatch.setenv("ON_AMBIGUOUS_TENANTS", '{"acme": "perhaps"}')
    with pytest.raises(ConfigError, match="ON_AMBIGUOUS_TENANTS"):
        load_settings()

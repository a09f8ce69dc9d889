"""The groups of the settings, and how a field says which environment name it is read from."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from ..pipeline.lanes import LawName
from ..pipeline.unwanted import FallBack
from ..schemas.requests import Cascade

Share = Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)]
DEFAULT_WEIGHTS: Mapping[str, float] = {"length": 0.2, "reasoning": 0.3, "domain": 0.2, "context": 0.15, "output": 0.15}


def env(name: str, default: Any, text: str, **constraints: Any) -> Any:
    """A field with its environment name and the sentence that explains it."""
    return Field(default, description=text, json_schema_extra={"env": name}, **constraints)


class Group(BaseModel):
    """Frozen; an unknown field is an error, as an unknown environment name is."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


class BatchingConfig(Group):
    """How long requests are gathered, and how many at once. Times in ms."""

    min_size: int = env("BATCH_MIN_SIZE", 4, "the standard lane gathers at least so many requests while its wait allows", ge=1)
    max_size: int = env("BATCH_MAX_SIZE", 64, "the most requests gathered at once", ge=1, le=1024)
    max_wait_ms: int = env("BATCH_MAX_WAIT_MS", 50, "the longest gathering in the standard lane, ms", ge=0, le=60_000)
    target_latency_p95: int = env(
        "BATCH_TARGET_LATENCY_P95", 100, "the batch lane slows down where the others would take longer in here, p95, ms", ge=1
    )
    enable_semantic_grouping: bool = env(
        "BATCH_ENABLE_SEMANTIC_GROUPING", True, "send similar requests of a scope together, and near-identical ones once"
    )
    similarity_threshold: float = env(
        "BATCH_SIMILARITY_THRESHOLD", 0.85, "cosine from which waiting requests are one group", ge=0, le=1, allow_inf_nan=False
    )
    priority_lanes: bool = env("BATCH_PRIORITY_LANES", True, "false: every request takes the standard lane")
    express_max_wait_ms: int = env("BATCH_EXPRESS_MAX_WAIT_MS", 10, "the longest gathering in the express lane, ms", ge=0, le=60_000)
    lane_law: LawName = env("BATCH_LANE_LAW", "gradient", "how: gradient, multiplicative or fixed (never)")
    batch_max_wait_ms: int = env("BATCH_LANE_MAX_WAIT_MS", 200, "the longest gathering in the batch lane, ms", ge=0, le=60_000)

    @model_validator(mode="after")
    def _ordered(self) -> "BatchingConfig":
        if self.min_size > self.max_size:
            raise ValueError(f"BATCH_MIN_SIZE ({self.min_size}) is above BATCH_MAX_SIZE ({self.max_size}); change one")
        return self


class CachingConfig(Group):
    """The exact and the semantic cache, and the use of the providers' prompt caches."""

    exact_cache_size: int = env("CACHE_EXACT_SIZE", 100_000, "answers kept in the exact cache, per engine", ge=0)
    semantic_cache_size: int = env("CACHE_SEMANTIC_SIZE", 50_000, "answered prompts kept for similarity, per engine", ge=0)
    prefix_cache_size: int = env("CACHE_PREFIX_SIZE", 1_000, "shared prefixes that are remembered", ge=0)
    eviction_policy: Literal["lru", "lfu", "cost_aware"] = env("CACHE_EVICTION_POLICY", "lru", "what leaves a full cache first")
    policy: Literal["learned", "static"] = env(
        "CACHE_POLICY", "learned", "learned | static: who may share an answer; learned keeps CACHE_ERROR_BOUND, static has no bound"
    )
    error_bound: float = env(
        "CACHE_ERROR_BOUND", 0.01, "wrong shared answers at most, as a share; 0: none by similarity", ge=0, lt=1, allow_inf_nan=False
    )
    error_bound_per: Literal["request", "hit"] = env("CACHE_ERROR_BOUND_PER", "request", "request | hit: of what it is a share")
    error_bound_tenants: Mapping[str, Share] = env(
        "CACHE_ERROR_BOUND_TENANTS", {}, 'tenants that are promised another bound, JSON: {"acme": 0.002}'
    )
    error_bound_features: Mapping[str, Share] = env(
        "CACHE_ERROR_BOUND_FEATURES", {}, 'the same by feature_name; the stricter holds, JSON: {"legal": 0}'
    )
    audit_rate: float = env("CACHE_AUDIT_RATE", 0.05, "share of the hits that are paid for all the same, to compare", gt=0, le=1)
    judge_similarity: float = env(
        "CACHE_JUDGE_SIMILARITY", 0.85, "cosine from which two answers in free text say the same", gt=0, le=1, allow_inf_nan=False
    )
    judge_model: str | None = env(
        "CACHE_JUDGE_MODEL", None, "a cheap model that is asked whether two answers in free text say the same; unset: that cosine tells"
    )
    similarity_threshold: float = env(
        "CACHE_SIMILARITY_THRESHOLD", 0.92, "policy static: cosine from which answers are shared", ge=0, le=1, allow_inf_nan=False
    )
    min_access_count: int = env(
        "CACHE_MIN_ACCESS_COUNT", 0, "policy static: times that an answer must have been given before it is shared by similarity", ge=0
    )
    ttl_seconds: int = env("CACHE_TTL_SECONDS", 3600, "age up to which an answer is given again, s; 0: never", ge=0)
    semantic_enabled: bool = env("CACHE_SEMANTIC_ENABLED", True, "answer by similarity at all")
    prefix_enabled: bool = env("CACHE_PREFIX_ENABLED", True, "mark shared prefixes for the providers' prompt caches")
    max_memory_mb: int = env("CACHE_MAX_MEMORY_MB", 1024, "memory of the vectors of one worker, MB", ge=1)
    embedding_dimension: int = env("EMBEDDING_DIMENSION", 384, "length of the vectors", ge=1, le=8192)


class ProviderBatchConfig(Group):
    """Batches at the providers: half the price for what has time. Times in seconds; unset: as fits the provider."""

    enabled: bool = env("PROVIDER_BATCHES_ENABLED", True, "requests whose deadline allows it go into provider batches")
    gather_seconds: float | None = env(
        "PROVIDER_BATCH_GATHER_SECONDS", None, "a batch is closed when nothing came for so long, s", gt=0, le=86_400, allow_inf_nan=False
    )
    poll_seconds: float | None = env(
        "PROVIDER_BATCH_POLL_SECONDS", None, "between the first looks at a batch, s", gt=0, le=3600, allow_inf_nan=False
    )
    turnaround_seconds: float | None = env(
        "PROVIDER_BATCH_TURNAROUND_SECONDS", None, "how long a batch is expected to take at first, s", gt=0, le=86_400, allow_inf_nan=False
    )
    reserve_seconds: float | None = env(
        "PROVIDER_BATCH_RESERVE_SECONDS", None, "a batch is given up so long before a deadline, s", gt=0, le=86_400, allow_inf_nan=False
    )
    max_rows: int | None = env("PROVIDER_BATCH_MAX_ROWS", None, "in one batch, at most", ge=1, le=50_000)


class RoutingConfig(Group):
    """Which model answers `auto`, and what happens when one fails."""

    policy: Literal["heuristic", "quantile", "learned"] = env(
        "ROUTING_POLICY", "heuristic", "how `auto` is decided: complexity score, rank among recent prompts, or learned from scored answers"
    )
    min_quality: float = env(
        "ROUTING_MIN_QUALITY", 0.95, "share of the best model's quality that quantile and learned keep", gt=0, le=1, allow_inf_nan=False
    )
    exploration: float = env(
        "ROUTING_EXPLORATION", 0.05, "share of `auto` requests that learned answers by another model to learn, at most", ge=0, le=0.05,
        allow_inf_nan=False,
    )  # fmt: skip
    judge_model: str | None = env(
        "ROUTING_JUDGE_MODEL", None, "a model that grades answers: for the learned policy, and for ROUTING_CASCADE=judge"
    )
    judge_rate: float = env(
        "ROUTING_JUDGE_RATE", 0.05, "share of the answers to `auto` under the learned policy that it grades", ge=0, le=1,
        allow_inf_nan=False,
    )  # fmt: skip
    strategy: Literal["cost_optimal", "latency_optimal", "balanced"] = env("ROUTING_STRATEGY", "cost_optimal", "what the router optimises")
    cost_weight: float = env("ROUTING_COST_WEIGHT", 0.7, "0 weighs only latency, 1 only cost", ge=0, le=1, allow_inf_nan=False)
    equivalents: Mapping[str, tuple[str, ...]] = env(
        "ROUTING_EQUIVALENTS", {}, 'models that may answer for one that is asked for by name, JSON: {"gpt-4": ["gpt-4o"]}'
    )
    tenant_models: Mapping[str, tuple[str, ...]] = env(
        "ROUTING_TENANT_MODELS", {}, 'the only models of a tenant, JSON: {"acme": ["gpt-4o"]}; others may use all'
    )
    tenant_regions: Mapping[str, tuple[str, ...]] = env(
        "ROUTING_TENANT_REGIONS", {}, 'where a tenant\'s data may go, as models.toml names regions, JSON: {"acme": ["eu"]}'
    )
    fallback_enabled: bool = env("ROUTING_FALLBACK_ENABLED", True, "try the next capable model when one refuses or fails")
    cascade: Cascade = env(
        "ROUTING_CASCADE", "off", "off | structure | agreement | judge: cheaper models answer `auto` first, where their answers pass that"
    )
    cascade_score: float = env(
        "ROUTING_CASCADE_SCORE", 0.7, "ROUTING_CASCADE=judge: score, 0 to 1, from which a cheap answer is given", ge=0, le=1,
        allow_inf_nan=False,
    )  # fmt: skip
    fallback_on_answers: FallBack = env(
        "ROUTING_FALLBACK_ON_ANSWERS",
        "auto",
        "auto | all | never: requests for which a refusal or a cut-off answer is asked of the next model",
    )
    circuit_breaker_threshold: int = env("ROUTING_CIRCUIT_BREAKER_THRESHOLD", 5, "failures in a row that pause a model", ge=1)
    experiments_file: Path | None = env("EXPERIMENTS_FILE", None, "TOML: which variants of policies or models are compared, on whom")
    complexity_weights: Mapping[str, float] = env(
        "ROUTING_COMPLEXITY_WEIGHTS", DEFAULT_WEIGHTS, 'weights of the complexity score, JSON: {"length": 0.2, ...}'
    )

    @model_validator(mode="after")
    def _judged(self) -> "RoutingConfig":
        if self.cascade == "judge" and self.judge_model is None:
            raise ValueError("ROUTING_CASCADE=judge needs somebody who judges: name a model in ROUTING_JUDGE_MODEL")
        return self

    @field_validator("complexity_weights")
    @classmethod
    def _weighs(cls, value: Mapping[str, float]) -> Mapping[str, float]:
        if set(value) != set(DEFAULT_WEIGHTS):
            raise ValueError(f"complexity_weights must name exactly {', '.join(DEFAULT_WEIGHTS)}")
        if not all(0 <= w <= 1 for w in value.values()) or abs(sum(value.values()) - 1) > 1e-6:
            raise ValueError(f"complexity_weights must each lie between 0 and 1 and add up to 1, not to {sum(value.values()):g}")
        return dict(value)

"""Cost events: one row per request answered, plus one per payment that answered nothing."""

from typing import Literal

from .record import SCHEMA_VERSION, Record


class CostEvent(Record):
    """A packet member on `costs`. Money is integer pico-dollars (10^-12 USD).

    Rows with one `event_id` are one event: the highest `version` wins, so redelivery never counts twice.
    """

    v: int = SCHEMA_VERSION
    event_id: str
    version: int = 0
    kind: Literal[
        "answer", "error", "ambiguous", "duplicate", "charged", "audit", "judge", "priming", "exploration", "embedding", "feedback"
    ]
    """`answer` and `error` rows are one per request; `feedback` says what one was worth; the others are payments that no request was
    answered with."""
    purpose: str = ""
    """Of the call: answer, hedge, audit (it paid for what a known answer would have answered), exploration (its model was taken to learn
    what its answers are worth), fallback or cascade (its answer was held back, `error_code` says why, and another model asked), judge or
    grade (it was asked about answers: whether they agree, or what one is worth; of the kind `judge`, cascade is what a cheap answer is
    worth). Empty for hits."""
    timestamp_ms: int
    request_id: str
    """custom_id of the request."""
    tenant_id: str
    job: str
    user_id: str = ""
    feature_name: str = ""
    experiment_id: str = ""
    experiment_variant: str = ""
    lane: str = ""
    model_requested: str = ""
    model_used: str = ""
    provider: str = ""
    cache_tier: Literal["none", "exact", "semantic", "coalesced"] = "none"
    similarity: float | None = None
    source_id: str = ""
    attempt_id: str = ""
    base_cost_pico: int = 0
    ambiguous_cap_pico: int = 0
    """What an ambiguous attempt may have cost at most; not part of base_cost."""
    infrastructure_cost_pico: int = 0
    counterfactual_pico: int = 0
    saved_exact_pico: int = 0
    saved_semantic_pico: int = 0
    saved_coalescing_pico: int = 0
    saved_routing_pico: int = 0
    saved_prefix_pico: int = 0
    saved_batch_pico: int = 0
    tokens_input: int = 0
    tokens_output: int = 0
    tokens_cached: int = 0
    latency_ms: int = 0
    error_code: str = ""
    score: float | None = None
    """Of feedback, and of what a judge was asked of an answer: 0 useless, 1 as good as can be."""

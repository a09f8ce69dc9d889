"""Every metric of a worker, by name, in one place. Dollars here are floats for charts; the bill is in `cost_events`."""

from collections.abc import Iterable

from prometheus_client import Counter, Gauge, Histogram

from ..schemas.costs import CostEvent
from ..schemas.record import PICO_PER_USD
from ..schemas.responses import ResponseLine
from .limits import Health

RESPONSES = Counter("inference_responses", "Responses written, redelivered ones included.", ["tier", "outcome"])
LATENCY = Histogram(
    "inference_response_latency_seconds",
    "From acceptance to response.",
    ["lane"],
    buckets=(0.01, 0.025, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 300, 3600, 86400),
)
CALLS = Counter("inference_provider_calls", "Calls that ended, as booked.", ["model", "kind"])
TOKENS = Counter("inference_tokens", "Tokens of paid calls.", ["model", "direction"])
PAID = Counter("inference_paid_usd", "Paid to providers.", ["model"])
SAVED = Counter("inference_saved_usd", "Saved, by its one cause; a choice that cost more than it saved adds nothing.", ["cause"])
FEEDBACK = Counter("inference_feedback", "Lessons taken in: answers served by a router that learns, and what was said of them.", ["kind"])
EXPLORED = Counter("inference_explored", "Requests answered by another model than the best known choice, to learn.", ["model"])
ROUTER_LESSONS = Gauge("inference_router_lessons", "Judged answers that a tenant's router learned from.", ["tenant"])
ROUTER_LEARNED = Gauge(
    "inference_router_learned", "1: what was learned chooses; 0: the best static choice, or what was before.", ["tenant"]
)
ROUTER_DRIFTS = Gauge("inference_router_drifts", "How often answers became worth less than was foretold.", ["tenant"])
DEAD_LETTERS = Counter("inference_dead_letters", "Records that can't be processed.", ["topic", "error_class"])

BREAKER = Gauge("inference_circuit_breaker_state", "0 closed, 1 half open, 2 open: the model is not asked.", ["model"])
BREAKER_OPENED = Gauge("inference_circuit_breaker_opened", "How often the model's breaker has opened since the worker began.", ["model"])
LIMIT = Gauge("inference_provider_limit_per_minute", "As configured or as the provider says, over all keys.", ["model", "kind"])

COMPARED = Counter("inference_answers_compared", "Answers compared with the one that would have been shared.", ["of", "outcome"])
AUDITS = Counter("inference_audits", "Hits that are paid for all the same, so that the two answers can be compared.")
JUDGED = Counter("inference_answers_judged", "Questions to a model about answers, by what came of them.", ["question", "outcome"])
FALLBACKS = Counter("inference_semantic_fallbacks", "Compared answers broke the bound: only exact hits for a while.", ["scopes"])

CAUSES = ("exact", "semantic", "coalescing", "routing", "prefix", "batch")


def observe_response(line: ResponseLine) -> None:
    engine = line.engine
    RESPONSES.labels(engine.cache.tier, line.error.code if line.error is not None else "answered").inc()
    LATENCY.labels(engine.lane).observe(engine.latency_ms / 1000)


def observe_cost(event: CostEvent) -> None:
    """A row that a redelivery writes again counts again here; the sum that counts once is the store's."""
    if event.attempt_id:
        CALLS.labels(event.model_used, event.kind).inc()
        TOKENS.labels(event.model_used, "input").inc(event.tokens_input)
        TOKENS.labels(event.model_used, "output").inc(event.tokens_output)
        PAID.labels(event.model_used).inc(event.base_cost_pico / PICO_PER_USD)
    for cause in CAUSES:
        saved: int = getattr(event, f"saved_{cause}_pico")
        if saved > 0:
            SAVED.labels(cause).inc(saved / PICO_PER_USD)


def observe_models(models: Iterable[Health]) -> None:
    """Looked at when somebody asks: these say how things are, not how often they happened."""
    for health in models:
        BREAKER.labels(health.model).set(("closed", "half_open", "open").index(health.breaker))
        BREAKER_OPENED.labels(health.model).set(health.opened)
        for kind, limit in health.limits.items():
            LIMIT.labels(health.model, kind).set(limit)

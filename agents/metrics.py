"""Every metric of a worker, by name, in one place. Dollars here are floats for charts; the bill is in `cost_events`."""

from prometheus_client import Counter, Histogram

from ..schemas.costs import CostEvent
from ..schemas.record import PICO_PER_USD
from ..schemas.responses import ResponseLine

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
DEAD_LETTERS = Counter("inference_dead_letters", "Records that can't be processed.", ["topic", "error_class"])

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

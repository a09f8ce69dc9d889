"""What the gateway counts."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class Measures:
    """Metrics of one process, and their sums for `/health`."""

    def __init__(self, registry: CollectorRegistry, waiting: Callable[[], int]) -> None:
        self._answered = Counter("gateway_answered", "Requests answered, by cache tier", ["tier"], registry=registry)
        self._refused = Counter("gateway_refused", "Requests refused or failed, by code", ["code"], registry=registry)
        self._seconds = Histogram("gateway_seconds", "From the request to its answer", registry=registry, buckets=_SECONDS)
        Gauge("gateway_waiting", "Requests that wait for their answer", registry=registry).set_function(waiting)
        self._requests = self._hits = 0
        self._total_s = 0.0

    def answered(self, tier: str, seconds: float) -> None:
        self._answered.labels(tier).inc()
        self._seconds.observe(seconds)
        self._requests += 1
        self._hits += tier != "none"
        self._total_s += seconds

    def refused(self, code: str) -> None:
        self._refused.labels(code).inc()

    def summary(self) -> dict[str, float]:
        """`avg_latency_ms` over the life of this process."""
        count = max(1, self._requests)
        return {
            "cache_hit_rate": round(self._hits / count, 4),
            "requests_processed": self._requests,
            "avg_latency_ms": round(1000 * self._total_s / count, 1),
        }

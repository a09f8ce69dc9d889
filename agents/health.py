"""The worker's own loopback port: is it alive, is it ready, what is it doing."""

from typing import TYPE_CHECKING

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from ..pipeline.errors import ConfigError
from .limits import Health as ModelHealth
from .metrics import observe_models

if TYPE_CHECKING:
    from .worker import Worker


class Health:
    """`GET /health` as JSON, `GET /metrics` for Prometheus."""

    def __init__(self, worker: "Worker") -> None:
        self._worker = worker
        self._runner: web.AppRunner | None = None

    async def start(self, port: int = 0) -> int:
        """Listens on loopback; returns the port."""
        app = web.Application()
        app.add_routes([web.get("/health", self._health), web.get("/metrics", self._metrics)])
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", port)
        try:
            await site.start()
        except OSError as error:
            await runner.cleanup()
            raise ConfigError(
                f"port {port} of the worker's metrics is taken ({error}): set PROMETHEUS_PORT to a free one, or to none"
            ) from error
        self._runner = runner
        return int(runner.addresses[0][1])

    async def _health(self, _: web.Request) -> web.Response:
        app, limits, throttle = self._worker.app, self._worker.limits, self._worker.throttle
        ready = app.ready.is_set()
        return web.json_response(
            {
                "status": "healthy" if ready else "starting",
                "ready": ready,
                "partitions": sorted(app.partitions),
                "in_work": app.in_flight() if ready else {},
                "waiting": app.waiting() if ready else {},
                "calls_in_flight": {lane.value: n for lane, n in limits.in_flight.items()},
                "models": {h.model: _told(h) for h in limits.health()},
                "batch_lane": {
                    "held": throttle.holds,
                    "requests_per_s": round(throttle.flow.rate),
                    "loop_late_ms": round(throttle.flow.latency_ms, 1),
                },
                "batches": self._worker.batches.shown(),
                "waiting_for_a_batch": self._worker.batches.waiting(),
                "semantic": "on" if self._worker.shards is not None else "off",
                "sharing": self._worker.sharing.shown() if self._worker.sharing is not None else {"policy": "exact"},
                "corrections": self._worker.corrections.known,
                "routing": self._worker.parts.routers.shown() if self._worker.parts.routers is not None else {},
                "prompts": self._worker.shards.prompts if self._worker.shards is not None else 0,
            },
            status=200 if ready else 503,
        )

    async def _metrics(self, _: web.Request) -> web.Response:
        observe_models(self._worker.limits.health())
        return web.Response(body=generate_latest(), headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()


def _told(health: ModelHealth) -> dict[str, object]:
    return {
        "circuit_breaker": health.breaker,
        "opened": health.opened,
        "calls_wait": health.waiting,
        # Infinite: its provider has said nothing yet.
        "per_minute": {kind: round(limit) for kind, limit in health.limits.items() if limit < float("inf")},
    }

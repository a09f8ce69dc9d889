"""What feedback taught, as every worker knows it: the topic `routers`, read whole by each of them."""

from collections.abc import Sequence

import structlog

from ..connectors.tail import Tail
from ..connectors.taught_file import unpack_router
from ..pipeline.errors import Rejected
from ..pipeline.taught_router import TaughtRouter
from .metrics import ROUTER_DRIFTS, ROUTER_LEARNED, ROUTER_LESSONS

log = structlog.get_logger(__name__)


class Routers:
    """By tenant the newest state. Requests are routed while it is still being read: without one, by what was known before."""

    def __init__(self) -> None:
        self.states: dict[str, TaughtRouter] = {}
        self._tail: Tail | None = None

    def of(self, tenant: str) -> TaughtRouter | None:
        return self.states.get(tenant)

    async def start(self, brokers: Sequence[str], topic: str) -> None:
        """Raises `Unavailable` where there is no such topic."""
        tail = self._tail = Tail(brokers, topic, lambda _partition, _offset, value: self.apply(value))
        await tail.start()
        await tail.follow_all()

    def apply(self, value: bytes | None) -> None:
        """Takes one record of the topic; what can't be read is told, and nothing changes. An older version never replaces a newer one."""
        if value is None:
            return
        try:
            tenant, state = unpack_router(value)
        except Rejected as error:
            log.warning("a learned router was ignored", reason=str(error))
            return
        known = self.states.get(tenant)
        if known is not None and known.version >= state.version:
            return
        self.states[tenant] = state
        ROUTER_LESSONS.labels(tenant).set(state.lessons)
        ROUTER_LEARNED.labels(tenant).set(state.status == "learned")
        ROUTER_DRIFTS.labels(tenant).set(state.drifts)
        if known is None or known.status != state.status:
            log.info("the router of a tenant", tenant=tenant, status=state.status, version=state.version, lessons=state.lessons,
                     note=state.note)  # fmt: skip

    def shown(self) -> dict[str, dict[str, object]]:
        """For people: how each tenant is routed."""
        return {
            tenant: {"status": s.status, "version": s.version, "lessons": s.lessons, "drifts": s.drifts, "note": s.note}
            for tenant, s in self.states.items()
        }

    async def stop(self) -> None:
        if self._tail is not None:
            await self._tail.stop()

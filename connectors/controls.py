"""The `controls` topic: what every worker must know of, read whole by each of them."""

from collections.abc import Sequence

import orjson
import structlog

from ..schemas.requests import Request
from .tail import Tail

log = structlog.get_logger(__name__)


class Controls:
    """Cancelled jobs: requests that were accepted before their job was cancelled are not paid any more."""

    def __init__(self, brokers: Sequence[str], topic: str) -> None:
        self._tail = Tail(brokers, topic, lambda _partition, _offset, value: self.apply(value))
        self._cancelled: dict[tuple[str, str], int] = {}

    def cancelled(self, request: Request) -> bool:
        at_ms = self._cancelled.get((request.identity.tenant, request.identity.job))
        return at_ms is not None and request.accepted_ms <= at_ms

    async def start(self, deadline_s: float = 30.0) -> None:
        """Returns when all controls written so far are known. Raises `Unavailable`."""
        await self._tail.start()
        await self._tail.follow_all()
        await self.caught_up(deadline_s)

    async def caught_up(self, deadline_s: float = 30.0) -> None:
        """Returns when all controls written before the call are known. Raises `Unavailable`."""
        await self._tail.caught_up(deadline_s)

    def apply(self, value: bytes | None) -> None:
        """Takes one control; what is not understood is told, not obeyed."""
        if value is None:
            return
        try:
            data = orjson.loads(value)
            if data["type"] != "cancel":
                raise ValueError(data["type"])
            self._cancelled[str(data["tenant"]), str(data["job"])] = int(data["at_ms"])
        except (ValueError, KeyError, TypeError):
            log.warning("a control that this version does not understand was ignored", value=value[:200].decode(errors="replace"))

    async def stop(self) -> None:
        await self._tail.stop()

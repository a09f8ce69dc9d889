"""Runs the door: reads `requests` and `requests.batch`, one request a record, and writes `lookups`."""

from collections.abc import Mapping
from dataclasses import replace

from ..connectors.crash_points import crash_at
from ..pipeline.ingest import BadRequest, Door, admit
from ..pipeline.respond import error_event, error_line
from ..schemas.answers import ErrorInfo
from ..schemas.record import Lane
from ..schemas.requests import MAX_NAME, Identity, Lookup, Waiter
from .outbox import Outbox
from .packer import Now
from .safe import DeadLetter, Delivered


class IngestStage:
    """Valid requests go on, others get an error response and leave their bytes in `dead-letters`."""

    def __init__(self, outbox: Outbox, door: Door, now: Now, tenants: Mapping[str, str], default_tenant: str) -> None:
        """`tenants`: requests topic -> the only tenant that may write to it.

        On the shared `requests` topic, which only the operator's own programs write to, the header `tenant` says for whom.
        """
        self._out = outbox
        self._door = door
        self._bulk_door = replace(door, default_lane=Lane.BATCH) if door.priority_lanes else door
        self._now = now
        self._tenants = tenants
        self._default_tenant = default_tenant

    def _tenant(self, event: Delivered) -> str:
        bound = self._tenants.get(event.topic)
        if bound is not None:
            return bound
        for name, value in event.headers:
            if name == "tenant":
                return value.decode("utf-8", errors="strict")
        return self._default_tenant

    async def on_request(self, event: Delivered) -> None:
        sends = self._out.batch()
        now = _accepted(event, self._now())
        try:
            tenant = self._tenant(event)
        except UnicodeDecodeError:
            raise DeadLetter("the header `tenant` is not UTF-8", error_class="no_tenant") from None
        try:
            door = self._bulk_door if event.topic == self._out.topics.bulk_requests else self._door
            request = admit(event.value, tenant, now, door)
        except BadRequest as error:
            await self._refuse(tenant, error, now)
            raise DeadLetter(str(error), error_class=error.code) from error
        sends.lookup(Lookup(request=request))
        await sends.settle()
        crash_at("after_lookup")

    async def _refuse(self, tenant: str, error: BadRequest, now_ms: int) -> None:
        """The author is told, as far as the record says who that is."""
        if error.custom_id is None or not 0 < len(tenant) <= MAX_NAME:
            return
        identity = Identity(tenant=tenant, job=error.job or self._door.default_job, custom_id=error.custom_id)
        waiter = Waiter(identity=identity, lane=Lane.STANDARD, model="", accepted_ms=now_ms)
        info = ErrorInfo(code=error.code, message=str(error))
        sends = self._out.batch()
        sends.response(identity, error_line(waiter, info, now_ms))
        sends.cost(error_event(waiter, info, now_ms), waiter.lane)
        await sends.settle()


def _accepted(event: Delivered, now_ms: int) -> int:
    """When the request was written: the same whenever it is delivered, so that a cancelled job's backlog is cancelled with it, and a
    redelivery is not taken for being asked again."""
    return min(event.timestamp_ms, now_ms) if event.timestamp_ms > 0 else now_ms

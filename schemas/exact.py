"""Rows of the exact tier's table."""

from .record import SCHEMA_VERSION, Record
from .requests import Follow, Identity, Request, Waiter


class Flight(Record):
    """An answer that is being made: everyone who asks meanwhile waits for it (single flight)."""

    v: int = SCHEMA_VERSION
    flight: str
    owner: Identity
    lease_ms: int
    """Whoever asks after this time sends the flight on its way again, under the same id."""
    promised_ms: int | None = None
    """The deadline of whom it flies for: so long it may take, since it may be in a provider's batch."""
    since_ms: int = 0
    """When it took off; with its fingerprint this names the flight, since the same id may fly again later."""


class WaiterRow(Record):
    """One waiter of a fingerprint; written before its request is acknowledged, deleted after its response is."""

    v: int = SCHEMA_VERSION
    waiter: Waiter
    follow: Follow | None = None
    request: Request | None = None
    """Set for a follower: it goes back to `misses` where the answer that it follows does not come."""

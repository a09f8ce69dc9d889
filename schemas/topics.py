"""Names of the topics, in one place."""

from dataclasses import dataclass

from .record import Lane


@dataclass(frozen=True, slots=True)
class TopicSpec:
    """One topic as it must exist before a worker starts."""

    name: str
    partitions: int
    config: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Topics:
    """All topic names; `prefix` lets several engines share one cluster."""

    prefix: str = ""

    def _n(self, name: str) -> str:
        return f"{self.prefix}{name}"

    @property
    def requests(self) -> str:
        return self._n("requests")

    @property
    def bulk_requests(self) -> str:
        """The door of the batch lane: requests that say no priority there are batch. A job of a million rows holds up nobody at it."""
        return self._n("requests.batch")

    @property
    def lookups(self) -> str:
        return self._n("lookups")

    @property
    def bulk_lookups(self) -> str:
        """Those of the batch lane."""
        return self._n("lookups.batch")

    def misses(self, lane: Lane) -> str:
        return self._n(f"misses.{lane.value}")

    def calls(self, lane: Lane) -> str:
        return self._n(f"calls.{lane.value}")

    @property
    def ledger(self) -> str:
        return self._n("ledger")

    @property
    def answers(self) -> str:
        return self._n("answers")

    @property
    def vectors(self) -> str:
        return self._n("vectors")

    @property
    def responses(self) -> str:
        return self._n("responses")

    @property
    def costs(self) -> str:
        return self._n("costs")

    @property
    def dead_letters(self) -> str:
        return self._n("dead-letters")

    @property
    def corrections(self) -> str:
        """Compacted: answers that were reported wrong, read whole by every worker."""
        return self._n("corrections")

    @property
    def feedback(self) -> str:
        """What answers were worth, as users say: one record each, with any key."""
        return self._n("feedback")

    @property
    def lessons(self) -> str:
        """Served answers and what was said of them; a tenant's are on one partition."""
        return self._n("lessons")

    @property
    def routers(self) -> str:
        """Compacted: what was learned for each tenant, read whole by every worker."""
        return self._n("routers")

    @property
    def controls(self) -> str:
        """Compacted: job cancellations, read whole by every worker."""
        return self._n("controls")

"""Who may share an answer in the running engine: the port of the semantic stage and the coalescer, and the fixed policy behind it."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Protocol

from ..pipeline.ports import Neighbour
from ..pipeline.semantic import Hit, SharingPolicy, StaticPolicy, decide
from .pending import Group, Pending


class Sharing(Protocol):
    """Decides for the partitions of this worker; learns from what became of its decisions, where it learns."""

    searched: int
    """Neighbours that it wants to see."""

    def find(self, pending: Pending, neighbours: Sequence[Neighbour], now_ms: int) -> Neighbour | None:
        """Whose answer the request takes; None: nobody's. `neighbours` are of its own tenant and scope.

        Sets `pending.audit` where it could take one and is to be paid for all the same.
        """
        ...

    def kind(self, pending: Pending) -> Hashable:
        """Pending requests of one kind (and scope) are promised the same, and may share one call."""
        ...

    def pair_policy(self, pending: Pending) -> SharingPolicy:
        """Which pending requests of this one's scope and kind may share one call."""
        ...

    def settle(self, groups: Sequence[Group]) -> list[Group]:
        """Hears of a window's groups before they are sent; those of its followers that are to be audited are sent by themselves."""
        ...

    async def forget(self, partitions: Sequence[int]) -> None:
        """They are another worker's now."""
        ...

    async def close(self) -> None:
        """Keeps what was learned; the tables still take it."""
        ...

    def shown(self) -> Mapping[str, object]:
        """For the health page."""
        ...


class StaticSharing:
    """One threshold for everybody. It has no bound: how often it errs depends on the data."""

    searched = 6

    def __init__(self, policy: StaticPolicy, served: Callable[[int, str], int] = lambda _partition, _fingerprint: 0) -> None:
        """`served`: how often the answer of a point was given; asked only where the policy has a gate for that."""
        self._policy = policy
        self._served = served

    def find(self, pending: Pending, neighbours: Sequence[Neighbour], now_ms: int) -> Neighbour | None:
        gated = neighbours if self._policy.min_access_count else ()
        counts = {n.point.id: self._served(pending.partition, n.point.id) for n in gated}
        decision = decide(pending.text or "", neighbours, self._policy, now_ms, access_counts=counts)
        return decision.neighbour if isinstance(decision, Hit) else None

    def kind(self, pending: Pending) -> Hashable:
        return None

    def pair_policy(self, pending: Pending) -> SharingPolicy:
        return self._policy

    def settle(self, groups: Sequence[Group]) -> list[Group]:
        return list(groups)

    async def forget(self, partitions: Sequence[int]) -> None:
        return None

    async def close(self) -> None:
        return None

    def shown(self) -> Mapping[str, object]:
        policy = self._policy
        return {"policy": "static", "threshold": policy.threshold, "min_access_count": policy.min_access_count}

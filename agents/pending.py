"""One miss on its way through the in-memory stages, from `misses` to `calls`."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

from ..pipeline.learned import Considered
from ..pipeline.ports import Vector
from ..schemas.record import Lane
from ..schemas.requests import Miss
from .packer import settle


@dataclass(slots=True, eq=False)
class Pending:
    """A miss and the promise that its source packet waits for."""

    miss: Miss
    partition: int
    handed: "asyncio.Future[asyncio.Future[int]]"
    """Done when a stage has decided: its result is done when the broker has acknowledged the decision."""
    text: str | None = None
    vector: Vector | None = None
    considered: Considered | None = None
    """What the learned decision looked at."""
    audit: bool = False
    """It may share, and is sent to the provider all the same."""
    followed: int = 0
    """By so many others, which take its answer."""

    @property
    def lane(self) -> Lane:
        return self.miss.request.lane

    def hand_over(self, durable: "asyncio.Future[int]") -> None:
        if not self.handed.done():
            self.handed.set_result(durable)

    def fail(self, error: Exception) -> None:
        """The source packet is tried again as a whole; what was handed over already is recognised by its flight."""
        if not self.handed.done():
            self.handed.set_exception(error)


@dataclass(slots=True, eq=False)
class Group:
    """What the coalescer sends on: a leader to be paid, followers that take its answer, both durable together."""

    leader: Pending
    followers: list[tuple[Pending, float]] = field(default_factory=list)
    prefix_group: str | None = None
    """Fingerprint of the first leader of the similar requests that this one is sent beside."""


async def handed_over(pendings: Sequence[Pending]) -> None:
    """Returns when everything that became of the pendings is durable; raises the first error after all are decided."""
    results = await asyncio.gather(*(p.handed for p in pendings), return_exceptions=True)
    futures = [r for r in results if isinstance(r, asyncio.Future)]
    await settle(futures)
    for result in results:
        if isinstance(result, BaseException):
            raise result

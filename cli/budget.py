"""`--max-cost`: nothing is sent unless the most that it can cost still fits. Pure, in integer pico-dollars."""

from dataclasses import dataclass
from enum import Enum


class Admission(Enum):
    SEND = "send"
    WAIT = "wait"
    """It may fit when the requests in flight turn out cheaper than their caps."""
    NEVER = "never"
    """What is spent leaves no room for it, whatever comes back."""


@dataclass(slots=True)
class Budget:
    """Invariant: spent + reserved <= limit, as long as no response costs more than its reservation."""

    limit: int | None
    spent: int = 0
    reserved: int = 0

    def decide(self, cap: int) -> Admission:
        if self.limit is None or self.spent + self.reserved + cap <= self.limit:
            return Admission.SEND
        return Admission.NEVER if self.spent + cap > self.limit else Admission.WAIT

    def reserve(self, cap: int) -> None:
        """Also for requests that were sent before a restart: those are reserved whether they fit or not."""
        self.reserved += cap

    def settle(self, cap: int, cost: int) -> None:
        """A response came: what it cost takes the place of its reservation."""
        self.reserved -= cap
        self.spent += cost

"""`--max-cost`: nothing is sent unless the most that it can cost still fits. Pure, in integer pico-dollars."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

MICRO = 10**6
"""Pico-dollars: caps are whole millionths of a dollar."""
AT_ONCE = 100
"""So many rows shall find room at once before a row is allowed a dearer model than the cheapest."""


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

    def cap_for(self, caps: Sequence[int], rows: int) -> int:
        """What a row may be allowed, of what the models that can answer it may cost, ascending; `rows`: that have no answer yet.

        Where the dearest one's worst case would let few rows fly at once, a cheaper one's must do: a row that it is too little for
        is refused without a payment, and asked again with more.
        """
        if self.limit is None:
            return caps[-1]
        share = (self.limit - self.spent) // max(1, min(rows, AT_ONCE))
        return max((cap for cap in caps if cap <= share), default=caps[0])

    def reserve(self, cap: int) -> None:
        """Also for requests that were sent before a restart: those are reserved whether they fit or not."""
        self.reserved += cap

    def settle(self, cap: int, cost: int) -> None:
        """A response came: what it cost takes the place of its reservation."""
        self.reserved -= cap
        self.spent += cost

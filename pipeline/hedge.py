"""Hedged calls: when an unanswered call is made a second time, by whom, and how often at all.

A hedge may be paid for without need: so only for tenants that allow it, only once per attempt, and only for a share of the calls, since a
provider that is slow for everyone is not helped by twice the load (Dean and Barroso, The Tail at Scale, 2013).
"""

from dataclasses import dataclass

MOST_SHARE = 0.05
"""Of the calls of these tenants; a few are allowed at once at the beginning."""
_AT_FIRST = 3


@dataclass(frozen=True, slots=True)
class HedgePolicy:
    """`tenants`: who allows to pay twice; `*` is everyone. `after_s` None: nobody."""

    after_s: float | None = None
    tenants: frozenset[str] = frozenset()

    @classmethod
    def of(cls, after_s: float | None, tenants: str) -> "HedgePolicy":
        """From the settings HEDGE_AFTER_SECONDS and HEDGE_TENANTS."""
        return cls(after_s, frozenset(name.strip() for name in tenants.split(",") if name.strip()))

    def wait_s(self, tenant: str) -> float | None:
        """How long a call of this tenant is waited for before it is hedged; None: it never is."""
        return self.after_s if "*" in self.tenants or tenant in self.tenants else None


@dataclass(slots=True)
class HedgeBudget:
    """Counts calls that could be hedged, and hedges."""

    calls: int = 0
    hedges: int = 0

    def called(self) -> None:
        self.calls += 1

    def may_hedge(self) -> bool:
        """Counts one where it may."""
        if self.hedges >= _AT_FIRST + MOST_SHARE * self.calls:
            return False
        self.hedges += 1
        return True

"""Notices that answers are no longer what was learned: a cumulative sum over compared answers (Page 1954).

Every compared answer, of a miss as of an audited hit, agrees with its candidate or not, and the decision had said how likely that is. If a
share of the cached answers went stale, agreement becomes rarer than predicted; the sum of the log likelihood ratios for a small and a
large such share rises, and an alarm names the time since when it has been rising.
"""

from dataclasses import dataclass, field
from math import log

SHARES = (0.3, 0.9)
"""Shares of stale answers that are looked for."""
ALARM = 12.0
"""With nothing wrong an alarm comes once in e^12 comparisons or less."""
SURPRISE_AT_MOST = 0.95
"""Above this a probability is not believed: one wrong comparison must not be an alarm."""


@dataclass(slots=True)
class DriftMonitor:
    """One scope's sums, or those of all scopes together."""

    sums: list[float] = field(default_factory=lambda: [0.0] * len(SHARES))
    rising_since: list[int] = field(default_factory=lambda: [0] * len(SHARES))

    def observe(self, probability: float, agrees: bool, at: int) -> int | None:
        """Takes one comparison made at time `at`; returns since when answers are stale, or None: nothing speaks for it."""
        p = min(probability, SURPRISE_AT_MOST)
        for i, share in enumerate(SHARES):
            if self.sums[i] <= 0.0:
                self.rising_since[i] = at
            ratio = log(1.0 - share) if agrees else log((1.0 - p * (1.0 - share)) / (1.0 - p))
            self.sums[i] = max(0.0, self.sums[i] + ratio)
        worst = max(range(len(SHARES)), key=self.sums.__getitem__)
        return self.rising_since[worst] if self.sums[worst] > ALARM else None

    @property
    def suspects(self) -> bool:
        """Half-way to an alarm: worth looking closer."""
        return max(self.sums) > ALARM / 2

    def copy(self) -> "DriftMonitor":
        return DriftMonitor(list(self.sums), list(self.rising_since))

    def reset(self) -> None:
        self.sums = [0.0] * len(SHARES)

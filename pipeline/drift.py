"""Notices that answers are no longer what was learned: a cumulative sum over compared answers (Page 1954).

Every compared answer, of a miss as of an audited hit, agrees with its candidate or not, and the decision had said how likely that is. If a
share of the cached answers went stale, agreement becomes rarer than predicted; the sums of the log likelihood ratios for a small and a
large such share rise, and an alarm names the time since when it has been rising.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import log

SHARES = (0.3, 0.9, 0.1)
"""Shares of stale answers that are looked for."""
ALARMS = (12.0, 12.0, 20.0)
"""With nothing wrong an alarm comes once in e^12 comparisons or less; for the small share later, since a prediction that is a little off
looks like it as well."""
SUSPICION = 6.0
SURPRISE_AT_MOST = 0.95
"""Above this a probability is not believed: one wrong comparison must not be an alarm."""


@dataclass(slots=True)
class DriftMonitor:
    """One scope's sums, or those of all scopes together."""

    sums: list[float] = field(default_factory=lambda: [0.0] * len(SHARES))
    rising_since: list[int] = field(default_factory=lambda: [0] * len(SHARES))

    @classmethod
    def restored(cls, sums: Sequence[float], rising_since: Sequence[int]) -> "DriftMonitor":
        """From kept sums. Shares that were not looked for then start at nothing."""
        new = len(SHARES) - len(sums)
        return cls([*sums, *[0.0] * new], [*rising_since, *[0] * new])

    def observe(self, probability: float, agrees: bool, at: int) -> int | None:
        """Takes one comparison made at time `at`; returns since when answers are stale, or None: nothing speaks for it."""
        p = min(probability, SURPRISE_AT_MOST)
        for i, share in enumerate(SHARES):
            if self.sums[i] <= 0.0:
                self.rising_since[i] = at
            ratio = log(1.0 - share) if agrees else log((1.0 - p * (1.0 - share)) / (1.0 - p))
            self.sums[i] = max(0.0, self.sums[i] + ratio)
        alarms = [i for i, alarm in enumerate(ALARMS) if self.sums[i] > alarm]
        return self.rising_since[max(alarms, key=lambda i: self.sums[i] - ALARMS[i])] if alarms else None

    @property
    def suspects(self) -> bool:
        """Well on the way to an alarm: worth looking closer."""
        return max(self.sums) > SUSPICION

    def copy(self) -> "DriftMonitor":
        return DriftMonitor(list(self.sums), list(self.rising_since))

    def reset(self) -> None:
        self.sums = [0.0] * len(SHARES)

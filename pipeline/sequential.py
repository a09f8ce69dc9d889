"""Comparing variants while they run: intervals and tests that hold whenever one looks, and however often.

Asymptotic confidence sequences (Waudby-Smith, Arbour, Sinha, Kennedy, Ramdas, "Time-uniform central limit theory and asymptotic confidence
sequences", arXiv 2103.06476): the mean, plus or minus

    s sqrt(2 (t r^2 + 1) / (t^2 r^2) log(sqrt(t r^2 + 1) / alpha))

after t observations of standard deviation s covers the truth at all times at once with probability 1 - alpha. It is the inverse of the
mixture sequential probability ratio test with a normal mixture (Johari, Koomen, Pekelis, Walsh, "Always valid inference", Operations
Research 70, 2022), whose likelihood ratio is an e-value. r is chosen for the number of observations at which it should be narrowest.

Units are what was drawn into variants. Where a unit makes several requests, the mean is a ratio of sums, and its variance that of the
residuals of units (the delta method): requests of one user are not independent of each other.
"""

from dataclasses import dataclass
from math import exp, inf, log, sqrt

LEAST_UNITS = 100
"""Of each variant, before anything is said: below, their standard deviation is not known well enough."""
PLANNED_UNITS = 1_000
"""Of both variants together, at which intervals are narrowest relative to what any test could reach."""


@dataclass(frozen=True, slots=True)
class Sums:
    """Of one measure in one variant: a unit's y is the sum over its requests, n their number."""

    units: int = 0
    n: float = 0.0
    y: float = 0.0
    yy: float = 0.0
    yn: float = 0.0
    nn: float = 0.0

    @property
    def mean(self) -> float | None:
        """Per request; None where there is none."""
        return self.y / self.n if self.n else None

    @property
    def variance(self) -> float:
        """Of the mean; infinite below two units."""
        if self.units < 2 or not self.n:
            return inf
        mean = self.y / self.n
        # Sums of rounded squares may come out a little below 0.
        residuals = max(0.0, self.yy - 2 * mean * self.yn + mean * mean * self.nn)
        return residuals / self.n**2 * self.units / (self.units - 1)


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate, and where the truth is with the stated confidence, at every look.

    `p`: always valid, so that where there is no difference it falls below any a at some look with probability a at most; None where it is
    too early to say.
    """

    value: float
    low: float = -inf
    high: float = inf
    p: float | None = None

    @property
    def differs(self) -> bool:
        """The interval does not hold 0."""
        return self.low > 0 or self.high < 0


def mean_of(sums: Sums, alpha: float, planned: int = PLANNED_UNITS) -> Interval | None:
    """Of one variant; None where nothing was measured."""
    return None if sums.mean is None else _interval(sums.mean, sums.variance, sums.units, sums.units >= LEAST_UNITS, alpha, planned)


def difference(control: Sums, variant: Sums, alpha: float, planned: int = PLANNED_UNITS) -> Interval | None:
    """The variant's mean less the control's; None where nothing was measured in one of them."""
    if control.mean is None or variant.mean is None:
        return None
    enough = min(control.units, variant.units) >= LEAST_UNITS
    value, spread = variant.mean - control.mean, control.variance + variant.variance
    return _interval(value, spread, control.units + variant.units, enough, alpha, planned)


def _interval(value: float, variance: float, units: int, enough: bool, alpha: float, planned: int) -> Interval:
    if not enough or not 0 < variance < inf:
        # Without any spread (nobody failed yet) nothing is known about how far the truth may lie.
        return Interval(value)
    information = units * mixture(alpha, planned)
    half = sqrt(variance * (1 + 1 / information) * 2 * log(sqrt(1 + information) / alpha))
    return Interval(value, value - half, value + half, p_value(value * value / variance, information))


def p_value(squared: float, information: float) -> float:
    """One over the e-value of the mixture test. `squared`: of the difference in standard errors; `information`: t r^2."""
    exponent = squared * information / (2 * (1 + information))
    return min(1.0, sqrt(1 + information) * exp(-exponent)) if exponent < 700 else 0.0


def mixture(alpha: float, planned: int) -> float:
    """r^2 such that the interval is narrowest after `planned` observations (arXiv 2103.06476, appendix on tuning)."""
    return (-2 * log(alpha) + log(1 - 2 * log(alpha))) / planned

"""What the learned decision promises, and how carefully it keeps it."""

from dataclasses import dataclass
from math import sqrt
from typing import Literal

Per = Literal["request", "hit"]


@dataclass(frozen=True, slots=True)
class LearnedSettings:
    """What is promised, and how carefully. The rest of the constants were chosen on no particular data; see the decision note."""

    bound: float = 0.01
    """Wrong shared answers at most, as a share of requests or of hits."""
    per: Per = "request"
    safety: float = 0.8
    """The predicted error is kept below this share of the bound."""
    audit_rate: float = 0.05
    """Share of the hits that are sent to the model all the same."""
    refit_every: int = 250
    window: int = 2000
    """Requests over which the error is predicted."""
    lessons: int = 4000
    """Compared answers that are learned from; the oldest are forgotten."""
    first_lessons: int = 100
    """Before so many answers were compared nothing is shared."""
    caution: float = 6.0
    """With n lessons the predicted error must be below n / (n + caution / bound) of what is allowed later: the tighter the bound, the more
    lessons it takes to tell whether it is kept."""
    doubt: float = 1.5
    """So many more lessons count as wrong than were, at 1 % of the requests; see `doubted`."""
    worst_odds: float = 20.0
    """No single answer is shared that is wrong with more than this many times the bound, or than one half: a bound per request would
    otherwise let coin tosses through wherever little else is shared."""
    penalty: float = 0.1
    scope_ridge: float = 4.0
    """How many lessons of its own a scope needs to be judged apart from the others."""
    rest: int = 50
    """Lessons during which a scope that fell back shares nothing, doubled each further time; all scopes, from the second time on."""

    def __post_init__(self) -> None:
        if not 0.0 < self.bound < 1.0:
            raise ValueError(f"CACHE_ERROR_BOUND is {self.bound}, but a share of wrong answers is above 0 and below 1; try 0.01")
        if not 0.0 < self.audit_rate <= 1.0:
            raise ValueError(f"the audit rate is {self.audit_rate}, but without audits no bound can be kept: it is above 0 and at most 1")

    @property
    def doubted(self) -> float:
        """So many more lessons count as wrong than were (`evidence.wrong_at_most`): the tighter the bound, the fewer wrong ones are
        seen at all, and the luckier the threshold that was chosen by them. A bound per hit is about twice as wide as one per request."""
        per_request = self.bound if self.per == "request" else self.bound / 2
        return self.doubt * max(1.0, sqrt(0.01 / per_request))

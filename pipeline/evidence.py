"""How far compared answers support sharing: from the most probable request on, until the bound could be broken.

    chances of the requests seen, compared answers -> how many may share

Two conditions, both kept. What the regression predicts stays below a part of the bound that grows with what was learned. And what the
compared answers show, with `doubt` more of them taken for wrong, stays below the bound: a regression believes its own tail, and five
weights know nothing of an error that comes once in a thousand. The second is the form of conformal risk control (Angelopoulos et al. 2022,
arXiv 2208.02814: one more wrong answer than was seen), of unequal weights (Kish 1965), and of more than one answer because the threshold is
chosen again at each fit, and the most fortunate one would win.
"""

import numpy as np

from .learned_settings import LearnedSettings
from .logistic import Floats


def wrong_at_most(chances: Floats, told: Floats, labels: Floats, row_weights: Floats, doubt: float) -> Floats:
    """The share of wrong answers among the compared ones that are at least as probable as each of `chances`, shape (k,); 1 without any.

    `told`, `labels`, `row_weights`, shape (n,): each compared answer's probability, whether it agreed, and how many it stands for.
    `doubt`: so many more of typical weight (sum of squares over sum) count as wrong.
    """
    order = np.argsort(-told, kind="stable")
    above = np.searchsorted(-told[order], -chances, side="right")

    def among(values: Floats) -> Floats:
        sums: Floats = np.concatenate([[0.0], np.cumsum(values[order])])[above]
        return sums

    weight = among(row_weights)
    doubted = doubt * np.divide(among(row_weights * row_weights), weight, out=np.ones_like(weight), where=weight > 0.0)
    found: Floats = (among(row_weights * (1.0 - labels)) + doubted) / (weight + doubted)
    return found


def may_share(chances: Floats, shown: Floats, promised: LearnedSettings, lessons: int, requests: int) -> int:
    """How many of `chances`, the highest first, may share. `shown`: `wrong_at_most` of them; `requests`: how many the chances stand for."""
    each = np.arange(1, len(chances) + 1)
    allowed = promised.bound * (requests if promised.per == "request" else each)
    learned = promised.safety * lessons / (lessons + promised.caution / promised.bound)
    no_worse = 1.0 - chances <= min(0.5, promised.worst_odds * promised.bound)
    fits = np.flatnonzero((np.cumsum(1.0 - chances) <= learned * allowed) & (shown * each <= allowed) & no_worse)
    return int(fits[-1]) + 1 if len(fits) else 0

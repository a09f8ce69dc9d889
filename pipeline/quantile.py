"""The cold start of routing: without any feedback, the harder of the prompts that this engine sees go to better models.

How hard a prompt looks is a weighed sum of its features, and only its rank among recent prompts counts: fixed cuts of such a score send 85
to 99.9 % of real prompts to the cheapest tier.
"""

from bisect import bisect_left
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from .prompt_features import PROMPT_FEATURES

Matrix = NDArray[np.float64]

_WEIGHTS = {"characters": 1.0, "reasoning_words": 0.3, "code": 0.3, "jargon": 0.2, "long_answer": 0.1}
"""Nothing but length carries over from one kind of prompts to another by much, so length leads: counts of numbers, sentences or questions
help on one public table and hurt on another.
"""
_USUAL = np.array([2.0, 3.8, 4.1, 4.3, 4.6, 4.9, 5.2, 5.4, 5.6, 6.0, 6.7, 8.6])
"""Quantiles of `difficulty` among 7,000 public prompts, least to greatest: what prompts are ranked among before any was seen."""
_FEWEST = 50


def difficulty(features: Matrix) -> Matrix:
    """How hard prompts look; only the order means anything. Shape (prompts, features) -> (prompts,)."""
    made = np.zeros(len(features))
    for name, weight in _WEIGHTS.items():
        made += weight * features[:, PROMPT_FEATURES.index(name)]
    return made


def rank(value: float, recent: Sequence[float]) -> float:
    """Share of recent prompts that look easier, 0 to 1; among the usual ones where few were seen. `recent` is sorted."""
    if len(recent) >= _FEWEST:
        return (bisect_left(recent, value) + 0.5) / (len(recent) + 1)
    return float(np.interp(value, _USUAL, np.linspace(0.0, 1.0, len(_USUAL))))

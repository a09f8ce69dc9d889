"""The cold start of routing: without any feedback, the harder of the prompts that this engine sees go to better models.

How hard a prompt looks is a weighed sum of its features, and only its rank among recent prompts counts: fixed cuts of such a score send 85
to 99.9 % of real prompts to the cheapest tier.
"""

import numpy as np
from numpy.typing import NDArray

from .prompt_features import PROMPT_FEATURES

Matrix = NDArray[np.float64]

_CENTRE_AND_WEIGHT = {
    "characters": (5.5, 1.0),
    "numbers": (1.0, 0.35),
    "sentences": (1.0, 0.25),
    "rates": (0.3, 0.25),
    "reasoning_words": (0.1, 0.3),
    "code": (0.1, 0.3),
    "jargon": (0.1, 0.2),
}
"""Nothing but length carries over from one kind of prompts to another by much, so length leads."""


def difficulty(features: Matrix) -> Matrix:
    """How hard prompts look; only the order means anything. Shape (prompts, features) -> (prompts,)."""
    made = np.zeros(len(features))
    for name, (centre, weight) in _CENTRE_AND_WEIGHT.items():
        made += weight * (features[:, PROMPT_FEATURES.index(name)] - centre)
    return made

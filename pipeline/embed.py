"""Which texts are embedded together, and vectors of unit length."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from .ports import Vectors

PASS_TOKENS = 60
"""What one more forward pass costs, in tokens that could have been embedded in that time (MiniLM on one core: 7 to 10 ms)."""


def shares(total: int, weights: Sequence[int]) -> list[int]:
    """Splits a whole number by weights (>= 0) so that the parts add up to it; all 0 where no weight is above 0."""
    parts: list[int] = []
    weighed = given = 0
    whole = sum(weights)
    for weight in weights:
        weighed += weight
        upto = total * weighed // whole if whole else 0
        parts.append(upto - given)
        given = upto
    return parts


def plan_micro_batches(lengths: Sequence[int], padded_tokens: int, pass_tokens: int = PASS_TOKENS) -> list[list[int]]:
    """Splits texts into batches of similar length, as indexes into `lengths` (tokens, >= 0), shortest texts first.

    A batch is padded to its longest text, and padding costs as much as text; a batch of its own costs `pass_tokens`. The split with the
    least sum of both is found exactly, by dynamic programming over the distinct lengths; then batches above `padded_tokens` are
    halved (large ones leave the processor's cache). A text that is longer than that is a batch of its own.
    """
    if padded_tokens < 1:
        raise ValueError(f"padded_tokens is {padded_tokens}, but a batch holds at least one token")
    order = sorted(range(len(lengths)), key=lambda i: (lengths[i], i))
    batches: list[list[int]] = []
    for start, end in _cheapest_cuts([lengths[i] for i in order], pass_tokens):
        longest = max(1, lengths[order[end - 1]])
        rows = max(1, padded_tokens // longest)
        parts = -(-(end - start) // rows)
        step = -(-(end - start) // parts)
        batches.extend(order[i : min(i + step, end)] for i in range(start, end, step))
    return batches


def _cheapest_cuts(ascending: list[int], pass_tokens: int) -> list[tuple[int, int]]:
    """(start, end) of the batches with the least padded tokens plus passes. A best cut never splits equal lengths."""
    ends = [i + 1 for i in range(len(ascending)) if i + 1 == len(ascending) or ascending[i + 1] > ascending[i]]
    best, cut = [0], [0]
    for k, end in enumerate(ends):
        longest = ascending[end - 1]
        costs = [best[j] + pass_tokens + (end - (ends[j - 1] if j else 0)) * longest for j in range(k + 1)]
        j = min(range(k + 1), key=costs.__getitem__)
        best.append(costs[j])
        cut.append(j)
    cuts: list[tuple[int, int]] = []
    k = len(ends)
    while k:
        j = cut[k]
        cuts.append((ends[j - 1] if j else 0, ends[k - 1]))
        k = j
    return cuts[::-1]


def reduce_dimension(vectors: Vectors, dimension: int) -> Vectors:
    """The first `dimension` components of each row, at unit length again; rows of zeros stay zero."""
    if not 1 <= dimension <= vectors.shape[1]:
        raise ValueError(f"can't reduce {vectors.shape[1]} dimensions to {dimension}")
    return unit_rows(vectors[:, :dimension])


def unit_rows(rows: NDArray[np.floating]) -> Vectors:
    """Rows scaled to unit length; rows of zeros stay zero. Shape (n, d) float32."""
    out = np.ascontiguousarray(rows, dtype=np.float32)
    norms = np.linalg.norm(out, axis=1, keepdims=True)
    scaled: Vectors = np.divide(out, norms, out=np.zeros_like(out), where=norms > 0)
    return scaled

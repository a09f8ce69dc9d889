"""Micro-batches hold every text once and no more padding than they must."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference_engine.pipeline.embed import PASS_TOKENS, plan_micro_batches, reduce_dimension

lengths = st.lists(st.integers(0, 256), max_size=80)


def cost(texts: list[int], batches: list[list[int]]) -> int:
    return sum(PASS_TOKENS + len(b) * max(texts[i] for i in b) for b in batches)


@given(lengths, st.integers(1, 2000))
def test_every_text_is_in_exactly_one_batch_and_batches_keep_their_limit(texts: list[int], limit: int) -> None:
    batches = plan_micro_batches(texts, limit)
    assert sorted(i for b in batches for i in b) == list(range(len(texts)))
    assert all(len(b) == 1 or len(b) * max(1, *(texts[i] for i in b)) <= limit for b in batches)


@given(lengths)
def test_the_split_costs_no_more_than_one_batch_or_all_apart_or_windows_of_eight(texts: list[int]) -> None:
    order = sorted(range(len(texts)), key=texts.__getitem__)
    rivals = [[order[i : i + n] for i in range(0, len(order), n)] for n in (1, 8, max(1, len(order)))]
    assert all(cost(texts, plan_micro_batches(texts, 10**6)) <= cost(texts, rival) for rival in rivals)


def test_a_long_text_is_not_padded_onto_short_ones() -> None:
    assert plan_micro_batches([8, 200, 8, 8], 10_000) == [[0, 2, 3], [1]]


def test_a_batch_without_room_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one token"):
        plan_micro_batches([1], 0)


def test_reduced_vectors_have_unit_length_and_zeros_stay_zero() -> None:
    rows = np.array([[3.0, 4.0, 12.0], [0.0, 0.0, 0.0]], dtype=np.float32)
    assert np.allclose(reduce_dimension(rows, 2), [[0.6, 0.8], [0.0, 0.0]])
    with pytest.raises(ValueError, match="can't reduce"):
        reduce_dimension(rows, 4)

"""The fit: what it finds is what was there, and it always finds something."""

import numpy as np
import pytest

from inference_engine.pipeline.logistic import fit, shrunk_offsets, sigmoid


def test_it_finds_the_weights_that_made_the_labels() -> None:
    random = np.random.default_rng(0)
    rows = np.column_stack([np.ones(20_000), random.normal(size=(20_000, 2))])
    labels = (random.random(20_000) < sigmoid(rows @ np.array([-1.0, 2.0, 0.5]))).astype(np.float64)
    found = fit(rows, labels, np.ones(20_000), np.zeros(3), 0.1)
    assert found == pytest.approx([-1.0, 2.0, 0.5], abs=0.1)


def test_a_row_of_weight_three_counts_like_three_rows() -> None:
    rows = np.array([[1.0, 0.2], [1.0, 0.4], [1.0, 0.9]])
    labels = np.array([0.0, 1.0, 1.0])
    once = fit(rows, labels, np.array([1.0, 3.0, 1.0]), np.zeros(2), 0.1)
    again = fit(rows[[0, 1, 1, 1, 2]], labels[[0, 1, 1, 1, 2]], np.ones(5), np.zeros(2), 0.1)
    assert once == pytest.approx(again, abs=1e-4)


@pytest.mark.parametrize("labels", [[0.0, 0.0, 0.0], [1.0, 1.0, 1.0], [0.0, 1.0, 1.0]])
def test_labels_that_are_all_equal_or_separable_still_have_a_finite_answer(labels: list[float]) -> None:
    rows = np.array([[1.0, 0.1], [1.0, 0.5], [1.0, 0.9]])
    found = fit(rows, np.array(labels), np.ones(3), np.zeros(2), 0.1)
    assert np.isfinite(found).all()
    assert ((sigmoid(rows @ found) > 0.5) == np.array(labels)).all() or len(set(labels)) == 2


def test_each_group_gets_the_offset_that_it_would_get_alone_and_a_small_one_hardly_any() -> None:
    random = np.random.default_rng(1)
    of = np.array([0] * 400 + [1] * 400 + [2])
    labels = (random.random(801) < np.array([0.2] * 400 + [0.9] * 400 + [1.0])).astype(np.float64)
    weights = np.ones(801)
    found = shrunk_offsets(np.zeros(801), labels, weights, of, 4.0)
    for group in range(3):
        own = of == group
        alone = shrunk_offsets(np.zeros(own.sum()), labels[own], weights[own], np.zeros(own.sum(), dtype=np.int64), 4.0)
        assert found[group] == pytest.approx(alone[0], abs=1e-6)
    assert found == pytest.approx([-1.35, 2.15, 0.12], abs=0.4)
    assert abs(found[2]) < 0.3

"""Errors of means: what varies together counts together, and few kinds never make one surer than many."""

import numpy as np
import pytest

from inference_engine.pipeline.sampling_error import each_alone, standard_error, widened

VALUES = np.random.default_rng(0).random((200, 1))
ALONE = standard_error(VALUES, each_alone(200))


def test_one_kind_of_prompts_leaves_no_less_error_than_prompts_by_themselves() -> None:
    """Residuals of a mean add up to 0, so that the sum over the only cluster is none."""
    assert standard_error(VALUES, np.zeros(200, dtype=np.intp)) == pytest.approx(ALONE)


def test_kinds_that_happen_to_be_alike_do_not_shrink_the_error() -> None:
    alternating = np.tile([0.0, 1.0], 100)[:, None]
    assert standard_error(alternating, np.repeat(np.arange(4), 50)) == pytest.approx(0.5 / np.sqrt(200))


def test_few_kinds_that_differ_widen_the_error_and_the_margin() -> None:
    kinds = np.repeat(np.arange(4), 50)
    shifted = VALUES + kinds[:, None]
    means = np.array([shifted[kinds == kind].mean() for kind in range(4)])
    assert standard_error(shifted, kinds) == pytest.approx(means.std(ddof=1) / 2)
    assert widened(1.64, kinds) > widened(1.64, np.repeat(np.arange(40), 5)) > 1.64

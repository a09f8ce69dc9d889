"""The monitor: silent while predictions hold, quick where they no longer do, and right about since when."""

import numpy as np

from inference_engine.pipeline.drift import DriftMonitor


def run(stale: float, *, after: int, n: int, seed: int) -> tuple[int, int] | None:
    """(when the alarm came, since when it says) where from `after` on a share `stale` of the answers disagrees in any case."""
    random, monitor = np.random.default_rng(seed), DriftMonitor()
    for at in range(n):
        p = float(random.beta(2, 1.5))
        agrees = random.random() < p and not (at >= after and random.random() < stale)
        since = monitor.observe(p, bool(agrees), at)
        if since is not None:
            return at, since
    return None


def test_it_is_silent_while_agreement_is_as_predicted() -> None:
    assert [run(0.0, after=0, n=3000, seed=s) for s in range(10)] == [None] * 10


def test_answers_that_all_change_are_noticed_within_thirty_comparisons_and_dated() -> None:
    for seed in range(10):
        found = run(1.0, after=500, n=600, seed=seed)
        assert found is not None
        at, since = found
        assert 500 <= at < 530
        assert 480 <= since <= 502


def test_a_third_that_changes_is_noticed_too() -> None:
    found = [run(0.35, after=500, n=1500, seed=s) for s in range(10)]
    assert all(f is not None and f[0] >= 500 for f in found)


def test_one_wrong_answer_that_was_thought_certain_is_no_alarm() -> None:
    monitor = DriftMonitor()
    assert monitor.observe(0.999999, False, 1) is None
    assert not monitor.suspects

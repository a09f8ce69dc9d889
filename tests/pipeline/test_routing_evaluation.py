"""The evaluation is honest: nothing is measured on what it was learned from, and a validated threshold keeps its promise."""

from dataclasses import replace

import numpy as np
import pytest

from inference_engine.pipeline.router_state import learn_state
from inference_engine.pipeline.routing_curve import Ends, Outcomes
from inference_engine.pipeline.routing_evaluation import Result, cross_splits, evaluate, fold_of, one_split, threshold
from inference_engine.pipeline.routing_table import Table
from inference_engine.pipeline.sampling_error import each_alone
from inference_engine.pipeline.table_policies import POLICIES, REFERENCES

from .routing_support import KINDS, easy_and_hard, rows, table


def results(made: Table, *, policies: tuple[str, ...] = (*REFERENCES, *POLICIES)) -> dict[str, Result]:
    random = np.random.default_rng(0)
    splits = cross_splits(rows(made), random)
    return evaluate(splits, policies, random, resamples=50)


def test_the_learned_policy_is_between_the_coin_and_the_oracle_and_above_the_length() -> None:
    made = results(easy_and_hard())
    apgr = {name: result.apgr or 0.0 for name, result in made.items()}
    assert apgr["random"] == pytest.approx(0.5, abs=0.001)
    assert apgr["static_mix"] == pytest.approx(0.5, abs=0.001)
    assert apgr["prompt_length"] < apgr["learned"] < apgr["oracle"]
    assert (made["learned"].saved_at_95 or 0) > 0.35
    assert made["best_single"].saved_at_95 == 0
    assert made["best_single"].apgr is None


def test_intervals_hold_the_value_and_are_narrow_with_many_prompts() -> None:
    made = results(easy_and_hard(), policies=("learned",))["learned"]
    low, high = made.intervals["apgr"] or (0, 0)
    assert low <= (made.apgr or 0) <= high
    assert 0 < high - low < 0.2


def test_nothing_to_learn_falls_back_to_the_static_mix_and_says_so() -> None:
    made = results(table(400, {"a": lambda k: 0.4, "b": lambda k: 0.8}, {"a": 1, "b": 10}), policies=("learned", "static_mix"))
    assert "static" in made["learned"].note
    assert made["learned"].apgr == pytest.approx(0.5, abs=0.06)


def test_what_is_learned_of_a_few_kinds_is_not_trusted_with_another_where_they_contradict_each_other() -> None:
    """In each group another kind of prompt is the hard one, and no training part can know the left-out group's."""
    chance = {"small": lambda k: (0.95, 0.3)[k], "large": lambda k: 0.9}
    parts = [table(120, chance, {"small": 1, "large": 10}, seed) for seed in range(5)]
    turned = [replace(p, scores=_turned(p) if i % 2 else p.scores, groups=(str(i),) * 120) for i, p in enumerate(parts)]
    made = replace(
        parts[0],
        prompts=tuple(f"{text} in {i}" for i, p in enumerate(turned) for text in p.prompts),
        scores=np.concatenate([p.scores for p in turned]),
        costs=np.concatenate([p.costs for p in turned]),
        groups=tuple(g for p in turned for g in p.groups or ()),
    )
    random = np.random.default_rng(0)
    found = evaluate(cross_splits(rows(made, by_group=True), random), ("learned", "static_mix"), random, resamples=50)
    assert "static" in found["learned"].note
    assert (found["learned"].apgr or 0) >= (found["static_mix"].apgr or 0) - 0.02


def _turned(made: Table) -> np.ndarray:
    """The small model is good at the other kind of prompts."""
    random = np.random.default_rng(1)
    small = [float(random.random() < (0.3 if prompt.startswith(KINDS[0]) else 0.95)) for prompt in made.prompts]
    return np.column_stack([made.scores[:, 0], small])


def test_of_two_groups_one_teaches_nothing_about_the_other() -> None:
    made = rows(replace(easy_and_hard(400), groups=("a", "b") * 200), by_group=True)
    random = np.random.default_rng(0)
    found = evaluate(cross_splits(made, random), ("learned", "static_mix"), random, resamples=50)
    assert "static" in found["learned"].note
    assert found["learned"].apgr == found["static_mix"].apgr


def test_a_table_of_one_group_is_learned_from() -> None:
    """Its prompts are told apart among themselves, as those of a table without groups."""
    made = rows(replace(easy_and_hard(600), groups=("g",) * 600), by_group=True)
    assert not learn_state(made, np.random.default_rng(0)).static


def test_the_learned_policy_never_saves_less_than_the_static_mix_in_hindsight() -> None:
    made = results(table(60, {"a": lambda k: 0.4, "b": lambda k: 0.6, "c": lambda k: 0.7}, {"a": 1, "b": 3, "c": 10}))
    for measure in ("saved_at_95", "saved_at_99"):
        assert getattr(made["learned"], measure) >= getattr(made["static_mix"], measure) - 1e-9


def test_a_cheaper_model_that_is_also_better_gets_everything() -> None:
    made = results(table(300, {"dear": lambda k: 0.6, "good": lambda k: 0.8}, {"dear": 10, "good": 1}))
    for name in (*POLICIES, "static_mix"):
        assert made[name].saved_at_95_validated == pytest.approx(0, abs=1e-9), name  # of the good one's own cost
        assert made[name].quality_vs_best == pytest.approx(1, abs=1e-9), name
        assert made[name].apgr is None
    assert all(point == pytest.approx((1.0, 1.0)) for point in made["learned"].curve)


def test_a_model_that_is_worse_on_the_whole_is_kept_where_it_is_better_for_some_prompts_that_can_be_told() -> None:
    chance = {"a": lambda k: (0.9, 0.3)[k], "b": lambda k: (0.2, 0.95)[k], "top": lambda k: 0.93}
    made = results(table(600, chance, {"a": 1, "b": 1, "top": 20}), policies=("learned",))["learned"]
    assert (made.saved_at_95 or 0) > 0.8


def test_equal_prices_ties_and_models_alike_are_no_error() -> None:
    same = table(100, {"a": lambda k: 1.0, "b": lambda k: 1.0}, {"a": 1, "b": 1})
    for result in results(same).values():
        assert result.quality_vs_best == 1
        assert result.saved_at_95_validated == 0
    free = table(100, {"a": lambda k: 0.5, "b": lambda k: 0.9, "c": lambda k: 0.7}, {"a": 0, "b": 0, "c": 0})
    assert results(free)["learned"].saved_at_95 == 0
    hopeless = table(100, {"a": lambda k: 0.0, "b": lambda k: 0.0}, {"a": 1, "b": 2})
    assert results(hopeless)["learned"].quality_vs_best == 1


def test_missing_values_are_learned_from_and_not_measured() -> None:
    made = easy_and_hard()
    scores = made.scores.copy()
    scores[::3, 0] = np.nan
    found = results(replace(made, scores=scores), policies=("learned",))["learned"]
    assert (found.apgr or 0) > 0.6


def test_prompts_of_one_group_and_equal_prompts_are_never_on_both_sides() -> None:
    made = replace(easy_and_hard(), groups=tuple(str(i % 7) for i in range(400)))
    for split in cross_splits(rows(made, by_group=True), np.random.default_rng(0)):
        assert not set(split.train.table.groups or ()) & set(split.test.table.groups or ())
        for fold in np.unique(split.folds):
            inside = {g for g, f in zip(split.train.table.groups or (), split.folds, strict=True) if f == fold}
            outside = {g for g, f in zip(split.train.table.groups or (), split.folds, strict=True) if f != fold}
            assert not inside & outside
    twice = replace(made, prompts=(*made.prompts[:200], *made.prompts[:200]), groups=None)
    for split in cross_splits(rows(twice), np.random.default_rng(0)):
        assert not set(split.train.table.prompts) & set(split.test.table.prompts)


def test_folds_are_about_equally_large_whatever_the_groups() -> None:
    fold = fold_of(np.array([99] * 50 + list(range(50))), np.random.default_rng(0))
    assert sorted(np.bincount(fold)) == [12, 12, 13, 13, 50]


def test_a_threshold_leaves_a_margin_for_what_was_measured_and_for_what_will_be_served() -> None:
    random = np.random.default_rng(0)
    best = np.ones(1000)
    scores = np.column_stack([best, random.random(1000) < 0.96, np.zeros(1000)])
    alone = each_alone(1000)
    seen = Outcomes(scores.astype(float), np.tile([3.0, 2.0, 1.0], (1000, 1)))
    assert threshold(seen, best, 0.95, served=10**9, margin=0.0, clusters=alone) == 1
    assert threshold(seen, best, 0.95, served=10**9, margin=3.0, clusters=alone) == 0
    assert threshold(seen, best, 0.93, served=10**9, margin=3.0, clusters=alone) == 1
    assert threshold(seen, best, 0.93, served=10, margin=3.0, clusters=alone) == 0
    assert threshold(seen, best, 1.01, served=10, margin=0.0, clusters=alone) is None


def test_prompts_that_vary_together_widen_the_margin() -> None:
    clusters = np.repeat(np.arange(10), 100)
    scores = np.where(clusters < 5, 1.0, 0.94)
    seen = Outcomes(np.column_stack([np.ones(1000), scores]), np.tile([2.0, 1.0], (1000, 1)))
    assert threshold(seen, np.ones(1000), 0.96, served=1000, margin=2.0, clusters=each_alone(1000)) == 1
    assert threshold(seen, np.ones(1000), 0.96, served=1000, margin=2.0, clusters=clusters) == 0


def test_train_and_test_as_given_measure_only_the_test() -> None:
    train, test = easy_and_hard(400, seed=1), easy_and_hard(100, seed=2)
    random = np.random.default_rng(0)
    split = one_split(rows(train), rows(test), random)
    made = evaluate([split], ("learned", "oracle"), random, resamples=20)
    ends = Ends.of(test.scores, test.costs)
    quality = test.scores.max(axis=1).mean() / test.scores[:, ends.best].mean()
    assert max(q for _, q in made["oracle"].curve) == pytest.approx(quality)
    assert (made["learned"].apgr or 0) > 0.6

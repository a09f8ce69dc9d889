"""The learner behind the feedback: what it foretells, how sure it is, and that one score at a time is enough."""

from dataclasses import replace

import numpy as np
import pytest

from inference_engine.pipeline.feedback_model import JUDGE_NOISE, MOST_SCORES, Scores, learn

from .feedback_support import WORTH, lessons, prompts, scores_of


def test_it_learns_which_prompts_the_cheap_model_is_enough_for_from_one_answer_each() -> None:
    model = learn(scores_of(lessons(400)), 2, np.random.default_rng(0)).model
    features, vectors, hard = prompts(300, np.random.default_rng(9))
    gain = model.predict(features, vectors) @ np.array([1.0, -1.0])
    assert gain[hard].mean() > 0.4
    assert abs(gain[~hard].mean()) < 0.25


def test_what_is_foretold_of_a_prompt_does_not_know_its_own_score() -> None:
    """The closed form is held against fits that really leave one score out."""
    made = scores_of(lessons(40))
    strengths = ((0.3, 1.0, 1.0),)
    whole = learn(made, 2, np.random.default_rng(1), strengths)
    for out in (0, 7, 39):
        kept = np.arange(40) != out
        assert made.embeddings is not None
        part = Scores(made.features[kept], made.embeddings[kept], made.models[kept], made.values[kept])
        alone = learn(part, 2, np.random.default_rng(1), strengths, whole.model.basis).model
        told = alone.predict(made.features[[out]], made.embeddings[[out]])[0]
        # The mean of all scores is a constant of the model, not learned from: it moves by one part in forty.
        np.testing.assert_allclose(told, whole.unseen[out], atol=1 / 40)


def test_draws_lie_around_the_mean_and_closer_where_more_was_heard() -> None:
    features, vectors, _ = prompts(50, np.random.default_rng(9))
    spreads = []
    for count in (30, 1_000):
        model = learn(scores_of(lessons(count)), 2, np.random.default_rng(0)).model
        draws = model.draws(features, vectors)
        spreads.append(draws.std(axis=0).mean())
        error = draws.mean(axis=0) - model.predict(features, vectors)
        assert np.abs(error).mean() < 3 * draws.std(axis=0).mean() / np.sqrt(len(draws)) + 1e-3
    assert spreads[1] < spreads[0] / 2


def test_one_prompt_is_foretold_as_it_is_among_others() -> None:
    model = learn(scores_of(lessons(200)), 2, np.random.default_rng(0)).model
    features, vectors, _ = prompts(5, np.random.default_rng(9))
    many, draws = model.predict(features, vectors), model.draws(features, vectors)
    for i in range(5):
        np.testing.assert_allclose(model.predict(features[[i]], vectors[[i]])[0], many[i], atol=1e-4)
        np.testing.assert_allclose(model.draws(features[[i]], vectors[[i]])[:, 0], draws[:, i], atol=1e-4)


def test_a_model_that_was_never_heard_of_is_foretold_by_the_others_and_unsurely() -> None:
    features, vectors, _ = prompts(50, np.random.default_rng(9))
    model = learn(scores_of(lessons(400)), 3, np.random.default_rng(0)).model
    told, spread = model.predict(features, vectors).mean(axis=0), model.draws(features, vectors).std(axis=0).mean(axis=0)
    assert 0.3 < told[2] < 1.0
    assert spread[2] > 1.5 * spread[:2].max()


SHARED = ((0.3, 1.0, 1.0),)


def four_of_a_judge(made: Scores) -> Scores:
    assert made.embeddings is not None
    vectors, models = np.repeat(made.embeddings, 4, axis=0), np.repeat(made.models, 4)
    return Scores(np.repeat(made.features, 4, axis=0), vectors, models, np.repeat(made.values, 4), np.full(4 * len(made), JUDGE_NOISE))


def test_four_words_of_a_judge_count_as_one_of_a_user() -> None:
    made, judged = scores_of(lessons(60)), four_of_a_judge(scores_of(lessons(60)))
    basis = learn(made, 2, np.random.default_rng(1), SHARED).model.basis
    features, vectors, _ = prompts(50, np.random.default_rng(9))
    users, judges, more = (
        learn(of, 2, np.random.default_rng(1), SHARED, basis).model.predict(features, vectors)
        for of in (made, judged, replace(judged, noise=None))
    )
    np.testing.assert_allclose(users, judges, atol=1e-4)
    assert np.abs(users - more).max() > 0.05


def test_draws_are_as_unsure_after_four_words_of_a_judge_as_after_one_of_a_user() -> None:
    made, judged = scores_of(lessons(60)), four_of_a_judge(scores_of(lessons(60)))
    basis = learn(made, 2, np.random.default_rng(1), SHARED).model.basis
    unsure = []
    for of in (made, judged):
        model = learn(of, 2, np.random.default_rng(1), SHARED, basis).model
        # In units of a user's noise, as it is found.
        unsure.append(model.draws(made.features, made.embeddings).std(axis=0).mean() / np.sqrt(model.noise))
    assert unsure[1] == pytest.approx(unsure[0], rel=0.1)


def test_noise_alone_teaches_next_to_nothing() -> None:
    even = dict.fromkeys(WORTH, 0.6)
    model = learn(scores_of(lessons(600, worth=even)), 2, np.random.default_rng(0)).model
    features, vectors, _ = prompts(300, np.random.default_rng(9))
    assert model.predict(features, vectors) == pytest.approx(0.6, abs=0.2)


def test_only_the_newest_scores_are_learned_from() -> None:
    worse = {key: 0.05 for key in WORTH}
    made = scores_of([*lessons(500, worth=worse), *lessons(MOST_SCORES, seed=1)])
    assert len(learn(made, 2, np.random.default_rng(0), ((0.3, 0.3, 0.3),)).unseen) == MOST_SCORES

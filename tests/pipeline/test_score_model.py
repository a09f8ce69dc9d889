"""The learner: it finds what differs between kinds of prompts, shrinks to the means where nothing does, and keeps folds apart."""

import numpy as np
import pytest

from inference_engine.pipeline.prompt_features import PROMPT_FEATURES, feature_rows, prompt_features
from inference_engine.pipeline.score_model import fit

from .routing_support import easy_and_hard, table

FOLDS = np.arange(400) % 5


def test_it_tells_prompts_apart_that_models_answer_differently() -> None:
    made = easy_and_hard()
    fitted = fit(feature_rows(made.prompts), None, made.scores, FOLDS, np.random.default_rng(0))
    other = easy_and_hard(200, seed=1)
    predicted = fitted.model.predict(feature_rows(other.prompts), None)
    gain = predicted[:, 0] - predicted[:, 1]  # large - small
    hard = np.array(["Solve" in p for p in other.prompts])
    assert gain[hard].min() > 0.5
    assert gain[~hard].max() < 0.3


def test_where_there_is_nothing_to_learn_it_predicts_about_the_means() -> None:
    made = table(400, {"a": lambda k: 0.5, "b": lambda k: 0.7}, {"a": 1, "b": 2})
    fitted = fit(feature_rows(made.prompts), None, made.scores, FOLDS, np.random.default_rng(0))
    spread = fitted.model.predict(feature_rows(made.prompts), None).std(axis=0)
    assert spread.max() < 0.05


def test_a_prediction_for_a_training_prompt_never_saw_its_own_fold() -> None:
    """Scores that are a secret of each fold can't be foretold: unseen predictions of shuffled labels have no gain."""
    random = np.random.default_rng(0)
    features = random.normal(size=(1000, len(PROMPT_FEATURES)))
    embeddings = random.normal(size=(1000, 64)).astype(np.float32)
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    scores = random.integers(0, 2, (1000, 2)).astype(float)
    fitted = fit(features, embeddings, scores, np.arange(1000) % 5, random)
    gain, truth = fitted.unseen[:, 0] - fitted.unseen[:, 1], scores[:, 0] - scores[:, 1]
    assert np.corrcoef(gain - gain.mean(), truth)[0, 1] < 0.1


def test_missing_scores_are_learned_around() -> None:
    made = easy_and_hard()
    scores = made.scores.copy()
    scores[np.random.default_rng(0).random(scores.shape) < 0.3] = np.nan
    fitted = fit(feature_rows(made.prompts), None, scores, FOLDS, np.random.default_rng(0))
    gain = fitted.unseen[:, 0] - fitted.unseen[:, 1]
    hard = np.array(["Solve" in p for p in made.prompts])
    assert np.isfinite(fitted.unseen).all()
    assert gain[hard].mean() > gain[~hard].mean() + 0.4


def test_few_prompts_are_only_averaged() -> None:
    made = easy_and_hard(12)
    fitted = fit(feature_rows(made.prompts), None, made.scores, np.arange(12) % 3, np.random.default_rng(0))
    np.testing.assert_allclose(fitted.model.predict(feature_rows(["anything"]), None)[0], made.scores.mean(axis=0))


def test_a_model_of_embeddings_asks_for_them() -> None:
    made = easy_and_hard()
    vectors = np.eye(400, dtype=np.float32)
    fitted = fit(feature_rows(made.prompts), vectors, made.scores, FOLDS, np.random.default_rng(0))
    with pytest.raises(ValueError, match="embeddings"):
        fitted.model.predict(feature_rows(["x"]), None)


@pytest.mark.parametrize(
    "text", ["", " ", "\n", "?", "日本語", "1" * 400, "1.2.3", "9" * 15, "a" * 100_000, "\ud800", "```x``` \\frac $5 10%"]
)
def test_features_of_any_text_are_finite_numbers(text: str) -> None:
    made = prompt_features(text)
    assert len(made) == len(PROMPT_FEATURES)
    assert np.isfinite(made).all()

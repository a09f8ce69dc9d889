"""Lessons of a world with easy and hard prompts, where a cheap model is enough for the easy ones."""

from collections.abc import Sequence

import numpy as np

from inference_engine.pipeline.feedback import Lesson
from inference_engine.pipeline.feedback_model import Scores
from inference_engine.pipeline.prompt_features import PROMPT_FEATURES

MODELS = ("large", "small")
COSTS = (("large", 10**10), ("small", 10**9))
WORTH = {("large", True): 0.9, ("small", True): 0.15, ("large", False): 0.92, ("small", False): 0.9}
"""(model, hard) -> how probable a good answer is."""


def prompts(count: int, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features, embeddings, and which are hard: the embedding's first number tells, but not alone."""
    hard = random.random(count) < 0.5
    vectors = random.normal(0, 1, (count, 12))
    vectors[:, 0] = np.where(hard, 3.0, -3.0)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return random.normal(0, 1, (count, len(PROMPT_FEATURES))), vectors.astype(np.float32), hard


def lessons(
    count: int,
    seed: int = 0,
    *,
    worth: dict[tuple[str, bool], float] | None = None,
    large: float = 0.5,
    from_ms: int = 0,
    expected: float | None = None,
    lengths: Sequence[float] = (1.0,),
) -> list[Lesson]:
    """`large`: the share that the large model answers. `lengths`: what prompts cost, in turn, in units of the usual."""
    random = np.random.default_rng(seed)
    features, vectors, hard = prompts(count, random)
    made = []
    for i in range(count):
        model = "large" if random.random() < large else "small"
        good = random.random() < (worth or WORTH)[model, bool(hard[i])]
        chance = large if model == "large" else 1 - large
        costs = tuple((name, round(cost * lengths[i % len(lengths)])) for name, cost in COSTS)
        made.append(Lesson(model, float(good), tuple(features[i]), vectors[i], expected, chance, costs, from_ms + i))
    return made


def scores_of(made: Sequence[Lesson]) -> Scores:
    vectors = np.array([lesson.embedding for lesson in made])
    columns = np.array([MODELS.index(lesson.model) for lesson in made], dtype=np.intp)
    return Scores(np.array([lesson.features for lesson in made]), vectors, columns, np.array([lesson.score for lesson in made]))

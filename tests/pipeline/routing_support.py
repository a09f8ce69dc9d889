"""Tables made up for routing: what is true of them is known."""

from collections.abc import Callable, Mapping

import numpy as np

from inference_engine.pipeline.prompt_features import feature_rows
from inference_engine.pipeline.routing_table import Table
from inference_engine.pipeline.table_policies import Rows, rows_of

KINDS = ("Translate the sentence into French: ", "Solve the equation and prove the theorem, step by step: ")
WORDS = ["river", "stone", "cloud", "winter", "garden", "music", "letter", "window", "bridge", "market", "silver", "forest"]


def prompts(count: int, random: np.random.Generator, kinds: tuple[str, ...] = KINDS) -> tuple[list[str], np.ndarray]:
    """Texts, and the kind of each."""
    kind = random.integers(0, len(kinds), count)
    made = [f"{kinds[k]}{' '.join(random.choice(WORDS, random.integers(3, 12)))} {i}" for i, k in enumerate(kind)]
    return made, kind


def table(count: int, chance: Mapping[str, Callable[[int], float]], costs: Mapping[str, float], seed: int = 0) -> Table:
    """`chance`: of each model to be right, by the kind of prompt."""
    random = np.random.default_rng(seed)
    texts, kind = prompts(count, random)
    models = tuple(sorted(chance))
    scores = np.array([[float(random.random() < chance[m](int(k))) for m in models] for k in kind])
    return Table(tuple(texts), models, scores, np.tile([costs[m] for m in models], (count, 1)), None)


def rows(made: Table, *, by_group: bool = False) -> Rows:
    features = feature_rows(made.prompts)
    return rows_of(made, features, None, features[:, 0], by_group=by_group)


def easy_and_hard(count: int = 400, seed: int = 0) -> Table:
    """The small model is as good on one kind and useless on the other."""
    return table(count, {"small": lambda k: (0.9, 0.1)[k], "large": lambda k: 0.9}, {"small": 0.001, "large": 0.01}, seed)

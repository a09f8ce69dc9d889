"""Which models are never to be chosen."""

import numpy as np
from numpy.typing import NDArray

from inference_engine.pipeline.dominance import dominated
from inference_engine.pipeline.routing_curve import Predictions
from inference_engine.pipeline.routing_table import Table
from inference_engine.pipeline.sampling_error import each_alone

ROWS = 300


def dropped(scores: dict[str, NDArray[np.float64]], *, whole: bool, told_apart: bool = True) -> list[str]:
    """Of models whose cost rises in this order. `told_apart`: each prompt's scores were foreseen; else only the models' means were."""
    names, columns = tuple(scores), np.column_stack(list(scores.values()))
    costs = np.tile(np.arange(1.0, len(names) + 1), (ROWS, 1))
    table = Table(tuple(f"prompt {i}" for i in range(ROWS)), names, columns, costs, None)
    foreseen = columns if told_apart else np.tile(columns.mean(axis=0), (ROWS, 1))
    drop = dominated(Predictions(foreseen, costs), table, each_alone(ROWS), whole=whole)
    return [name for name, out in zip(names, drop, strict=True) if out]


def right(share: float) -> NDArray[np.float64]:
    return np.random.default_rng(0).permutation(np.arange(ROWS) < share * ROWS).astype(np.float64)


def shuffled(share: float) -> NDArray[np.float64]:
    return np.random.default_rng(1).permutation(right(share))


def test_of_two_models_the_dearer_one_has_to_be_better_at_all_once_there_will_be_no_more_scores() -> None:
    """By 0.02 of 300 prompts, as chance could have made it: until more is heard both are tried."""
    pair = {"cheap": right(0.72), "dear": shuffled(0.70)}
    assert dropped(pair, whole=True) == ["dear"]
    assert dropped(pair, whole=False) == []


def test_a_dearer_model_that_is_better_is_kept() -> None:
    assert dropped({"cheap": right(0.70), "dear": shuffled(0.72)}, whole=True) == []


def test_a_model_that_is_surely_worse_and_dearer_is_dropped_unless_its_prompts_can_be_told_apart() -> None:
    three = {"cheap": right(0.9), "dear": shuffled(0.5), "best": right(0.95)}
    assert dropped(three, whole=True, told_apart=False) == ["dear"]
    assert dropped(three, whole=True) == []

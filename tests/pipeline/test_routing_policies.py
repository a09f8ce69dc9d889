"""The engine's policies: harder prompts go to better models, what was learned is used, and fallbacks never go down first."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference_engine.connectors.router_file import load_router, save_router
from inference_engine.pipeline.errors import ConfigError
from inference_engine.pipeline.models import Model, TierName
from inference_engine.pipeline.prompt_features import feature_rows
from inference_engine.pipeline.quantile import difficulty, rank
from inference_engine.pipeline.route import Offer, RouteFeatures
from inference_engine.pipeline.router_state import FLOORS, RouterState, learn_state
from inference_engine.pipeline.routing_policies import Burden, LearnedPolicy, QuantilePolicy

from .routing_support import KINDS, easy_and_hard, rows, table

EASY, HARD = "Hi!", "Prove the theorem step by step and explain the algorithm: " + "then consider the matrix. " * 40


def offer(name: str, quality: float, cost: int, latency: float = 1.0, tier: TierName = "economy") -> Offer:
    model = Model(name, "simulated", name, tier, context_tokens=8_000, max_output_tokens=2_000, quality=quality)
    return Offer(model, cost, latency)


def asked(text: str) -> RouteFeatures:
    return RouteFeatures("auto", None, text, input_tokens=len(text) // 4, turns=1, max_tokens=None)


THREE = (offer("small", 0.6, 10**6, 1.0), offer("medium", 0.8, 10**7, 2.0), offer("large", 0.95, 10**8, 4.0))


def test_the_harder_a_prompt_looks_the_better_a_model_it_gets() -> None:
    policy = QuantilePolicy(min_quality=0.85)
    assert policy.rank(asked(EASY), None, THREE).models[0] == "small"
    assert policy.rank(asked(HARD), None, THREE).models[0] == "large"


def test_how_hard_is_seen_among_recent_prompts() -> None:
    of_hard = float(difficulty(feature_rows([HARD]))[0])
    among_harder = QuantilePolicy(min_quality=0.85, recent=sorted(of_hard + i / 10 for i in range(1, 200)))
    assert among_harder.rank(asked(HARD), None, THREE).models[0] == "small"
    assert rank(of_hard, []) > 0.9
    assert 0 <= rank(-1e9, []) <= rank(1e9, []) <= 1


@pytest.mark.parametrize("floor", [0.7, 0.85, 0.95, 1.0])
def test_the_prior_quality_of_all_choices_is_above_the_floor_for_about_the_least(floor: float) -> None:
    recent = [i / 100 for i in range(1000)]
    hardness = [(i + 0.5) / 200 for i in range(200)]
    chosen = []
    for h in hardness:
        moved = [value - recent[int(h * 1000)] + float(difficulty(feature_rows(["x"]))[0]) for value in recent]
        chosen.append(QuantilePolicy(min_quality=floor, recent=moved).rank(asked("x"), None, THREE).models[0])
    quality = np.mean([{o.model.name: o.model.quality for o in THREE}[name] for name in chosen]) / 0.95
    assert quality == pytest.approx(floor, abs=0.05)
    assert quality >= floor - 0.02


def test_the_strategy_weighs_cost_against_latency() -> None:
    pair = (offer("slow", 0.8, 10, 4.0), offer("quick", 0.8, 20, 1.0))
    assert QuantilePolicy(Burden("cost_optimal")).rank(asked(EASY), None, pair).models[0] == "slow"
    assert QuantilePolicy(Burden("latency_optimal")).rank(asked(EASY), None, pair).models[0] == "quick"
    assert QuantilePolicy(Burden("balanced", 0.0)).rank(asked(EASY), None, pair).models[0] == "quick"


@given(
    st.lists(st.tuples(st.floats(0, 1), st.integers(0, 10**9), st.floats(0, 10)), min_size=1, max_size=6),
    st.floats(0.01, 1),
    st.text(max_size=50),
)
def test_every_choice_is_an_offer_named_once_and_fallbacks_are_no_worse_while_there_are_such(
    given_offers: list[tuple[float, int, float]], floor: float, text: str
) -> None:
    offers = [offer(f"m{i}", *values) for i, values in enumerate(given_offers)]
    chain = QuantilePolicy(min_quality=floor).rank(asked(text), None, offers).models
    quality = {o.model.name: round(o.model.quality, 4) for o in offers}
    assert 1 <= len(set(chain)) == len(chain) <= 4
    worse = [quality[name] < quality[chain[0]] for name in chain[1:]]
    assert worse == sorted(worse)


@pytest.fixture(scope="module")
def state() -> RouterState:
    return learn_state(rows(easy_and_hard(600)), np.random.default_rng(0))


SMALL_LARGE = (offer("small", 0.5, 10**9), offer("large", 0.9, 10**10))


def test_what_was_learned_decides_and_tells_what_it_expects(state: RouterState) -> None:
    policy = LearnedPolicy(state, QuantilePolicy(min_quality=0.96))
    easy = policy.rank(asked(f"{KINDS[0]}river stone 7"), None, SMALL_LARGE)
    hard = policy.rank(asked(f"{KINDS[1]}river stone 7"), None, SMALL_LARGE)
    assert (easy.models[0], hard.models[0]) == ("small", "large")
    assert "expected score" in hard.reason


@pytest.mark.parametrize("floor", [0.9, 0.96])
@pytest.mark.parametrize("times", [0.01, 1, 50])
def test_a_floor_holds_where_answers_are_not_as_long_as_offers_suppose(state: RouterState, floor: float, times: float) -> None:
    """The table's answers cost what they cost; offers are priced at a usual length, here so many times as dear."""
    policy = LearnedPolicy(state, QuantilePolicy(min_quality=floor))
    made = easy_and_hard(200, seed=9)
    chosen = [policy.rank(asked(prompt), None, at(times)).models[0] for prompt in made.prompts]
    quality = np.mean([made.scores[i, made.models.index(name)] for i, name in enumerate(chosen)])
    assert quality >= (floor - 0.02) * made.scores.mean(axis=0).max()
    assert 0.35 < np.mean([name == "small" for name in chosen]) < 0.65


def test_a_file_of_an_older_version_knows_no_costs_and_takes_offers_as_they_are(state: RouterState, tmp_path: Path) -> None:
    save_router(tmp_path / "router.npz", replace(state, costs=()))
    back = load_router(tmp_path / "router.npz")
    assert back is not None
    hard = asked(f"{KINDS[1]}river stone 7")
    policy = LearnedPolicy(back, QuantilePolicy(min_quality=0.96))
    assert policy.rank(hard, None, at(1)).models[0] == "large"
    assert policy.rank(hard, None, at(10**4)).models[0] == "small"


def test_a_model_that_nothing_is_learned_of_is_not_chosen_by_the_learned_policy(state: RouterState) -> None:
    policy = LearnedPolicy(state, QuantilePolicy(min_quality=0.9))
    new = offer("new", 0.99, 1)
    assert "new" not in policy.rank(asked(KINDS[1]), None, (*SMALL_LARGE, new)).models
    alone = policy.rank(asked(KINDS[1]), None, (new,))
    assert alone.models == ("new",)
    assert alone.reason.startswith("nothing is learned")


def test_a_higher_floor_never_asks_less_of_a_dollar(state: RouterState) -> None:
    prices = [price for price in state.prices if price is not None]
    assert prices == sorted(prices, reverse=True)
    assert state.price(0.801) == state.price(0.81)
    assert len(state.prices) == len(FLOORS)


def test_where_a_floor_could_not_be_validated_the_best_is_taken(state: RouterState) -> None:
    strict = replace(state, prices=tuple(None for _ in state.prices))
    policy = LearnedPolicy(strict, QuantilePolicy(min_quality=0.9))
    assert policy.rank(asked(f"{KINDS[1]}river"), None, SMALL_LARGE).models[0] == "large"


def test_nothing_to_learn_is_a_static_choice_that_says_so() -> None:
    made = learn_state(
        rows(table(300, {"small": lambda k: 0.5, "large": lambda k: 0.9}, {"small": 1, "large": 2})), np.random.default_rng(0)
    )
    assert made.static
    assert "static" in made.note
    policy = LearnedPolicy(made, QuantilePolicy(min_quality=0.95))
    firsts = {policy.rank(asked(text), None, SMALL_LARGE).models[0] for text in (EASY, HARD, *KINDS)}
    assert firsts == {"large"}


@pytest.mark.parametrize("good", [(0.6, 0.8), (0.5, 0.9), (0.78, 0.8)])
def test_a_static_choice_is_the_same_for_short_and_long_prompts_and_keeps_the_floor(good: tuple[float, float]) -> None:
    """What a request costs moves with its length, and must not move it to another model."""
    made = table(600, {"small": lambda k: good[0], "large": lambda k: good[1]}, {"small": 0.001, "large": 0.01})
    state = learn_state(rows(made), np.random.default_rng(0))
    assert state.static
    for floor in (0.8, 0.85, 0.9, 0.95, 1.0):
        policy = LearnedPolicy(state, QuantilePolicy(min_quality=floor))
        firsts = {policy.rank(asked(KINDS[1]), None, at(times)).models[0] for times in (0.01, 0.5, 0.98, 1.02, 2, 100)}
        assert len(firsts) == 1
        kept = made.scores[:, made.models.index(firsts.pop())].mean() / made.scores.mean(axis=0).max()
        assert kept >= floor


def at(times: float) -> list[Offer]:
    """The offers of a request that costs so many times the usual."""
    return [replace(o, cost_pico=round(o.cost_pico * times)) for o in SMALL_LARGE]


def test_a_dominated_model_is_left_out_of_the_state() -> None:
    made = learn_state(rows(table(300, {"dear": lambda k: 0.5, "good": lambda k: 0.9}, {"dear": 9, "good": 2})), np.random.default_rng(0))
    assert made.models == ("good",)


def test_the_state_survives_its_file(state: RouterState, tmp_path: Path) -> None:
    save_router(tmp_path / "router.npz", state)
    back = load_router(tmp_path / "router.npz")
    assert back is not None
    assert (back.models, back.prices, back.static, back.rows) == (state.models, state.prices, state.static, state.rows)
    assert back.costs == state.costs == pytest.approx([0.01, 0.001])
    for text in (EASY, HARD, *KINDS):
        np.testing.assert_allclose(back.predict(text, None), state.predict(text, None), atol=1e-4)


def test_a_state_with_embeddings_uses_them_where_they_are_there(tmp_path: Path) -> None:
    made = rows(easy_and_hard(300))
    vectors = np.random.default_rng(0).normal(size=(300, 16)).astype(np.float32)
    hard = np.array(["Solve" in p for p in made.table.prompts])
    vectors[:, 0] = np.where(hard, 5, -5)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    save_router(tmp_path / "router.npz", learn_state(replace(made, embeddings=vectors), np.random.default_rng(0)))
    state = load_router(tmp_path / "router.npz")
    assert state is not None
    assert state.dimension == 16
    gain: Mapping[bool, float] = {
        is_hard: float(np.subtract(*state.predict("x", vectors[hard == is_hard][0])[[state.column["large"], state.column["small"]]]))
        for is_hard in (True, False)
    }
    assert gain[True] > gain[False] + 0.2
    np.testing.assert_allclose(state.predict("x", np.ones(7, dtype=np.float32)), state.predict("x", None))


def test_a_file_that_is_no_state_is_an_error_that_says_what_to_do_and_no_file_is_none(tmp_path: Path) -> None:
    assert load_router(tmp_path / "gone.npz") is None
    (tmp_path / "bad.npz").write_bytes(b"nonsense")
    with pytest.raises(ConfigError, match="bootstrap-router"):
        load_router(tmp_path / "bad.npz")

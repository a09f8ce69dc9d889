"""The documented complexity score: within 0 and 1, explainable, and moved by each of its factors."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference_engine.pipeline.complexity import Complexity, Weights, estimate

PLAIN = "What is the capital of France?"


def score(text: str = PLAIN, **changes: int | None) -> Complexity:
    given: dict[str, int | None] = {"input_tokens": 10, "turns": 1, "max_tokens": None, **changes}
    return estimate(text, input_tokens=given["input_tokens"] or 0, turns=given["turns"] or 0, max_tokens=given["max_tokens"])


def test_a_plain_question_is_economy_and_a_hard_one_premium() -> None:
    assert score().tier == "economy"
    hard = (
        "Analyze and compare the concurrency semantics of Rust and Java, prove the mutex algorithm correct, explain the trade-offs, "
        "and design a distributed protocol; write a comprehensive report"
    )
    assert score(hard, input_tokens=3_000, turns=5).tier == "premium"


@pytest.mark.parametrize(
    ("factor", "text", "changes"),
    [
        ("length", PLAIN, {"input_tokens": 1_000}),
        ("reasoning", "Explain why that is so", {}),
        ("domain", "The latency of a kubernetes api", {}),
        ("domain", "What does ```x = 1``` do", {}),
        ("context", PLAIN, {"turns": 4}),
        ("output", "Write a detailed essay", {}),
    ],
)
def test_each_factor_is_seen_and_raises_the_score(factor: str, text: str, changes: dict[str, int]) -> None:
    higher = score(text, **changes)
    assert getattr(higher, factor) > getattr(score(), factor)
    assert higher.score > score().score


def test_a_limit_of_the_answer_bounds_what_is_expected_of_it() -> None:
    assert score("Write a detailed essay", max_tokens=200).output == pytest.approx(0.1)


@given(st.text(max_size=500), st.integers(0, 10**7), st.integers(0, 1000), st.none() | st.integers(1, 10**6))
def test_any_request_scores_between_zero_and_one(text: str, tokens: int, turns: int, limit: int | None) -> None:
    result = estimate(text, input_tokens=tokens, turns=turns, max_tokens=limit)
    assert all(0.0 <= getattr(result, f.name) <= 1.0 for f in dataclasses.fields(result))


@given(st.text(max_size=200), st.integers(0, 5_000), st.integers(0, 5_000))
def test_a_longer_prompt_is_never_simpler(text: str, a: int, b: int) -> None:
    low, high = (estimate(text, input_tokens=n, turns=1, max_tokens=None).score for n in sorted((a, b)))
    assert low <= high


def test_only_the_ends_of_a_long_text_are_read() -> None:
    assert score("x " * 10_000 + "prove it").reasoning > 0
    assert score("x " * 10_000 + "prove it" + " x" * 10_000).reasoning == 0


def test_weights_are_replaced_by_name_and_only_their_proportions_matter() -> None:
    only = Weights(length=0, reasoning=7, domain=0, context=0, output=0)
    assert estimate("explain why, compare", input_tokens=0, turns=1, max_tokens=None, weights=only).score == 1.0
    assert Weights.of({"length": 0.5}).length == 0.5
    assert Weights.of({}) == Weights(0.2, 0.3, 0.2, 0.15, 0.15)


def test_an_unknown_factor_and_weights_that_weigh_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="no factor lenght"):
        Weights.of({"lenght": 0.5})
    for weights in ({"length": -0.1}, dict.fromkeys(("length", "reasoning", "domain", "context", "output"), 0.0)):
        with pytest.raises(ValueError, match="can't weigh anything"):
            Weights.of(weights)


def test_the_tiers_are_cut_at_three_and_seven_tenths() -> None:
    zero = Complexity(0.0, 0, 0, 0, 0, 0)
    tiers = [dataclasses.replace(zero, score=s).tier for s in (0.0, 0.2999, 0.3, 0.6999, 0.7, 1.0)]
    assert tiers == ["economy", "economy", "standard", "standard", "premium", "premium"]


def test_the_score_explains_itself() -> None:
    assert str(score(PLAIN)) == "complexity 0.04 (length 0.01, reasoning 0.00, domain 0.00, context 0.00, output 0.25)"

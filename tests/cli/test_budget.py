"""`--max-cost` is a hard stop."""

from random import Random

from hypothesis import given
from hypothesis import strategies as st

from inference_engine.cli.budget import Admission, Budget

money = st.integers(0, 1000)


rows_and_shares = st.lists(st.tuples(money, st.integers(0, 100)), max_size=60)


@given(st.integers(0, 3000), rows_and_shares, st.randoms(use_true_random=False))
def test_whatever_comes_back_spent_and_reserved_never_exceed_the_limit(limit: int, rows: list[tuple[int, int]], chance: Random) -> None:
    budget = Budget(limit)
    flying: list[tuple[int, int]] = []
    for cap, percent in rows:
        while budget.decide(cap) is Admission.WAIT:
            assert flying, "with nothing in flight a row either fits or never will"
            reserved, cost = flying.pop(chance.randrange(len(flying)))
            budget.settle(reserved, cost)
        if budget.decide(cap) is Admission.SEND:
            budget.reserve(cap)
            flying.append((cap, cap * percent // 100))
        assert budget.spent + budget.reserved <= limit
    for reserved, cost in flying:
        budget.settle(reserved, cost)
    assert budget.reserved == 0
    assert budget.spent <= limit


@given(money, money, money)
def test_never_means_that_not_even_free_answers_would_make_room(limit: int, spent: int, cap: int) -> None:
    budget = Budget(limit, spent=spent)
    if budget.decide(cap) is Admission.NEVER:
        assert spent + cap > limit


def test_without_a_limit_everything_is_sent() -> None:
    assert Budget(None, spent=10**18).decide(10**18) is Admission.SEND

"""The index of a full tier: limits always hold, and the entry that goes is the one the policy names."""

from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference_engine.pipeline.eviction import EvictionIndex, Limits, PolicyName

policies = st.sampled_from(get_args(PolicyName))
keys = st.sampled_from("abcdefgh")
steps = st.lists(
    st.one_of(
        st.tuples(st.just("put"), keys, st.integers(0, 50), st.integers(0, 10**9)),
        st.tuples(st.just("touch"), keys),
        st.tuples(st.just("remove"), keys),
    ),
    max_size=120,
)
limits = st.builds(Limits, st.none() | st.integers(0, 6), st.none() | st.integers(0, 120))


@given(policies, limits, steps)
def test_limits_hold_and_store_and_index_agree_after_every_step(policy: PolicyName, bounds: Limits, script: list[tuple]) -> None:  # type: ignore[type-arg]
    """A store that deletes what it is told to delete holds the very keys and bytes that the index counts."""
    index, store = EvictionIndex[str](policy, bounds), dict[str, int]()
    for step in script:
        if step[0] == "put":
            _, key, size, saved = step
            store[key] = size
            for gone in index.put(key, size, saved):
                del store[gone]
        elif step[0] == "touch":
            index.touch(step[1])
        else:
            index.remove(step[1])
            store.pop(step[1], None)
        assert len(index) == len(store)
        assert all(key in index for key in store)
        assert index.bytes == sum(store.values())
        assert bounds.max_entries is None or len(store) <= bounds.max_entries
        assert bounds.max_bytes is None or index.bytes <= bounds.max_bytes


@given(limits, steps)
def test_lru_evicts_as_a_list_in_order_of_access_does(bounds: Limits, script: list[tuple]) -> None:  # type: ignore[type-arg]
    index, order, sizes = EvictionIndex[str]("lru", bounds), list[str](), dict[str, int]()
    for step in script:
        key = step[1]
        if step[0] != "touch" and key in order:
            order.remove(key)
        if step[0] == "put":
            sizes[key] = step[2]
            expected: list[str] = []
            if (bounds.max_entries == 0) or (bounds.max_bytes is not None and step[2] > bounds.max_bytes):
                expected = [key]
            else:
                while (bounds.max_entries is not None and len(order) >= bounds.max_entries) or (
                    bounds.max_bytes is not None and sum(sizes[k] for k in order) + step[2] > bounds.max_bytes
                ):
                    expected.append(order.pop(0))
                order.append(key)
            assert index.put(key, step[2], step[3]) == expected
        elif step[0] == "touch":
            index.touch(key)
            if key in order:
                order.append(order.pop(order.index(key)))
        else:
            index.remove(key)


def filled(policy: PolicyName, max_entries: int = 3) -> EvictionIndex[str]:
    index = EvictionIndex[str](policy, Limits(max_entries=max_entries))
    for key in "abc":
        assert index.put(key, 100, 1_000) == []
    return index


def test_lru_drops_what_was_not_asked_for_the_longest() -> None:
    index = filled("lru")
    index.touch("a")
    assert index.put("d", 1) == ["b"]


def test_lfu_drops_what_was_asked_for_the_least_and_among_equals_the_oldest() -> None:
    index = filled("lfu")
    for key in "aab":
        index.touch(key)
    index.touch("c")
    assert index.put("d", 1) == ["b"]


def test_lfu_counts_hits_across_a_replacement() -> None:
    index = filled("lfu")
    index.touch("a")
    index.put("a", 50)
    assert index.put("d", 1) == ["b"]


def test_cost_aware_keeps_what_saves_most_per_byte() -> None:
    index = EvictionIndex[str]("cost_aware", Limits(max_bytes=1_000))
    index.put("dear and small", 100, 1_000_000)
    index.put("dear and large", 800, 1_000_000)
    index.put("cheap and small", 100, 1_000)
    assert index.put("new", 100, 500_000) == ["cheap and small"]
    assert index.put("newer", 100, 500_000) == ["dear and large"]


def test_cost_aware_lets_old_fame_fade() -> None:
    """An entry with many hits long ago goes once enough newer entries have passed; without ageing it would stay for ever."""
    index = EvictionIndex[str]("cost_aware", Limits(max_entries=3))
    index.put("famous", 100, 1_000)
    for _ in range(20):
        index.touch("famous")
    gone = [key for i in range(200) for key in index.put(f"n{i}", 100, 1_000)]
    assert "famous" in gone
    assert gone.index("famous") > 10


def test_an_entry_larger_than_the_tier_goes_itself_and_nothing_else() -> None:
    index = EvictionIndex[str]("lru", Limits(max_bytes=100))
    index.put("small", 40)
    assert index.put("huge", 101) == ["huge"]
    assert "small" in index
    assert "huge" not in index


def test_a_million_hits_leave_no_growing_heap_behind() -> None:
    index = filled("lfu")
    for _ in range(10_000):
        index.touch("a")
    assert index._ranked is not None
    assert len(index._ranked._heap) < 100


def test_impossible_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="can't be"):
        EvictionIndex[str]("lru", Limits()).put("a", -1)


def test_an_entry_whose_worth_is_known_later_is_kept_by_it_and_keeps_its_hits() -> None:
    """A prompt is findable from its call on; what its answer cost is known when it came."""
    index = EvictionIndex[str]("cost_aware", Limits(max_entries=2))
    index.put("dear", 10)
    index.put("cheap", 10, 5)
    index.revalue("dear", 1_000)
    index.revalue("gone", 1_000)
    assert index.put("new", 10, 5) == ["cheap"]
    popular = EvictionIndex[str]("lfu", Limits(max_entries=2))
    popular.put("a", 10)
    popular.put("b", 10)
    popular.touch("a")
    popular.revalue("b", 10**9)
    assert popular.put("c", 10) == ["b"]

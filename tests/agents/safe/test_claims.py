"""What may be committed, for any order in which events finish; and Java's partitioner."""

from aiokafka import TopicPartition
from aiokafka.partitioner import murmur2 as reference
from hypothesis import given
from hypothesis import strategies as st

from inference_engine.agents.safe import partition_for
from inference_engine.agents.safe.claims import Claim, Lease
from inference_engine.agents.safe.partitioner import murmur2

TP = TopicPartition("t", 0)


def _claim(start: int = 0) -> Claim:
    claim = Claim(TP, Lease(10))
    claim.position(start)
    return claim


@given(st.permutations(range(20)), st.integers(0, 20))
def test_commit_point_is_the_lowest_unfinished_whatever_the_order(order: list[int], finished: int) -> None:
    claim = _claim(100)
    for offset in range(100, 120):
        claim.hand_out(offset)
    for n in order[:finished]:
        claim.finish(100 + n)
    assert claim.commit_point == min((100 + n for n in order[finished:]), default=120)


@given(st.lists(st.integers(1, 4), min_size=1, max_size=10), st.data())
def test_commit_point_never_passes_an_offset_that_a_reader_still_holds(gaps: list[int], data: st.DataObject) -> None:
    claim, offset, left = _claim(), 0, {}
    for gap in gaps:
        offset += gap
        claim.hand_out(offset, readers=2)
        left[offset] = 2
    for done in data.draw(st.permutations([offset for offset in left for _ in range(2)])):
        claim.finish(done)
        left[done] -= 1
        assert claim.commit_point == min((at for at, readers in left.items() if readers), default=offset + 1)


def test_lost_claim_does_not_touch_its_successor() -> None:
    old = _claim()
    old.hand_out(0, appended_ms=5)
    old.hand_out(1)
    assert old.oldest_ms == 5
    fresh = old.successor()
    fresh.hand_out(0)
    old.finish(0)
    assert not old.alive
    assert fresh.commit_point == 0


def test_gap_is_believed_only_when_the_broker_says_it_twice() -> None:
    claim, sought = _claim(5), []
    assert claim.check_gap(5, lambda tp, offset: sought.append(offset))
    assert not claim.check_gap(8, lambda tp, offset: sought.append(offset))
    assert claim.check_gap(8, lambda tp, offset: sought.append(offset))
    assert sought == [5]


@given(st.binary(max_size=80))
def test_murmur2_is_javas(key: bytes) -> None:
    assert murmur2(key) == reference(key)


def test_partitions_of_known_keys() -> None:
    """Values of Kafka's own UtilsTest."""
    known = {b"21": -973932308, b"foobar": -790332482, b"a-little-bit-long-string": -985981536, b"abc": 479470107}
    assert {key: murmur2(key) for key in known} == {key: value & 0xFFFFFFFF for key, value in known.items()}
    assert partition_for(b"foobar", 8) == ((-790332482) & 0x7FFFFFFF) % 8

"""The keys of shared prefixes: none takes more than its calls a minute, few are begun, and nobody is held for nothing."""

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference_engine.pipeline.prefix_keys import MOST_LATE_MS, Claim, Group, KeyRing

PER_KEY = 15
MINUTE_MS = 60_000


def claim(urgency: int = 2, share: str = "t") -> Claim:
    return Claim(urgency, share)


def key_of(one: Claim) -> str:
    assert one.group is not None
    return f"{one.group.name}-{one.number}"


def ring(per_s: float = 100.0) -> KeyRing:
    return KeyRing(PER_KEY, calls_per_s=per_s)


class Job:
    """Calls of several groups, known all together, sent as fast as the pace allows: which key went when."""

    def __init__(self, sizes: list[int], per_s: float, takes_ms: int = 2_000, seed: int = 1) -> None:
        self.ring, self.now = KeyRing(PER_KEY, calls_per_s=per_s), 0
        self.sent: list[tuple[int, str]] = []
        groups = [Group(f"g{n}") for n in range(len(sizes))]
        going: list[Claim] = []
        order = [group for group, size in zip(groups, sizes, strict=True) for _ in range(size)]
        random.Random(seed).shuffle(order)
        going += [one for group in order if self.ring.ask(one := claim(), group, 0)]
        left, flying = sum(sizes), list[tuple[int, Claim]]()
        while left:
            going += self.ring.release(self.now)
            while flying and flying[0][0] <= self.now:
                self.ring.over(flying.pop(0)[1], self.now)
            if going:
                # Whoever writes a new key goes first.
                one = going.pop(next((n for n, c in enumerate(going) if c.began_ms >= 0), 0))
                self.sent.append((self.now, key_of(one)))
                self.ring.send(one, self.now)
                flying.append((self.now + takes_ms, one))
                left -= 1
            self.now += int(1000 / per_s)

    @property
    def keys(self) -> int:
        return len({key for _, key in self.sent})


def test_many_groups_are_sent_side_by_side_with_hardly_more_keys_than_the_pace_asks_for() -> None:
    """50 groups of 200 at 100 a second: each key takes 15 a minute, so that 400 are full all the time. One group after the other: 700."""
    job = Job([200] * 50, per_s=100)
    assert job.now < 100_000 * 1.05  # and it takes no longer
    assert 400 <= job.keys <= 470


def test_a_job_after_a_pause_begins_as_fast_as_one_after_none() -> None:
    one, group = ring(), Group("g")
    for number in range(PER_KEY):
        before = claim()
        one.ask(before, group, 0)
        one.send(before, number)
    now = 3_600_000
    claims = [claim() for _ in range(200)]
    assert sum(one.ask(c, group, now) for c in claims) + len(one.release(now)) == 200


def test_at_a_slow_pace_a_group_has_one_key() -> None:
    job = Job([40] * 10, per_s=1)
    assert job.keys == 10


def test_a_group_on_its_own_is_not_slowed_down() -> None:
    job = Job([200], per_s=50)
    assert job.now <= 4_100
    assert job.keys == 14


@given(st.lists(st.integers(1, 60), min_size=1, max_size=8), st.sampled_from([5, 20, 100]))
def test_no_key_is_sent_more_calls_a_minute_than_one_machine_takes_and_everyone_is_sent(sizes: list[int], per_s: int) -> None:
    job = Job(sizes, per_s)
    assert len(job.sent) == sum(sizes)
    for key in {key for _, key in job.sent}:
        times = [at for at, one in job.sent if one == key]
        assert all(later - at > MINUTE_MS for at, later in zip(times, times[PER_KEY:], strict=False))


steps = st.lists(
    st.tuples(st.sampled_from(["ask", "ask", "insist", "release", "send", "over", "wait"]), st.integers(0, 11)), min_size=1, max_size=200
)


@given(steps)
def test_in_any_order_of_events_no_key_overflows_and_whoever_is_held_has_others_to_be_sent(events: list[tuple[str, int]]) -> None:
    one, groups, now = ring(per_s=1), [Group("a"), Group("b")], 0
    claims: list[Claim] = []
    open_: list[Claim] = []
    sent: list[tuple[str, int]] = []
    for what, number in events:
        now += 13
        if what in ("ask", "insist"):
            new = claim(urgency=number % 3, share="tu"[number % 2])
            claims.append(new)
            open_.append(new)
            had = one.ask(new, groups[number % 2], now, insist=what == "insist")
            assert had or (new.urgency > 0 and what == "ask")
        elif what == "wait":
            now += 9_000 * number
        elif what == "release":
            released = one.release(now)
            assert all(c.number is not None for c in released)
            ready = Counter((c.share, c.urgency) for c in open_ if c.number is not None and not c.sent)
            for held in (c for c in open_ if c.number is None and c.group is not None):
                assert held.urgency > 0
                assert held.group is not None
                assert sum(ready[held.share, u] for u in range(held.urgency + 1)) >= 1 or held is not held.group.first
        elif open_:
            target = open_[number % len(open_)]
            if what == "send" and target.number is not None and not target.sent:
                sent.append((key_of(target), now))
                one.send(target, now)
            elif what == "over":
                one.over(target, now)
                open_.remove(target)
    for key in {key for key, _ in sent}:
        times = [at for name, at in sent if name == key]
        assert all(later - at > MINUTE_MS for at, later in zip(times, times[PER_KEY:], strict=False))
    for left in open_:
        one.over(left, now)
    assert not one.holds


def test_a_worker_takes_of_each_key_what_its_partitions_are_of_all() -> None:
    """Two workers call with the same keys: seven calls a minute each."""
    one, group = ring(), Group("g")
    one.set_share(0.5)
    claims = [claim() for _ in range(20)]
    granted = [one.ask(c, group, 0) for c in claims]
    assert (sum(granted), len(one.release(0))) == (7, 13)
    assert Counter(c.number for c in claims) == {0: 7, 1: 7, 2: 6}


def test_the_most_urgent_is_never_held() -> None:
    one, group = ring(), Group("g")
    assert all(one.ask(claim(urgency=0), group, 0) for _ in range(100))


def test_who_insists_takes_a_new_key() -> None:
    one, group = ring(), Group("g")
    claims = [claim() for _ in range(17)]
    assert [one.ask(c, group, 0) for c in claims] == [True] * 15 + [False] * 2
    assert one.ask(claims[16], group, 0, insist=True)
    assert (claims[15].number, claims[16].number) == (None, 1)


def test_calls_of_another_tenant_hold_nobody() -> None:
    one, a, b = ring(), Group("a"), [Group(f"b{i}") for i in range(100)]
    for group in b:
        for _ in range(PER_KEY):
            assert one.ask(claim(share="other"), group, 0)
    claims = [claim() for _ in range(16)]
    assert [one.ask(c, a, 0) for c in claims] == [True] * 15 + [False]
    assert one.release(0) == [claims[15]]


@pytest.mark.parametrize("urgency", [1, 2])
def test_nobody_is_held_for_much_longer_than_in_the_order_in_which_they_came(urgency: int) -> None:
    """A hundred calls a second are sent that came later."""
    one, a, now = ring(per_s=100), Group("a"), 0
    early = [claim(urgency) for _ in range(PER_KEY + 1)]
    for c in early:
        one.ask(c, a, 0)
    others = [Group(f"b{i}") for i in range(5000)]
    later = [claim(urgency) for group in others for _ in range(PER_KEY)]
    for i, c in enumerate(later):
        one.ask(c, others[i // PER_KEY], 0)
    while early[PER_KEY] not in one.release(now):
        one.send(later[now // 10], now)
        now += 10
    assert MOST_LATE_MS[urgency] <= now <= MOST_LATE_MS[urgency] + 500


def test_a_place_that_is_given_back_goes_to_who_is_held() -> None:
    one, a = ring(), Group("a")
    many = [Group(f"b{i}") for i in range(100)]
    for group in many:
        for _ in range(PER_KEY):
            one.ask(claim(), group, 0)
    claims = [claim() for _ in range(PER_KEY + 2)]
    for c in claims:
        one.ask(c, a, 0)
    assert one.release(0) == []
    one.over(claims[3], 10)
    assert one.release(10) == [claims[PER_KEY]]
    assert claims[PER_KEY].number == 0

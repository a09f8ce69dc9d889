"""The prefix tree: one call writes, the others read, and nothing is written that nobody reads."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference_engine.pipeline.prefix import Block, Lifetime, Marks, Path, Terms
from inference_engine.pipeline.prefix_tree import Go, Held, PrefixTree, Ticket, Wait, marks_of_job

ANTHROPIC = Terms("cache_control", 1000, 0.1, (Lifetime("5m", 300, 1.25), Lifetime("1h", 3600, 2.0)))
OPENAI = Terms("breakpoints", 1000, 0.1, (Lifetime("30m", 1800, 1.25),), per_key_per_minute=15)


def path(*names: str, tokens: int = 2000) -> Path:
    """Blocks of 2,000 tokens; two paths share as many as their names agree."""
    return tuple(Block("/".join(names[: i + 1]).encode(), tokens * (i + 1), (0, i)) for i in range(len(names)))


def tree(terms: Terms = ANTHROPIC, remember: int = 100, per_s: float = 10.0) -> PrefixTree:
    return PrefixTree(terms, remember=remember, calls_per_s=per_s)


def at(marks: Marks) -> list[int]:
    return [mark.tokens for mark in marks.marks]


def go(one: PrefixTree, ticket: Ticket, now_ms: int = 0) -> Marks:
    assert one.turn(ticket, now_ms) == Go()
    return one.board(ticket, now_ms)


def test_the_first_of_a_group_writes_while_the_others_wait_and_then_read() -> None:
    one = tree()
    tickets = [one.enter(path("s", str(i)), 0) for i in range(3)]
    assert at(go(one, tickets[0])) == [2000]
    assert [one.turn(t, 0) for t in tickets[1:]] == [Wait(b"s"), Wait(b"s")]
    assert one.land(tickets[0], 1_000, cached=2000) == [b"s"]
    assert [at(go(one, t, 1_000)) for t in tickets[1:]] == [[2000], [2000]]  # a mark is what finds the entry
    assert [one.land(t, 2_000, cached=2000) for t in tickets[1:]] == [[], []]


def test_an_answer_that_begins_wakes_who_waits_for_its_prefix() -> None:
    one = tree()
    first, second = (one.enter(path("s", str(i)), 0) for i in range(2))
    assert one.begun(first, 0) == []  # not sent yet
    go(one, first)
    assert one.turn(second, 0) == Wait(b"s")
    assert one.begun(first, 500) == [b"s"]
    assert at(go(one, second, 500)) == [2000]
    assert one.land(first, 9_000, cached=2000) == []


def test_an_answer_that_began_and_wrote_nothing_leaves_nothing_to_read() -> None:
    one = tree()
    first, *rest = (one.enter(path("s", str(i)), 0) for i in range(3))
    go(one, first)
    one.begun(first, 500)
    one.land(first, 9_000, cached=0)
    assert [at(go(one, t, 9_000)) for t in rest] == [[], []]


def test_a_prompt_that_shares_nothing_is_not_marked() -> None:
    one = tree()
    alone, other = one.enter(path("a", "1"), 0), one.enter(path("b", "1"), 0)
    assert [at(go(one, alone)), at(go(one, other))] == [[], []]


def test_a_prefix_below_the_minimum_is_not_marked_and_nobody_waits_for_it() -> None:
    one = tree(replace(ANTHROPIC, min_tokens=2001))
    first, second = one.enter(path("s", "1"), 0), one.enter(path("s", "2"), 0)
    assert at(go(one, first)) == []
    assert at(go(one, second)) == []


def test_the_mark_is_on_the_last_shared_block_and_where_others_part() -> None:
    one = tree()
    first = one.enter(path("a", "b", "c", "d", "1"), 0)
    one.enter(path("a", "b", "c", "d", "2"), 0)
    one.enter(path("a", "b", "x"), 0)
    assert at(go(one, first)) == [4000, 8000]


def test_of_more_marks_than_fit_those_are_left_out_that_cost_least() -> None:
    """Others part after 1 to 6 blocks of growing size: the two smallest gaps are not marked."""
    one = tree()
    sizes = [2_000, 2_100, 4_000, 8_000, 8_200, 16_000]
    blocks = tuple(Block(f"n{i}".encode(), size, (0, i)) for i, size in enumerate(sizes))
    for i in range(len(sizes)):
        one.enter((*blocks[: i + 1], Block(f"leaf{i}".encode(), 20_000, (1, 0))), 0)
    first = one.enter((*blocks, Block(b"leaf", 20_000, (1, 0))), 0)
    assert at(go(one, first)) == [2_000, 4_000, 8_000, 16_000]


def test_when_the_writer_fails_the_next_one_writes() -> None:
    one = tree()
    tickets = [one.enter(path("s", str(i)), 0) for i in range(3)]
    go(one, tickets[0])
    assert one.turn(tickets[1], 0) == Wait(b"s")
    assert one.land(tickets[0], 10) == [b"s"]
    assert at(go(one, tickets[1], 10)) == [2000]
    assert one.turn(tickets[2], 10) == Wait(b"s")


def test_a_writer_that_never_was_sent_holds_nobody() -> None:
    one = tree()
    first, second = one.enter(path("s", "1"), 0), one.enter(path("s", "2"), 0)
    third = one.enter(path("s", "3"), 0)
    assert one.turn(first, 0) == Go()
    assert one.turn(second, 0) == Wait(b"s")
    assert one.land(first, 5) == [b"s"]
    assert at(go(one, second, 5)) == [2000]
    one.land(third, 5)


def test_who_could_not_wait_does_not_pay_for_writing_twice() -> None:
    one = tree()
    first, second = one.enter(path("s", "1"), 0), one.enter(path("s", "2"), 0)
    one.enter(path("s", "3"), 0)
    go(one, first)
    assert one.turn(second, 0) == Wait(b"s")
    assert at(one.board(second, 30_000)) == []


def test_nothing_is_written_beyond_a_prefix_that_another_one_is_writing() -> None:
    """It would pay for the tokens of that prefix once more."""
    one = tree()
    first, second = one.enter(path("s", "1"), 0), one.enter(path("s", "d", "2"), 0)
    one.enter(path("s", "d", "3"), 0)
    go(one, first)
    assert one.turn(second, 0) == Wait(b"s")
    assert at(one.board(second, 30_000)) == []


def test_nobody_waits_for_a_writer_that_is_less_urgent() -> None:
    one = tree()
    batch, express = one.enter(path("s", "1"), 0, urgency=2), one.enter(path("s", "2"), 0, urgency=0)
    assert one.turn(batch, 0) == Go()
    assert one.turn(express, 0) == Go()


def test_an_entry_that_is_past_its_life_is_written_anew() -> None:
    one = tree()
    first, second = one.enter(path("s", "1"), 0), one.enter(path("s", "2"), 0)
    one.enter(path("s", "3"), 0)
    go(one, first)
    one.land(first, 0, cached=2000)
    assert at(go(one, second, 299_000)) == [2000]  # read, which begins its life anew
    one.land(second, 299_000, cached=2000)
    third = one.enter(path("s", "4"), 598_000)
    assert one.turn(third, 598_000) == Go()
    assert third.writes == []  # still there
    fourth = one.enter(path("s", "5"), 900_000)
    assert one.turn(fourth, 900_000) == Go()
    assert [i for i, _, _ in fourth.writes] == [0]


def test_what_was_not_cached_is_not_waited_for_again() -> None:
    """The provider counts tokens its own way: a prefix that looks long enough here may be too short there."""
    one = tree()
    tickets = [one.enter(path("s", str(i)), 0) for i in range(3)]
    go(one, tickets[0])
    one.land(tickets[0], 100, cached=0)
    assert [at(go(one, t, 100)) for t in tickets[1:]] == [[], []]


def test_a_reuse_seen_before_is_expected_again_within_the_lifetime() -> None:
    """Single calls, a minute apart: from the third on the prefix is marked although nobody waits with it."""
    one = tree()
    marks = []
    for i in range(4):
        ticket = one.enter(path("s", str(i)), i * 60_000)
        marks.append(at(go(one, ticket, i * 60_000)))
        one.land(ticket, i * 60_000 + 500, cached=2000 if marks[-1] else 0)
    assert marks[0] == []
    assert marks[-1] == [2000]


def test_a_lifetime_is_as_long_as_the_expected_gap_and_no_longer() -> None:
    for minutes, wanted in ((1, "5m"), (20, "1h")):
        one = tree()
        for i in range(6):
            ticket = one.enter(path("s", str(i)), i * minutes * 60_000)
            plan = go(one, ticket, i * minutes * 60_000)
            one.land(ticket, i * minutes * 60_000 + 500, cached=0 if not plan.marks else 2000)
        assert {mark.lifetime for mark in plan.marks} == {wanted}


def test_a_prefix_used_every_two_hours_is_never_marked() -> None:
    one = tree()
    for i in range(6):
        ticket = one.enter(path("s", str(i)), i * 7_200_000)
        assert go(one, ticket, i * 7_200_000).marks == ()
        one.land(ticket, i * 7_200_000 + 500, cached=0)


def test_a_write_for_an_hour_wants_two_readers() -> None:
    """At twice the price one read at a tenth does not pay for it: 2.0 + 0.1 > 2."""
    hour = replace(ANTHROPIC, lifetimes=ANTHROPIC.lifetimes[1:])
    one = tree(hour)
    pair = [one.enter(path("s", str(i)), 0) for i in range(2)]
    assert at(go(one, pair[0])) == []
    one = tree(hour)
    three = [one.enter(path("s", str(i)), 0) for i in range(3)]
    assert at(go(one, three[0])) == [2000]


# --- keys ----------------------------------------------------------------------------------------------------------------


def test_each_key_has_a_writer_of_its_own_and_as_many_calls_a_minute_as_one_machine_takes() -> None:
    """One group alone: nothing else could be sent while it is held, so it gets three keys at once."""
    one = tree(OPENAI, per_s=100)
    tickets = [one.enter(path("s", str(i)), 0) for i in range(40)]
    steps = [one.turn(ticket, 0) for ticket in tickets]
    assert [steps.count(what) for what in (Go(), Wait(b"s"), Held())] == [1, 14, 25]
    released = one.release(0)
    assert released == [ticket.claim for ticket in tickets[15:]]
    steps = [one.turn(ticket, 0) for ticket in tickets]
    assert [steps.count(what) for what in (Go(), Wait(b"s"), Held())] == [3, 37, 0]
    keys = [ticket.key for ticket in tickets]
    assert [keys.count(key) for key in dict.fromkeys(keys)] == [15, 15, 10]


def test_a_call_that_is_held_goes_unheld_when_it_insists() -> None:
    one = tree(OPENAI)
    tickets = [one.enter(path("s", str(i)), 0) for i in range(17)]
    assert [one.turn(ticket, 0) for ticket in tickets][15:] == [Held(), Held()]
    assert one.turn(tickets[16], 0, insist=True) == Go()
    assert one.holds
    one.land(tickets[15], 0)
    assert not one.holds


def test_different_prefixes_have_different_keys() -> None:
    one = tree(OPENAI)
    tickets = [one.enter(path(name, str(i)), 0) for name in "ab" for i in range(2)]
    for ticket in tickets:
        one.turn(ticket, 0)
    assert tickets[0].key != tickets[2].key


def test_in_a_file_of_calls_every_member_of_a_group_carries_its_mark() -> None:
    job = [path("a", "1"), path("alone"), path("a", "2"), path("b", "1"), path("b", "2")]
    found = marks_of_job(ANTHROPIC, job)
    assert [at(marks) for marks in found] == [[2000], [], [2000], [2000], [2000]]
    assert found[0].marks[0].node == found[2].marks[0].node != found[3].marks[0].node


# --- memory --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("remember", [0, 3])
def test_only_so_many_prefixes_are_remembered(remember: int) -> None:
    one = tree(remember=remember)
    for i in range(50):
        ticket = one.enter(path(f"s{i}", "x"), i)
        go(one, ticket, i)
        one.land(ticket, i, cached=0)
    assert len(one) <= 2 * remember


steps = st.lists(st.tuples(st.sampled_from(["enter", "turn", "board", "land", "fail"]), st.integers(0, 9)), max_size=80)


@given(steps, st.sampled_from([ANTHROPIC, OPENAI]))
def test_whatever_happens_every_call_can_be_sent_and_nothing_is_left_behind(events: list[tuple[str, int]], terms: Terms) -> None:
    """Any order of events: a waiting call always has a writer that is under way, so it is woken; at the end the tree is empty."""
    one, now = tree(terms, remember=0), 0
    tickets: list[Ticket] = []
    for what, number in events:
        now += 700
        if what == "enter":
            tickets.append(one.enter(path("ab"[number % 2], str(number % 3), str(len(tickets))), now, urgency=number % 3))
        elif tickets:
            ticket = tickets[number % len(tickets)]
            if what == "turn" and ticket.place == "waiting":
                step = one.turn(ticket, now)
                if isinstance(step, Held):
                    assert ticket.urgency > 0
                    one.release(now)
                else:
                    assert step == Go() or any(t.writes and t.place != "gone" for t in tickets if t is not ticket)
            elif what == "board":
                marks = one.board(ticket, now)
                assert len(marks.marks) <= terms.most_marks
            elif what in ("land", "fail") and ticket.place == "flying":
                one.land(ticket, now, cached=2000 if what == "land" else None)
    for ticket in tickets:
        one.land(ticket, now)
        assert not ticket.writes
    assert len(one) == 0

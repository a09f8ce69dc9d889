"""Few calls at once go on to be sent, in order, and nobody is forgotten at the door."""

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from inference_engine.agents.entrance import MOST_READY, Entrance

from .virtual_time import run


def entrance() -> Entrance:
    return Entrance(lambda: int(asyncio.get_running_loop().time() * 1000))


def test_no_more_are_inside_than_may_be_ready_and_the_next_ones_follow_in_order() -> None:
    async def main() -> None:
        door, inside = entrance(), list[int]()

        async def go(number: int) -> None:
            await door.enter()
            inside.append(number)

        tasks = [asyncio.create_task(go(i)) for i in range(MOST_READY + 10)]
        await asyncio.sleep(1)
        assert inside == list(range(MOST_READY))
        for _ in range(10):
            door.leave()
        await asyncio.gather(*tasks)
        assert inside == list(range(MOST_READY + 10))

    run(main())


def test_who_writes_for_others_is_let_in_before_them() -> None:
    async def main() -> None:
        door, inside = entrance(), list[str]()

        async def go(name: str, first: bool) -> None:
            await door.enter(first=first)
            inside.append(name)

        for _ in range(MOST_READY):
            await door.enter()
        tasks = [asyncio.create_task(go(*who)) for who in (("a", False), ("b", False), ("writer", True))]
        await asyncio.sleep(1)
        for _ in tasks:
            door.leave()
        await asyncio.gather(*tasks)
        assert inside == ["writer", "a", "b"]

    run(main())


def test_who_gives_up_in_the_moment_of_being_let_in_leaves_the_place_to_the_next() -> None:
    async def main() -> None:
        door = entrance()
        for _ in range(MOST_READY):
            await door.enter()
        gone, following = asyncio.create_task(door.enter()), asyncio.create_task(door.enter())
        await asyncio.sleep(1)
        door.leave()
        gone.cancel()
        await asyncio.sleep(1)
        assert gone.cancelled()
        assert following.done()

    run(main())


def test_a_job_that_is_sent_fast_has_more_calls_ready() -> None:
    async def main() -> int:
        door, sent = entrance(), 0

        async def go() -> None:
            nonlocal sent
            await door.enter()
            await asyncio.sleep(0.5)  # for its intent
            sent += 1
            door.leave(sent=True)

        tasks = [asyncio.create_task(go()) for _ in range(20_000)]
        await asyncio.sleep(10)
        for task in tasks:
            task.cancel()
        return sent

    assert run(main()) > 10 * MOST_READY * 2  # as many as would fit without that


@given(st.lists(st.sampled_from(["enter", "first", "leave", "cancel"]), max_size=400))
def test_whatever_happens_everyone_who_waits_gets_in_at_last(events: list[str]) -> None:
    async def main() -> None:
        door, inside, waiting = entrance(), set[asyncio.Task[None]](), list[asyncio.Task[None]]()

        async def go(first: bool) -> None:
            await door.enter(first=first)

        for what in ["enter"] * MOST_READY + events:
            if what in ("enter", "first"):
                waiting.append(asyncio.create_task(go(what == "first")))
            elif what == "leave" and inside:
                inside.pop()
                door.leave()
            elif what == "cancel" and waiting:
                waiting.pop().cancel()
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            inside |= {task for task in waiting if task.done() and not task.cancelled()}
            waiting = [task for task in waiting if not task.done()]
            assert len(inside) <= MOST_READY
        while waiting:
            assert inside
            inside.pop()
            door.leave()
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            inside |= {task for task in waiting if task.done() and not task.cancelled()}
            waiting = [task for task in waiting if not task.done()]

    run(main())

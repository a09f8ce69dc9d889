"""Calls begin as fast as the provider allows and no faster, in the right order, and one flood drowns nobody."""

import asyncio
from collections import Counter, deque
from dataclasses import replace
from itertools import pairwise

import pytest

from inference_engine.agents.limits import Limits
from inference_engine.pipeline.breaker import BreakerPolicy
from inference_engine.pipeline.errors import Unavailable
from inference_engine.pipeline.models import Model
from inference_engine.pipeline.ports import ProviderReply
from inference_engine.pipeline.rates import RateSeen
from inference_engine.schemas.record import Lane

from ..pipeline.support import catalogue
from .payers import REPLY, Bill, World, call, worker
from .virtual_time import VirtualLoop, run

MODEL = catalogue().get("small")


def limits(per_lane: int = 1_000) -> Limits:
    return Limits(dict.fromkeys(Lane, per_lane), clock=asyncio.get_running_loop().time)


async def starts(
    limits: Limits, model: Model, count: int, *, tokens: int = 1, takes_s: float = 1.0, used: int | None = None
) -> list[float]:
    """When each of `count` calls, all waiting from the beginning, was let through."""
    times: list[float] = []

    async def one() -> None:
        permit = await limits.acquire(model, Lane.STANDARD, "t", tokens)
        times.append(asyncio.get_running_loop().time())
        await asyncio.sleep(takes_s)
        permit.used = None if used is None else (used, 0)
        permit.release()

    await asyncio.gather(*(one() for _ in range(count)))
    return times


class SlidingWindow:
    """A provider that counts the calls of the last 60 s, and refuses those above its limit."""

    def __init__(self, per_minute: int) -> None:
        self.per_minute, self.taken, self.refused = per_minute, deque[float](), 0

    async def __call__(self, _model: Model, _number: int) -> ProviderReply:
        now = asyncio.get_running_loop().time()
        while self.taken and self.taken[0] <= now - 60:
            self.taken.popleft()
        if len(self.taken) >= self.per_minute:
            self.refused += 1
            raise Unavailable("429", retry_after=1.0, rate_limited=True)
        self.taken.append(now)
        await asyncio.sleep(2)
        return REPLY


def test_a_job_at_600_requests_a_minute_takes_at_most_5_percent_longer_than_it_must_and_is_not_refused() -> None:
    window = SlidingWindow(600)
    world = World(provider=Bill(window), permits=dict.fromkeys(Lane, 256))
    world.limit(requests_per_minute=600)

    async def main() -> float:
        async with worker(world) as one:
            await asyncio.gather(*(one.run(call(f"r{i}")) for i in range(1_800)))
        return asyncio.get_running_loop().time()

    assert run(main()) <= 1.05 * 180
    assert window.refused < 18
    assert world.kinds().count("completion") == 1_800


def test_starts_are_spread_evenly_over_the_minute() -> None:
    async def main() -> list[float]:
        return await starts(limits(), replace(MODEL, requests_per_minute=60), 120)

    times = run(main())
    gaps = [b - a for a, b in pairwise(times)]
    assert max(gaps) < 1.1
    assert min(gaps[1:]) > 0.9


def test_a_busy_event_loop_costs_no_throughput() -> None:
    async def busy() -> None:
        while True:
            await asyncio.sleep(0.2)
            loop = asyncio.get_running_loop()
            assert isinstance(loop, VirtualLoop)
            loop.stall(0.3)

    async def main() -> float:
        working = asyncio.create_task(busy())
        times = await starts(limits(), replace(MODEL, requests_per_minute=6_000), 2_000, takes_s=0.3)
        working.cancel()
        return times[-1]

    assert run(main()) < 1.05 * 20


def test_tokens_a_minute_are_kept_and_what_was_reserved_and_not_used_is_given_back() -> None:
    async def main(count: int, used: int | None) -> float:
        return (await starts(limits(), replace(MODEL, tokens_per_minute=60_000), count, tokens=2_000, used=used))[-1]

    assert 200 < run(main(100, None)) < 210  # 200,000 tokens at 1,000 a second
    assert 200 < run(main(1_000, 200)) < 230  # as many, at 200 a call: what is reserved follows what calls usually use


def test_two_workers_with_half_of_the_partitions_each_stay_within_the_limit_together() -> None:
    async def main() -> int:
        both = [limits(), limits()]
        for one in both:
            one.set_share(0.5)
        times = await asyncio.gather(*(starts(one, replace(MODEL, requests_per_minute=600), 400) for one in both))
        return sum(at < 60 for one in times for at in one)

    assert 560 < run(main()) <= 600


def test_a_full_batch_lane_does_not_delay_express() -> None:
    async def main() -> float:
        one = limits(per_lane=4)
        batch = [asyncio.create_task(one.acquire(MODEL, Lane.BATCH, "t", 1)) for _ in range(100)]
        await asyncio.sleep(1)
        await one.acquire(MODEL, Lane.EXPRESS, "t", 1)
        assert sum(task.done() for task in batch) == 4
        for task in batch:
            task.cancel()
        return asyncio.get_running_loop().time()

    assert run(main()) == 1


def test_at_a_paced_model_express_comes_before_all_that_wait() -> None:
    async def main() -> float:
        one, model = limits(), replace(MODEL, requests_per_minute=60)
        waiting = [asyncio.create_task(one.acquire(model, Lane.BATCH, "t", 1)) for _ in range(100)]
        await asyncio.sleep(5)
        await one.acquire(model, Lane.EXPRESS, "t", 1)
        for task in waiting:
            task.cancel()
        return asyncio.get_running_loop().time()

    assert run(main()) < 6.1


def test_a_flood_of_one_tenant_does_not_starve_another() -> None:
    async def main() -> int:
        one, model, order = limits(), replace(MODEL, requests_per_minute=600), list[str]()

        async def ask(tenant: str) -> None:
            permit = await one.acquire(model, Lane.STANDARD, tenant, 1)
            order.append(tenant)
            permit.release()

        flood = [asyncio.create_task(ask("flood")) for _ in range(500)]
        await asyncio.sleep(1)
        await asyncio.gather(*(ask("small") for _ in range(10)))
        for task in flood:
            task.cancel()
        return len(order)

    assert run(main()) < 40, "every other call was the small tenant's"


def test_a_call_for_which_others_wait_goes_before_those_of_its_own_tenant_and_lane_and_no_others() -> None:
    async def main() -> list[str]:
        one, began = limits(1), list[str]()

        async def ask(name: str, tenant: str, first: bool) -> None:
            permit = await one.acquire(MODEL, Lane.BATCH, tenant, 1, first=first)
            began.append(name)
            await asyncio.sleep(1)
            permit.release()

        asked = [("running", "a", False), ("a1", "a", False), ("b1", "b", False), ("a2", "a", False), ("writer", "a", True)]
        await asyncio.gather(*(ask(name, tenant, first) for name, tenant, first in asked))
        return began

    assert run(main()) == ["running", "writer", "b1", "a1", "a2"]


def test_who_gives_up_waiting_leaves_no_permit_behind() -> None:
    async def main() -> dict[Lane, int]:
        one = limits(per_lane=1)
        held = await one.acquire(MODEL, Lane.EXPRESS, "t", 1)
        waiting = [asyncio.create_task(one.acquire(MODEL, Lane.EXPRESS, "t", 1)) for _ in range(3)]
        await asyncio.sleep(0)
        held.release()
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        held.release()
        return one.in_flight

    assert run(main())[Lane.EXPRESS] == 0


@pytest.mark.parametrize("limit", [3, 10])
def test_a_model_has_no_more_calls_under_way_than_it_allows(limit: int) -> None:
    async def main() -> list[float]:
        return await starts(limits(), replace(MODEL, max_in_flight=limit), 30)

    times = run(main())
    assert max(times.count(at) for at in times) == limit


def test_a_worker_that_had_no_partitions_for_a_moment_goes_on_at_its_pace() -> None:
    """A call that still waited then is let through; what it takes of the rate must not hold up the calls that come after."""

    async def work() -> float:
        one = limits()
        limited = replace(MODEL, requests_per_minute=600)
        await starts(one, limited, 10, takes_s=0)
        one.set_share(0)
        await starts(one, limited, 1, takes_s=0)
        one.set_share(1)
        begun = asyncio.get_running_loop().time()
        await asyncio.wait_for(starts(one, limited, 10, takes_s=0), 60)
        return asyncio.get_running_loop().time() - begun

    assert run(work()) < 2


# --- several keys, and models that are not well ------------------------------------------------------------------------


def several(keys: int, **more: object) -> Limits:
    return Limits(dict.fromkeys(Lane, 1_000), clock=asyncio.get_running_loop().time, keys={"simulated": keys}, **more)  # type: ignore[arg-type]


def test_several_keys_are_used_evenly_and_each_up_to_its_own_limit() -> None:
    async def main() -> tuple[float, Counter[int]]:
        one, model, used = several(3), replace(MODEL, requests_per_minute=600), Counter[int]()

        async def ask() -> None:
            permit = await one.acquire(model, Lane.STANDARD, "t", 1)
            used[permit.key] += 1
            await asyncio.sleep(1)
            permit.release()

        await asyncio.gather(*(ask() for _ in range(900)))
        return asyncio.get_running_loop().time(), used

    took, used = run(main())
    assert 28 < took < 33, "900 calls at 3 x 600 a minute"
    assert all(290 <= count <= 310 for count in used.values())


def test_keys_without_limits_are_used_evenly_too() -> None:
    async def main() -> Counter[int]:
        one = several(3)
        return Counter([(await one.acquire(MODEL, Lane.STANDARD, "t", 1)).key for _ in range(30)])

    assert run(main()) == {0: 10, 1: 10, 2: 10}


def test_a_key_that_is_told_to_wait_leaves_the_calls_to_the_others() -> None:
    async def main() -> set[int]:
        one = several(2)
        one.pause(MODEL, 100, key=0)
        return {(await one.acquire(MODEL, Lane.STANDARD, "t", 1)).key for _ in range(10)}

    assert run(main()) == {1}


def test_a_model_that_failed_five_times_rests_and_is_tried_by_one_call() -> None:
    async def main() -> list[float]:
        one, begun = limits(), list[float]()
        loop = asyncio.get_running_loop()

        async def ask(number: int) -> None:
            permit = await one.acquire(MODEL, Lane.STANDARD, "t", 1)
            begun.append(loop.time())
            await asyncio.sleep(1)
            permit.well = number >= 5
            permit.release()

        for number in range(5):
            await ask(number)
        assert one.rests(MODEL)
        await asyncio.gather(*(ask(number) for number in range(5, 10)))
        assert not one.rests(MODEL)
        return begun

    rest = BreakerPolicy().rest_s
    assert run(main())[5:] == [5 + rest, *[6 + rest] * 4]


@pytest.mark.parametrize("lane", list(Lane))
def test_the_one_that_tries_a_rested_model_is_one_that_has_not_failed_there(lane: Lane) -> None:
    """Whatever its lane; and where all have failed, the next of them."""

    async def main() -> list[str]:
        one = Limits(dict.fromkeys(Lane, 10), clock=asyncio.get_running_loop().time, breaker=BreakerPolicy(threshold=1))
        order: list[str] = []

        async def ask(name: str, lane: Lane, *, failed: bool, well: bool) -> None:
            permit = await one.acquire(MODEL, lane, name, 1, failed=failed)
            order.append(name)
            permit.well = well
            permit.release()

        await ask("opens it", Lane.STANDARD, failed=False, well=False)
        failed = [asyncio.create_task(ask(name, Lane.EXPRESS, failed=True, well=False)) for name in ("a", "b")]
        await asyncio.sleep(0)
        await asyncio.gather(ask("new", lane, failed=False, well=False), *failed)
        return order

    assert run(main()) == ["opens it", "new", "a", "b"]


def test_a_try_that_is_called_off_does_not_shut_the_model_for_good() -> None:
    async def main() -> float:
        one, loop = limits(), asyncio.get_running_loop()
        for _ in range(5):
            permit = await one.acquire(MODEL, Lane.STANDARD, "t", 1)
            permit.well = False
            permit.release()
        first = asyncio.create_task(one.acquire(MODEL, Lane.STANDARD, "t", 1))
        second = asyncio.create_task(one.acquire(MODEL, Lane.STANDARD, "t", 1))
        await asyncio.sleep(6)
        (await first).release()
        await second
        return loop.time()

    assert run(main()) == 6


def test_where_replies_say_what_the_limit_is_it_need_not_be_configured() -> None:
    async def main() -> tuple[list[float], dict[str, float]]:
        one, model, times = several(1, careful={"simulated"}), replace(MODEL, max_in_flight=10_000), list[float]()
        loop = asyncio.get_running_loop()

        async def ask() -> None:
            permit = await one.acquire(model, Lane.STANDARD, "t", 1)
            times.append(loop.time())
            await asyncio.sleep(0.5)
            permit.well, permit.rates = True, [RateSeen("requests", 600, 300, 30.0)]
            permit.release()

        await asyncio.gather(*(ask() for _ in range(600)))
        return times, one.health()[0].limits

    times, known = run(main())
    assert known == {"requests": 600}
    assert sum(at < 0.5 for at in times) <= 25, "nothing was known then"
    assert 55 < times[-1] < 62

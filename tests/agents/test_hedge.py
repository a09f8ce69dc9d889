"""A hedge is paid for only where the tenant allows it, is an intent of its own, and nothing is paid twice unseen."""

import asyncio
from dataclasses import replace

from inference_engine.agents.attempt import CallSettings
from inference_engine.pipeline.errors import Unavailable
from inference_engine.pipeline.hedge import MOST_SHARE, HedgeBudget, HedgePolicy
from inference_engine.pipeline.models import Model
from inference_engine.pipeline.ports import ProviderReply
from inference_engine.schemas.ledger import Completion, Intent

from ..pipeline.support import NOW
from .payers import REPLY, Bill, Worker, World, call, worker
from .virtual_time import run


def slow_first(seconds: float, *, then: float = 0.0) -> Bill:
    """The first call takes long, the others `then`."""

    async def script(_model: Model, number: int) -> ProviderReply:
        await asyncio.sleep(seconds if number == 1 else then)
        return REPLY

    return Bill(script)


def hedging(one: Worker, tenants: str = "t", after_s: float | None = 2.0) -> Worker:
    one.stage.parts = replace(one.stage.parts, hedge=HedgePolicy.of(after_s, tenants))
    return one


def purposes(world: World) -> list[tuple[str, str]]:
    return [(r.type, r.purpose) for r in world.records() if isinstance(r, Intent | Completion)]


def answered(world: World) -> float:
    """When the first answer was durable, in seconds."""
    return (next(r.at_ms for r in world.records() if isinstance(r, Completion)) - NOW) / 1000


def test_by_default_a_slow_call_is_waited_for() -> None:
    world = World(provider=slow_first(50))

    async def main() -> float:
        async with worker(world) as one:
            await one.run(call())
            return asyncio.get_running_loop().time()

    assert run(main()) >= 50
    assert len(world.provider.calls) == 1


def test_a_tenant_that_does_not_allow_it_is_not_hedged() -> None:
    world = World(provider=slow_first(50))

    async def main() -> None:
        async with worker(world) as one:
            await hedging(one, tenants="another").run(call())

    run(main())
    assert len(world.provider.calls) == 1


def test_who_wants_no_second_payment_after_an_ambiguous_one_is_not_hedged_either() -> None:
    world = World(provider=slow_first(50), on_ambiguous="fail")

    async def main() -> None:
        async with worker(world) as one:
            await hedging(one, tenants="*").run(call())

    run(main())
    assert len(world.provider.calls) == 1


def test_an_unanswered_call_is_made_again_and_the_first_answer_is_taken_and_both_stand_in_the_ledger() -> None:
    world = World(provider=slow_first(50, then=1.0))

    async def main() -> float:
        async with worker(world) as one:
            await hedging(one).run(call())
            return answered(world)

    assert 3 <= run(main()) < 4
    assert purposes(world) == [("intent", "answer"), ("intent", "hedge"), ("completion", "hedge"), ("completion", "answer")]
    assert len({attempt for _, _, attempt in world.provider.calls}) == 2


def test_a_hedge_that_is_slower_is_booked_too_and_changes_nothing() -> None:
    world = World(provider=slow_first(5, then=20))

    async def main() -> float:
        async with worker(world) as one:
            await hedging(one).run(call())
            await one.run(call())
            return answered(world)

    assert 5 <= run(main()) < 6
    assert purposes(world)[2:] == [("completion", "answer"), ("completion", "hedge")]
    assert len(world.provider.calls) == 2
    assert [r.attempt for r in world.reemitted if isinstance(r, Completion)] == [
        next(r.attempt for r in world.records() if isinstance(r, Completion))
    ]


def test_a_first_call_that_fails_while_the_hedge_is_under_way_is_answered_by_the_hedge() -> None:
    async def script(_model: Model, number: int) -> ProviderReply:
        await asyncio.sleep(3 if number == 1 else 5)
        if number == 1:
            raise Unavailable("503")
        return REPLY

    world = World(provider=Bill(script))

    async def main() -> None:
        async with worker(world) as one:
            await hedging(one).run(call())

    run(main())
    assert world.kinds() == ["intent", "intent", "unpaid", "completion"]


def test_the_source_is_not_released_before_both_calls_have_written_what_they_cost() -> None:
    """Or nobody would ever settle the slower one after a crash."""
    world = World(provider=slow_first(30, then=1.0))

    async def main() -> None:
        async with worker(world) as one:
            running = hedging(one).start(call())
            await asyncio.sleep(20)
            assert not running.done()
        async with worker(world) as two:
            await two.run(call())

    run(main())
    assert purposes(world) == [("intent", "answer"), ("intent", "hedge"), ("completion", "hedge")]
    assert world.kinds()[-1] == "ambiguous", "the slower one, booked at its cap by the successor"


def test_a_hedge_counts_against_the_attempts_and_the_cap_of_its_request() -> None:
    for world, asked in (
        (World(provider=slow_first(50), settings=CallSettings(max_attempts=1, call_timeout_s=60, intent_slack_s=5)), call()),
        (World(provider=slow_first(50)), call(max_cost_pico=1_999)),
    ):

        async def main(world: World = world, asked: object = asked) -> None:
            async with worker(world) as one:
                await hedging(one).run(asked)  # type: ignore[arg-type]

        run(main())
        assert len(world.provider.calls) == 1


def test_a_hedge_that_waits_for_its_permit_is_called_off_when_the_answer_comes() -> None:
    world = World(provider=slow_first(5))
    world.limit(max_in_flight=1)

    async def main() -> None:
        async with worker(world) as one:
            await hedging(one).run(call())
            await asyncio.sleep(10)
            await one.run(call("r2"))

    run(main())
    assert world.kinds() == ["intent", "completion"] * 2


def test_a_hedge_is_not_sent_where_the_answer_comes_while_its_intent_is_written() -> None:
    world = World(provider=slow_first(5))

    async def main() -> None:
        async with worker(world) as one:
            intend = hedging(one).ledger.intend

            async def slowly(*args: object, **more: object) -> None:
                await intend(*args, **more)  # type: ignore[arg-type]
                if world.provider.calls:
                    await asyncio.sleep(4)

            one.ledger.intend = slowly  # type: ignore[method-assign]
            await one.run(call())

    run(main())
    assert world.kinds() == ["intent", "intent", "completion", "unpaid"]
    assert len(world.provider.calls) == 1


def test_a_slow_provider_is_not_asked_everything_twice() -> None:
    async def slow(_model: Model, _number: int) -> ProviderReply:
        await asyncio.sleep(10)
        return REPLY

    world = World(provider=Bill(slow), permits=dict.fromkeys(World().permits, 1_000))

    async def main() -> None:
        async with worker(world) as one:
            hedging(one)
            await asyncio.gather(*(one.run(call(f"r{i}")) for i in range(200)))
            await asyncio.sleep(30)

    run(main())
    assert len(world.provider.calls) <= 200 * (1 + MOST_SHARE) + 3


def test_the_budget_allows_a_few_at_once_and_then_a_share() -> None:
    budget = HedgeBudget()
    assert [budget.may_hedge() for _ in range(4)] == [True, True, True, False]
    for _ in range(20):
        budget.called()
    assert [budget.may_hedge() for _ in range(2)] == [True, False]

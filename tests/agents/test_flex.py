"""What has minutes, and no day, is asked for at the flex tier: half the price, slow, and turned away free of charge."""

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from inference_engine.pipeline.errors import Unavailable
from inference_engine.pipeline.hedge import HedgePolicy
from inference_engine.pipeline.models import Model
from inference_engine.pipeline.ports import Begun, ProviderReply
from inference_engine.pipeline.provider_batch import FLEX_TRIES, WayPrices
from inference_engine.schemas.answers import Usage
from inference_engine.schemas.ledger import Completion, Intent
from inference_engine.schemas.record import JsonObject, Lane

from ..pipeline.support import NOW
from .payers import REPLY, Bill, Worker, World, call, worker
from .virtual_time import run

FLEX, SYNC = 200, 400


class Tiers(Bill):
    """A provider with two tiers: `busy` flex calls are turned away first."""

    busy = 0
    takes_s = 0.0

    def __init__(self) -> None:
        super().__init__()
        self.tiers: list[str] = []

    async def complete(
        self, model: Model, body: JsonObject, *, timeout: float, metadata: Mapping[str, str], begun: Begun | None = None
    ) -> ProviderReply:
        tier = str(body.get("service_tier", "default"))
        self.tiers.append(tier)
        await asyncio.sleep(self.takes_s)
        if tier == "flex" and self.busy:
            self.busy -= 1
            raise Unavailable("429", retry_after=500, rate_limited=True)
        return replace(REPLY, service_tier="flex" if tier == "flex" else "standard")


def tiered(one: Worker, prices: WayPrices = WayPrices(sync=SYNC, flex=FLEX)) -> None:  # noqa: B008 - frozen
    def price(_model: Model, _usage: Usage, tier: str, _ms: int) -> int:
        return FLEX if tier == "flex" else SYNC

    one.stage.parts = replace(one.stage.parts, price=price, prices=lambda _model, _body: prices)


def asked(minutes: float | None, custom_id: str = "r1", lane: Lane = Lane.STANDARD) -> "tuple[Tiers, World]":
    provider = Tiers()
    world = World(provider=provider)

    async def main() -> None:
        async with worker(world) as one:
            tiered(one)
            more: dict[str, Any] = {} if minutes is None else {"deadline_ms": NOW + int(minutes * 60_000)}
            await one.run(call(custom_id, **more), lane)

    run(main())
    return provider, world


def test_a_call_with_half_an_hour_costs_half() -> None:
    provider, world = asked(30)
    assert provider.tiers == ["flex"]
    [completion] = [r for r in world.records() if isinstance(r, Completion)]
    assert completion.answer.paid_pico == FLEX
    assert "service_tier" not in completion.request.body


def test_who_has_less_time_or_none_to_spare_or_no_deadline_is_called_for_plainly() -> None:
    assert asked(15)[0].tiers == ["default"]
    assert asked(None)[0].tiers == ["default"]
    assert asked(30, lane=Lane.EXPRESS)[0].tiers == ["default"]


def test_where_flex_has_no_price_or_a_higher_one_it_is_not_asked_for() -> None:
    for prices in (WayPrices(sync=SYNC), WayPrices(sync=SYNC, flex=SYNC)):
        provider = Tiers()
        world = World(provider=provider)

        async def main(world: World = world, prices: WayPrices = prices) -> None:
            async with worker(world) as one:
                tiered(one, prices)
                await one.run(call(deadline_ms=NOW + 3_600_000))

        run(main())
        assert provider.tiers == ["default"]


def test_a_busy_flex_tier_holds_up_neither_the_model_nor_the_request() -> None:
    provider = Tiers()
    provider.busy = 100
    world = World(provider=provider)

    async def main() -> float:
        async with worker(world) as one:
            tiered(one)
            slow = one.start(call("slow", deadline_ms=NOW + 3_600_000))
            await asyncio.sleep(0.1)
            await one.run(call("quick"))
            assert asyncio.get_running_loop().time() < 1
            await slow
            assert [(h.breaker, h.opened) for h in one.stage.parts.limits.health()] == [("closed", 0)]
        return asyncio.get_running_loop().time()

    assert run(main()) < 60
    assert provider.tiers.count("flex") == FLEX_TRIES
    assert provider.tiers.count("default") == 2
    assert world.kinds().count("unpaid") == FLEX_TRIES


def test_tries_that_flex_turned_away_are_no_failures_of_the_model() -> None:
    """The plain call that follows may fail once, as any other may, before the next model of the route is asked."""

    class Fails(Tiers):
        failures = 1

        async def complete(self, model: Model, body: JsonObject, **more: Any) -> ProviderReply:
            self.calls.append((0.0, model.name, ""))
            if "service_tier" not in body and self.failures:
                self.failures -= 1
                self.tiers.append("failed")
                raise Unavailable("503")
            return await super().complete(model, body, **more)

    provider = Fails()
    provider.busy = 100
    world = World(provider=provider)

    async def main() -> None:
        async with worker(world) as one:
            tiered(one)
            await one.run(call("r1", "small", "big", deadline_ms=NOW + 3_600_000))

    run(main())
    assert provider.tiers == ["flex"] * FLEX_TRIES + ["failed", "default"]
    assert {model for _, model, _ in provider.calls} == {"small"}


def test_a_flex_call_is_not_hedged_for_being_slow() -> None:
    provider = Tiers()
    provider.takes_s = 300
    world = World(provider=provider)

    async def main() -> None:
        async with worker(world) as one:
            tiered(one)
            hedge = HedgePolicy.of(1.0, "*")
            one.stage.parts = replace(one.stage.parts, hedge=hedge)
            await one.run(call(deadline_ms=NOW + 3_600_000))

    run(main())
    assert provider.tiers == ["flex"]


def test_a_flex_call_may_take_longer_than_a_plain_one_and_its_intent_says_so() -> None:
    provider = Tiers()
    provider.takes_s = 300
    world = World(provider=provider)

    async def main() -> None:
        async with worker(world) as one:
            tiered(one)
            task = one.start(call(deadline_ms=NOW + 3_600_000))
            await asyncio.sleep(10)
            assert one.stage.progress() == {}  # nothing that a watchdog should wait for
            await task

    run(main())
    assert world.kinds() == ["intent", "completion"]
    [intent] = [r for r in world.records() if isinstance(r, Intent)]
    assert intent.timeout_ms == 605_000

"""A request whose model is not well goes to the next one of its route, and waits where there is none."""

import asyncio
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from inference_engine.connectors.providers.accounts import Accounts
from inference_engine.pipeline.errors import Ambiguous, Rejected, Unavailable
from inference_engine.pipeline.models import Model
from inference_engine.pipeline.ports import ProviderReply
from inference_engine.schemas.ledger import Completion, Failure
from inference_engine.schemas.record import JsonObject
from inference_engine.schemas.requests import Call

from .payers import REPLY, Bill, World, call, worker
from .virtual_time import run


def down(*names: str, until: float = float("inf")) -> Bill:
    """These models fail until then; the others answer."""

    async def script(model: Model, _number: int) -> ProviderReply:
        if model.name in names and asyncio.get_running_loop().time() < until:
            raise Unavailable("503")
        return REPLY

    return Bill(script)


def asked(world: World) -> list[str]:
    return [model for _, model, _ in world.provider.calls]


def test_after_two_failures_in_a_row_a_request_goes_to_the_next_model_of_its_route() -> None:
    world = World(provider=down("small"))

    async def main() -> None:
        async with worker(world) as one:
            await one.run(call("r1", "small", "big"))

    run(main())
    assert asked(world) == ["small", "small", "big"]
    [completion] = [r for r in world.records() if isinstance(r, Completion)]
    assert completion.answer.model_used == "big"


def test_once_its_breaker_is_open_a_model_is_not_asked_at_all_and_one_call_tries_it_again_after_its_rest() -> None:
    world = World(provider=down("small", until=6.0))

    async def main() -> None:
        async with worker(world) as one:
            for number in range(3):
                await one.run(call(f"r{number}", "small", "big"))
            opened = len(world.provider.calls)
            for number in range(10, 15):
                await one.run(call(f"r{number}", "small", "big"))
            assert asked(world)[opened:] == ["big"] * 5
            await asyncio.sleep(20)
            for number in range(20, 23):
                await one.run(call(f"r{number}", "small", "big"))

    run(main())
    assert asked(world).count("small") == 5 + 3
    assert asked(world)[-3:] == ["small"] * 3


def test_a_request_with_one_model_waits_for_it_and_is_answered_when_it_is_well_again() -> None:
    world = World(provider=down("small", until=100.0))

    async def main() -> None:
        async with worker(world) as one:
            await asyncio.gather(*(one.run(call(f"r{n}")) for n in range(20)))

    run(main())
    assert world.kinds().count("completion") == 20
    tries = [at for at, _, _ in world.provider.calls if 5 < at < 100]
    assert tries
    assert min(b - a for a, b in pairwise(tries)) >= 1, "while it is down one call at a time tries, with a rest in between"


def test_a_request_that_never_had_a_try_ends_like_the_others_where_the_model_stays_away() -> None:
    world = World(provider=down("small"))

    async def main() -> float:
        async with worker(world) as one:
            await asyncio.gather(*(one.run(call(f"r{n}")) for n in range(20)))
        return asyncio.get_running_loop().time()

    assert 600 <= run(main()) < 760
    failures = [r for r in world.records() if isinstance(r, Failure)]
    assert {f.error.code for f in failures} == {"provider_unavailable"}
    assert len(failures) == 20


def test_requests_that_fail_for_reasons_of_their_own_do_not_keep_the_others_waiting() -> None:
    """Whoever has not failed yet tries first when the model has rested."""

    @dataclass
    class Picky(Bill):
        async def complete(self, model: Model, body: JsonObject, **more: Any) -> ProviderReply:
            await super().complete(model, body, **more)
            if body["messages"][0]["content"] == "bad":
                raise Unavailable("503")
            return REPLY

    def saying(name: str, text: str) -> Call:
        return call(name, body={"messages": [{"role": "user", "content": text}]})

    world = World(provider=Picky())

    async def main() -> None:
        async with worker(world) as one:
            bad = [one.start(saying(f"b{n}", "bad")) for n in range(20)]
            await asyncio.sleep(30)
            before = len(world.provider.calls)
            await asyncio.gather(*(one.run(saying(f"g{n}", "good")) for n in range(5)))
            asked = [body["messages"][0]["content"] for body in world.provider.bodies[before:]]
            assert asked.index("good") <= 1, "behind the one that was trying already"
            for task in bad:
                task.cancel()

    run(main())
    assert world.kinds().count("completion") == 5


def test_calls_that_may_have_been_paid_open_the_breaker_too() -> None:
    async def script(model: Model, _number: int) -> ProviderReply:
        if model.name == "small":
            raise Ambiguous("500")
        return REPLY

    world = World(provider=Bill(script))

    async def main() -> None:
        async with worker(world) as one:
            for number in range(6):
                await one.run(call(f"r{number}", "small", "big"))

    run(main())
    assert asked(world).count("small") == 5
    assert world.kinds().count("ambiguous") == 5


def test_a_key_that_is_refused_is_left_out_and_the_next_one_answers() -> None:
    async def refused(_model: Model, _number: int) -> ProviderReply:
        raise Rejected("401", code="provider_auth")

    bad, good = Bill(refused), Bill()
    world = World(provider=Accounts([bad, good]))  # type: ignore[arg-type]

    async def main() -> None:
        async with worker(world) as one:
            for number in range(6):
                await one.run(call(f"r{number}"))

    run(main())
    assert (len(bad.calls), len(good.calls)) == (1, 6)
    assert world.kinds().count("completion") == 6

"""Calls that share a prefix: one writes it, the others wait for it without a permit or an intent, and nobody waits for long."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest

from inference_engine.agents.call_agent import CallAgent
from inference_engine.agents.prefix import MOST_WAIT_S, PrefixRoom
from inference_engine.pipeline.errors import Rejected, Unavailable
from inference_engine.pipeline.models import Model
from inference_engine.pipeline.ports import ProviderReply
from inference_engine.pipeline.prefix import Lifetime, Terms
from inference_engine.schemas import packets
from inference_engine.schemas.answers import Usage
from inference_engine.schemas.ledger import Completion, Failure
from inference_engine.schemas.record import JsonObject, Lane
from inference_engine.schemas.requests import Call

from .payers import REPLY, Bill, World, call, worker
from .support import TOPICS, event
from .virtual_time import run

TERMS = Terms("cache_control", 1000, 0.1, (Lifetime("5m", 300, 1.25),))
LATENCY_S = 2.0


def sharing(custom_id: str, system: str = "s" * 8000, tenant: str = "t") -> Call:
    body = {"messages": [{"role": "system", "content": system}, {"role": "user", "content": custom_id}]}
    return call(custom_id, tenant=tenant, body=body)


def is_marked(body: JsonObject) -> bool:
    return isinstance(body["messages"][0]["content"], list)


def usage(read: int, written: int) -> ProviderReply:
    return ProviderReply(
        REPLY.body, Usage(input_tokens=2100, output_tokens=5, cache_read_tokens=read, cache_write_tokens=written), "stop", "p"
    )


def answers_after(seconds: float) -> Callable[[Model, int], Awaitable[ProviderReply]]:
    async def script(_model: Model, number: int) -> ProviderReply:
        await asyncio.sleep(seconds)
        return usage(0, 2000) if number == 1 else usage(2000, 0)

    return script


def world(script: Any = None) -> World:
    return World(provider=Bill(script or answers_after(LATENCY_S)), terms=lambda _: TERMS)


def paid(one: World) -> int:
    return sum(isinstance(record, Completion) for record in one.records())


def test_one_call_goes_first_and_the_rest_follow_when_it_is_back() -> None:
    one = world()

    async def main() -> None:
        async with worker(one) as w:
            await asyncio.gather(*(w.run(sharing(str(i))) for i in range(20)))

    run(main())
    times = [at for at, _, _ in one.provider.calls]
    assert times[0] < LATENCY_S <= min(times[1:])
    assert max(times) < 2 * LATENCY_S  # all at once then
    assert all(is_marked(body) for body in one.provider.bodies)
    assert paid(one) == 20


def test_of_a_streamed_answer_only_the_beginning_is_waited_for() -> None:
    """From then on the entry can be read; the rest of the answer may take long."""
    one = world(answers_after(9.0))
    one.settings = replace(one.settings, stream=True)

    async def main() -> None:
        async with worker(one) as w:
            await asyncio.gather(*(w.run(sharing(str(i))) for i in range(20)))

    run(main())
    times = [at for at, _, _ in one.provider.calls]
    assert one.provider.begins_s <= times[1] <= max(times) < 1.0
    assert all(is_marked(body) and body["stream"] for body in one.provider.bodies)
    assert paid(one) == 20


def test_streams_are_asked_for_only_where_that_is_set() -> None:
    one = world()

    async def main() -> None:
        async with worker(one) as w:
            await w.run(sharing("1"))

    run(main())
    assert ["stream" in body for body in one.provider.bodies] == [False]


def test_two_groups_do_not_wait_for_each_other() -> None:
    one = world()

    async def main() -> None:
        async with worker(one) as w:
            await asyncio.gather(*(w.run(sharing(f"{g}{i}", g * 8000)) for i in range(5) for g in "ab"))

    run(main())
    times = sorted(at for at, _, _ in one.provider.calls)
    assert times[1] < LATENCY_S <= times[2]


def test_who_waits_holds_no_permit_and_has_no_intent() -> None:
    one = world()

    async def main() -> None:
        async with worker(one) as w:
            tasks = [w.start(sharing(str(i))) for i in range(20)]
            await one.provider.reached.wait()
            await asyncio.sleep(LATENCY_S / 2)
            assert one.kinds() == ["intent"]
            assert w.stage.parts.limits.in_flight[Lane.STANDARD] == 1
            assert w.stage.moves(0) is None  # the watchdog sees calls that wait for their turn
            await asyncio.gather(*tasks)

    run(main())
    assert paid(one) == 20


@pytest.mark.parametrize("error", [Unavailable("busy", retry_after=1.0), Rejected("no", code="provider_rejected")])
def test_a_first_call_that_fails_holds_nobody(error: Exception) -> None:
    async def script(_model: Model, number: int) -> ProviderReply:
        await asyncio.sleep(LATENCY_S)
        if number == 1:
            raise error
        return usage(0, 2000) if number == 2 else usage(2000, 0)

    one = world(script)

    async def main() -> None:
        async with worker(one) as w:
            await asyncio.gather(*(w.run(sharing(str(i))) for i in range(5)))

    run(main())
    times = [at for at, _, _ in one.provider.calls]
    assert LATENCY_S <= times[1] < 2 * LATENCY_S <= times[2]
    failed = sum(isinstance(record, Failure) for record in one.records())
    assert (paid(one), failed) == ((5, 0) if isinstance(error, Unavailable) else (4, 1))


def test_a_first_call_that_hangs_holds_the_others_only_so_long() -> None:
    one = world(answers_after(50))

    async def main() -> None:
        async with worker(one) as w:
            await asyncio.gather(*(w.run(sharing(str(i))) for i in range(5)))

    run(main())
    times = [at for at, _, _ in one.provider.calls]
    assert times[0] < MOST_WAIT_S[Lane.STANDARD] <= times[1] < MOST_WAIT_S[Lane.STANDARD] + 1
    assert [is_marked(body) for body in one.provider.bodies] == [True, False, False, False, False]  # not written twice


def test_express_waits_for_nobody() -> None:
    one = world()

    async def main() -> None:
        async with worker(one) as w:
            await asyncio.gather(*(w.start(sharing(str(i)), Lane.EXPRESS) for i in range(5)))

    run(main())
    assert max(at for at, _, _ in one.provider.calls) < LATENCY_S


def test_a_deadline_is_not_waited_past() -> None:
    one = world(answers_after(50))

    async def main() -> None:
        async with worker(one) as w:
            soon = sharing("soon")
            soon = soon.model_copy(update={"request": soon.request.model_copy(update={"deadline_ms": soon.request.accepted_ms + 3_000})})
            first = w.start(sharing("first"))
            await one.provider.reached.wait()
            w.start(sharing("other"))
            await w.run(soon)
            assert asyncio.get_running_loop().time() < 5
            first.cancel()

    run(main())


def test_the_members_of_a_worker_that_dies_are_paid_by_the_next_one() -> None:
    """Those that waited for the writer were neither acknowledged nor paid."""
    one = world()

    async def main() -> None:
        async with worker(one) as w:
            for i in range(5):
                w.start(sharing(str(i)))
            await one.provider.reached.wait()
            await w.crash()
        assert one.kinds() == ["intent"]
        async with worker(one) as w:
            await asyncio.gather(*(w.run(sharing(str(i))) for i in range(5)))

    run(main())
    assert paid(one) == 5
    assert one.kinds().count("ambiguous") == 1  # the call that was under way


def test_tenants_neither_wait_for_nor_mark_for_each_other() -> None:
    one = world()

    async def main() -> None:
        async with worker(one) as w:
            await asyncio.gather(w.run(sharing("1", tenant="a")), w.run(sharing("2", tenant="b")))

    run(main())
    assert [is_marked(body) for body in one.provider.bodies] == [False, False]


def test_members_of_a_packet_are_sent_group_by_group() -> None:
    """Also where nothing is marked: a server may find prefixes by itself."""
    one = World(provider=Bill(answers_after(0.1)), permits=dict.fromkeys(Lane, 1))
    calls = [sharing(f"{group}{i}", group * 8000) for i in range(3) for group in "abc"]

    async def main() -> None:
        async with worker(one) as w:
            packet = event(TOPICS.calls(Lane.STANDARD), packets.calls.encode(calls))
            await CallAgent(w.stage).on_calls(packet)

    run(main())
    assert [body["messages"][1]["content"][0] for body in one.provider.bodies] == list("aaabbbccc")


def test_similar_prompts_are_sent_side_by_side_where_their_blocks_share_nothing() -> None:
    """Their heads are within one long text, where a server may find them, and the tree does not."""
    one = World(provider=Bill(answers_after(0.1)), permits=dict.fromkeys(Lane, 1))
    bodies = [{"messages": [{"role": "user", "content": f"{group}{i}" + " word" * 2000}]} for i in range(3) for group in "abc"]
    calls = [call(f"r{i}", body=asked).model_copy(update={"group": "abc"[i % 3]}) for i, asked in enumerate(bodies)]

    async def main() -> None:
        async with worker(one) as w:
            packet = event(TOPICS.calls(Lane.STANDARD), packets.calls.encode(calls))
            await CallAgent(w.stage).on_calls(packet)

    run(main())
    assert [body["messages"][0]["content"][:2] for body in one.provider.bodies] == [f"{g}{i}" for g in "abc" for i in range(3)]


def room(enabled: bool) -> PrefixRoom:
    return PrefixRoom(lambda _: TERMS, enabled=enabled, remember=10, now=lambda: 0)


def test_a_packet_is_put_in_order_by_prefix() -> None:
    calls = [sharing("1", "a" * 8000), sharing("2", "b" * 9000), sharing("3", "a" * 8000), sharing("4", "b" * 9000)]
    assert room(True).in_order([c.request for c in calls]) == [1, 3, 0, 2]


def test_switched_off_nothing_is_ordered_or_marked() -> None:
    calls = [sharing("1", "a" * 8000), sharing("2", "b" * 9000), sharing("3", "a" * 8000)]
    off = room(False)
    assert off.in_order([c.request for c in calls]) == [0, 1, 2]
    one = World().models.get("small")
    seats = [off.enter(one, c.request, Lane.STANDARD) for c in calls]
    assert [seat.board(c.request.body) is c.request.body for seat, c in zip(seats, calls, strict=True)] == [True] * 3


# --- keys ------------------------------------------------------------------------------------------------------------------

KEYED = Terms("breakpoints", 1000, 0.1, (Lifetime("30m", 1800, 1.25),), per_key_per_minute=15)


def keyed_world(seconds: float) -> World:
    """A call a second."""
    one = World(provider=Bill(answers_after(seconds)), terms=lambda _: KEYED)
    one.limit(requests_per_minute=60)
    return one


def test_groups_are_sent_side_by_side_so_that_they_need_few_keys() -> None:
    """120 calls in two minutes: four keys are full all the time, and six do. One group after the other, each would need three."""
    one = keyed_world(1.0)
    calls = [sharing(f"{group}{i}", group * 8000) for group in "abc" for i in range(40)]

    async def main() -> None:
        async with worker(one) as w:
            await asyncio.gather(*(w.start(c, Lane.BATCH) for c in calls))

    run(main())
    sent = [(at, body["prompt_cache_key"]) for (at, _, _), body in zip(one.provider.calls, one.provider.bodies, strict=True)]
    keys = {key for _, key in sent}
    assert (len(sent), len(keys) <= 6, sent[-1][0] < 135) == (120, True, True)
    for key in keys:
        times = [at for at, used in sent if used == key]
        assert all(later - at > 60 for at, later in zip(times, times[15:], strict=False))


def test_a_call_that_is_held_for_a_key_has_no_intent_and_goes_in_time_for_its_deadline() -> None:
    one = keyed_world(50.0)
    soon = sharing("soon", "a" * 8000)
    soon = soon.model_copy(update={"request": soon.request.model_copy(update={"deadline_ms": soon.request.accepted_ms + 8_000})})

    async def main() -> None:
        async with worker(one) as w:
            for group in "ab":
                for i in range(15):
                    w.start(sharing(f"{group}{i}", group * 8000))
            held = w.start(soon)
            await asyncio.sleep(3)
            assert (one.kinds(), w.stage.parts.limits.in_flight[Lane.STANDARD]) == (["intent"] * 2, 2)
            await asyncio.sleep(2)
            assert one.provider.bodies[-1]["messages"][1]["content"] == "soon"
            assert len({body["prompt_cache_key"] for body in one.provider.bodies}) == 3
            held.cancel()

    run(main())


def test_express_is_not_held_for_a_key() -> None:
    one = World(provider=Bill(answers_after(1.0)), terms=lambda _: KEYED)

    async def main() -> None:
        async with worker(one) as w:
            await asyncio.gather(*(w.start(sharing(str(i)), Lane.EXPRESS) for i in range(40)))

    run(main())
    assert max(at for at, _, _ in one.provider.calls) < 0.1


def test_a_prefix_that_is_forgotten_before_its_readers_could_be_sent_is_written_again_by_one_of_them() -> None:
    """A call a second, an entry that lives for five minutes: the other group's 400 calls come in between."""
    one = World(provider=Bill(answers_after(1.0)), terms=lambda _: TERMS)
    one.limit(requests_per_minute=60)
    calls = [sharing("a0", "a" * 8000), sharing("a1", "a" * 8000)]
    calls += [sharing(f"b{i}", "b" * 8000) for i in range(400)]
    calls += [sharing(f"a{i}", "a" * 8000) for i in range(2, 22)]

    async def main() -> None:
        async with worker(one) as w:
            await asyncio.gather(*(w.start(c, Lane.BATCH) for c in calls))

    run(main())
    assert len(one.provider.bodies) == 422
    assert all(is_marked(body) for body in one.provider.bodies)

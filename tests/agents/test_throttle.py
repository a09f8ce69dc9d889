"""The batch lane goes freely while it is alone, and waits its turn while somebody urgent is there."""

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from inference_engine.agents.packer import MAX_MEMBERS
from inference_engine.agents.safe import DeadLetter, Delivered
from inference_engine.agents.safe.delivery import Intake
from inference_engine.agents.throttle import SMALL_PACKET, URGENT_S, Gate, Throttle, ThrottleSettings
from inference_engine.pipeline.lanes import Bounds

from .virtual_time import run

PACKET = b"[" + b",".join([b'{"fingerprint":"f"}'] * 32) + b"]"


def event(offset: int = 0, value: bytes = PACKET) -> Delivered:
    return Delivered("calls.batch", 0, offset, None, value)


def throttle(**settings: Any) -> Throttle:
    return Throttle(ThrottleSettings(**settings), clock=asyncio.get_running_loop().time)


async def begun_in(seconds: float, gate: Gate) -> int:
    """Packets that begin in this time where there are always more."""
    loop, count = asyncio.get_running_loop(), 0
    until = loop.time() + seconds
    again = asyncio.Event()
    while loop.time() < until:
        if gate.may_begin(again.set):
            gate.begun(event())
            count += 1
            await asyncio.sleep(0.001)
        else:
            await again.wait()
            again.clear()
    return count


def test_alone_the_batch_lane_is_not_held_back() -> None:
    async def main() -> int:
        return await begun_in(10, throttle().gate())

    assert run(main()) >= 9_990


def test_beside_an_urgent_request_it_begins_at_the_slowest_rate_and_for_ten_seconds() -> None:
    async def main() -> tuple[int, int]:
        one = throttle()
        gate = one.gate()
        one.urgent()
        held = await begun_in(URGENT_S, gate)
        return held, await begun_in(1, gate)

    held, free = run(main())
    assert 160 * 10 / 32 - 2 <= held <= 160 * 10 / 32 + 2
    assert free > 900


def test_packets_are_small_only_while_somebody_urgent_and_the_batch_lane_are_both_there() -> None:
    async def main() -> list[int]:
        one, sizes = throttle(), []
        gate = one.gate()
        one.urgent()
        sizes.append(one.packet_size())  # a job of the standard lane, alone
        gate.begun(event())
        sizes.append(one.packet_size())
        await asyncio.sleep(URGENT_S)
        gate.begun(event())
        sizes.append(one.packet_size())  # a job of the batch lane, alone
        return sizes

    assert run(main()) == [MAX_MEMBERS, SMALL_PACKET, MAX_MEMBERS]


def test_each_agent_of_the_batch_lane_has_the_rate_to_itself() -> None:
    async def main() -> list[int]:
        one = throttle()
        gates = [one.gate(), one.gate()]
        one.urgent()
        return await asyncio.gather(*(begun_in(5, gate) for gate in gates))

    assert all(24 <= count <= 27 for count in run(main()))


def test_where_priority_lanes_are_off_nothing_is_held_back() -> None:
    async def main() -> bool:
        one = throttle(enabled=False)
        one.urgent()
        gate = one.gate()
        for _ in range(100):
            gate.begun(event())
        return gate.may_begin(lambda: None)

    assert run(main())


def test_the_rate_grows_while_the_loop_is_on_time_and_is_used() -> None:
    async def main() -> tuple[float, float]:
        one = throttle(bounds=Bounds())
        controlling = asyncio.create_task(one.run())
        gate = one.gate()
        one.urgent()
        await begun_in(8, gate)
        busy = one.flow.rate
        controlling.cancel()
        idle = throttle(bounds=Bounds())
        controlling = asyncio.create_task(idle.run())
        idle.urgent()
        await asyncio.sleep(8)
        controlling.cancel()
        return busy, idle.flow.rate

    busy, idle = run(main())
    assert busy > 1_000
    assert idle == 160, "nobody made use of it"


class _App:
    """What an intake asks of its app."""

    def __init__(self) -> None:
        self.consumer_of_records = SimpleNamespace(room=lambda: None)
        self.should_stop = False


async def _dead(event: Delivered, error: DeadLetter) -> None:
    raise AssertionError(error)


def intake(handle: Callable[[Delivered], Any], **options: Any) -> Intake:
    return Intake(_App(), "x", handle, _dead, 1_000, **options)  # type: ignore[arg-type]


def test_between_two_packets_whatever_else_is_due_has_its_turn() -> None:
    """Begun all at once, a fetch of packets would hold up the loop for the sum of their handling."""

    async def main() -> list[str]:
        order: list[str] = []

        async def handle(event: Delivered) -> None:
            order.append(f"packet {event.offset}")

        async def express() -> None:
            for _ in range(3):
                await asyncio.sleep(0)
                order.append("express")

        one = intake(handle)
        for offset in range(5):
            one.offer(event(offset))
        urgent = asyncio.create_task(express())
        one.pump()
        await urgent
        await asyncio.sleep(1)
        return order

    order = run(main())
    assert [what for what in order if what != "express"] == [f"packet {n}" for n in range(5)]
    assert order.index("packet 4") > order.index("express")
    assert max(len(run) for run in "".join("e" if o == "express" else "p" for o in order[:6]).split("e")) <= 2


def test_an_intake_that_its_gate_holds_back_goes_on_when_it_opens_and_loses_nothing() -> None:
    async def main() -> list[int]:
        done: list[int] = []

        async def handle(event: Delivered) -> None:
            done.append(event.offset)

        one = throttle()
        one.urgent()
        held = intake(handle, gate=one.gate())
        for offset in range(20):
            held.offer(event(offset))
        held.pump()
        await asyncio.sleep(1.0)
        assert 0 < len(done) < 10
        await asyncio.sleep(60.0)
        return done

    assert run(main()) == list(range(20))

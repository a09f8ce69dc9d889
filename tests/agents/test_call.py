"""The call stage pays as the ledger allows, whatever the provider and the other workers do."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from inference_engine.connectors.memory_ledger import MemoryFencedLog
from inference_engine.pipeline.errors import Ambiguous, Charged, Rejected, Stale, Unavailable
from inference_engine.pipeline.flights import MemoryFlightIndex
from inference_engine.pipeline.models import Model
from inference_engine.pipeline.ports import ProviderReply
from inference_engine.schemas import packets
from inference_engine.schemas.answers import Usage
from inference_engine.schemas.ledger import Ambiguous as AmbiguousRecord
from inference_engine.schemas.ledger import Charged as ChargedRecord
from inference_engine.schemas.ledger import Completion, Failure, Intent
from inference_engine.schemas.record import Lane
from inference_engine.schemas.requests import Chosen

from ..pipeline.support import NOW
from . import payers
from .payers import CAP, PRICE, REPLY, Bill, World, call, make, now, worker
from .virtual_time import run


async def hangs(_model: Model, _number: int) -> ProviderReply:
    await asyncio.sleep(1e9)
    return REPLY


def fails_first(times: int, error: Exception) -> Bill:
    async def script(_model: Model, number: int) -> ProviderReply:
        if number <= times:
            raise error
        return REPLY

    return Bill(script)


def test_the_intent_is_durable_before_the_call_is_sent_and_the_completion_before_it_is_acknowledged() -> None:
    world = World()
    seen: list[list[str]] = []

    async def script(_model: Model, _number: int) -> ProviderReply:
        seen.append(world.kinds())
        return REPLY

    world.provider.script = script

    async def main() -> None:
        async with worker(world) as one:
            await one.run(call())

    run(main())
    assert seen == [["intent"]]
    assert world.kinds() == ["intent", "completion"]
    [intent, completion] = world.records()
    assert isinstance(intent, Intent)
    assert isinstance(completion, Completion)
    assert (intent.cap_pico, completion.answer.paid_pico, completion.attempt) == (CAP, PRICE, intent.attempt)


def test_a_completed_flight_is_answered_from_the_ledger_by_every_later_owner() -> None:
    world = World()

    async def main() -> None:
        for _ in range(3):
            async with worker(world) as one:
                await one.run(call())
                await one.run(call())

    run(main())
    assert len(world.provider.calls) == 1
    assert [r.type for r in world.reemitted] == ["completion"] * 5


def test_calls_of_one_flight_at_once_are_paid_once() -> None:
    world = World()

    async def main() -> None:
        async with worker(world) as one:
            await asyncio.gather(*(one.run(call()) for _ in range(5)))

    run(main())
    assert len(world.provider.calls) == 1
    assert len(world.reemitted) == 4


def test_after_a_crash_the_next_owner_waits_for_the_timeout_books_the_call_and_pays_once_more() -> None:
    world = World(provider=Bill(hangs))

    async def main() -> None:
        async with worker(world) as one:
            one.start(call())
            await asyncio.sleep(1)
        world.provider.script = Bill().script
        async with worker(world) as two:
            await two.run(call())

    run(main())
    assert world.kinds() == ["intent", "ambiguous", "intent", "completion"]
    assert [at for at, _, _ in world.provider.calls] == [0, 65]


def test_a_flight_whose_owners_keep_crashing_is_paid_at_most_max_attempts_times() -> None:
    world = World(provider=Bill(hangs))

    async def main() -> None:
        for _ in range(6):
            async with worker(world) as one:
                one.start(call())
                await asyncio.sleep(100)

    run(main())
    assert len(world.provider.calls) == 3
    [failure] = [r for r in world.records() if isinstance(r, Failure)]
    assert failure.error.code == "attempts_exhausted"


@pytest.mark.parametrize("wishes", [{"on_ambiguous": "fail"}, {"tenants": {"t": "fail"}}], ids=["everyone", "this tenant"])
def test_a_tenant_that_wants_no_second_payment_gets_an_error_after_a_crash(wishes: dict[str, Any]) -> None:
    world = World(provider=Bill(hangs), **wishes)

    async def main() -> None:
        for _ in range(2):
            async with worker(world) as one:
                one.start(call())
                await asyncio.sleep(30)
        async with worker(world) as one:
            await one.run(call())

    run(main())
    assert len(world.provider.calls) == 1
    assert world.kinds() == ["intent", "ambiguous", "failure"]


def test_a_worker_that_lost_its_partition_still_writes_its_answer_and_the_new_owner_does_not_pay() -> None:
    async def slow(_model: Model, _number: int) -> ProviderReply:
        await asyncio.sleep(20)
        return REPLY

    world = World(provider=Bill(slow))

    async def main() -> None:
        async with worker(world) as old:
            lost = old.start(call())
            await asyncio.sleep(1)
            old.current = False
            await old.ledger.revoked([0])
            async with worker(world, fed=True) as new:
                await new.run(call())
            await lost

    run(main())
    assert len(world.provider.calls) == 1
    assert [r.type for r in world.reemitted] == ["completion"]


def test_an_attempt_that_died_while_its_predecessors_late_answer_came_is_booked() -> None:
    """The flight has its answer; what its other attempt may have cost must be in the ledger all the same."""

    async def slow(_model: Model, number: int) -> ProviderReply:
        await asyncio.sleep(59 if number == 1 else 1e9)
        return REPLY

    world = World(provider=Bill(slow))

    async def main() -> None:
        async with worker(world) as old:
            lost = old.start(call())
            await asyncio.sleep(1)
            old.current = False
            await old.ledger.revoked([0])
            world.settings = replace(world.settings, call_timeout_s=10)
            async with worker(world) as new:
                new.ledger._owned[0].owner = replace(new.ledger._owned[0].owner, since_ms=NOW - 60_000)  # its clock is behind
                new.start(call())
                await asyncio.sleep(10)
            await lost
        async with worker(world) as last:
            await last.run(call())

    run(main())
    assert world.kinds() == ["intent", "ambiguous", "intent", "completion", "ambiguous"]
    [first, second] = [r for r in world.records() if isinstance(r, Intent)]
    assert [r.attempt for r in world.records() if isinstance(r, AmbiguousRecord)] == [first.attempt, second.attempt]
    assert [r.type for r in world.reemitted] == ["completion"]


def test_a_fenced_worker_sends_nothing_and_leaves_its_calls_unacknowledged() -> None:
    world = World()

    async def main() -> None:
        async with worker(world) as old, worker(world) as new:
            with pytest.raises(Stale):
                await old.run(call("a"))
            await new.run(call("a"))

    run(main())
    assert len(world.provider.calls) == 1


def test_a_worker_that_was_fenced_while_the_group_left_it_its_partition_takes_it_again() -> None:
    world = World()

    async def main() -> float:
        async with worker(world) as one:
            async with worker(world):
                with pytest.raises(Stale):
                    await one.run(call())
            await one.run(call())
            return asyncio.get_running_loop().time()

    assert 20 <= run(main()) < 21
    assert world.kinds() == ["intent", "completion"]


def test_a_fenced_worker_whose_partition_is_taken_away_does_not_take_it_again() -> None:
    world = World()

    async def main() -> None:
        async with worker(world) as one, worker(world) as new:
            with pytest.raises(Stale):
                await one.run(call("a"))
            await one.ledger.revoked([0])
            await asyncio.sleep(60)
            await new.run(call("b"))

    run(main())
    assert len(world.provider.calls) == 1


def test_an_event_that_is_cancelled_after_its_call_was_sent_does_not_lose_the_answer() -> None:
    async def slow(_model: Model, _number: int) -> ProviderReply:
        await asyncio.sleep(20)
        return REPLY

    world = World(provider=Bill(slow))

    async def main() -> int:
        async with worker(world) as one:
            task = one.start(call())
            await asyncio.sleep(1)
            task.cancel()
            return await one.stage.drain(grace_s=30)

    assert run(main()) == 0
    assert world.kinds() == ["intent", "completion"]


def test_a_stopping_worker_leaves_calls_that_take_too_long_open_for_its_successor() -> None:
    world = World(provider=Bill(hangs))

    async def main() -> int:
        async with worker(world) as one:
            one.start(call())
            await asyncio.sleep(1)
            return await one.stage.drain(grace_s=30)

    assert run(main()) == 1
    assert world.kinds() == ["intent"]


def test_a_worker_that_stood_still_after_its_intent_does_not_send() -> None:
    world = World()

    async def main() -> None:
        async with worker(world) as one:
            intend = one.ledger.intend

            async def stalls(*args: object, **more: object) -> None:
                await intend(*args, **more)  # type: ignore[arg-type]
                one.ledger.intend = intend  # type: ignore[method-assign]
                await asyncio.sleep(6)

            one.ledger.intend = stalls  # type: ignore[method-assign]
            await one.run(call())

    run(main())
    assert world.kinds() == ["intent", "unpaid", "intent", "completion"]
    assert len(world.provider.calls) == 1


def test_refusals_for_too_many_requests_cost_nothing_pause_the_model_and_use_up_no_attempt() -> None:
    world = World(provider=fails_first(7, Unavailable("429", retry_after=10, rate_limited=True)))

    async def main() -> None:
        async with worker(world) as one:
            await one.run(call("a"))
            await one.run(call("b"))

    run(main())
    assert [round(at) for at, _, _ in world.provider.calls] == [0, 10, 20, 30, 40, 50, 60, 70, 70]
    assert world.kinds()[-2:] == ["intent", "completion"]


def test_while_a_model_is_paused_another_one_goes_on() -> None:
    async def script(model: Model, number: int) -> ProviderReply:
        if number == 1:
            raise Unavailable("429", retry_after=100)
        return REPLY

    world = World(provider=Bill(script))

    async def main() -> None:
        async with worker(world) as one:
            await asyncio.gather(one.run(call("a", "small")), one.run(call("b", "big")), one.run(call("c", "small")))

    run(main())
    # The call of c was on its way when the first one was refused.
    assert [(at, model) for at, model, _ in world.provider.calls] == [(0, "small"), (0, "big"), (0, "small"), (100, "small")]


def test_a_provider_that_stays_away_ends_in_an_error_after_ten_minutes() -> None:
    world = World(provider=fails_first(10**6, Unavailable("503")))

    async def main() -> float:
        async with worker(world) as one:
            await one.run(call())
        return asyncio.get_running_loop().time()

    assert 600 < run(main()) < 640
    failure = world.records()[-1]
    assert isinstance(failure, Failure)
    assert (failure.error.code, failure.spent_pico) == ("provider_unavailable", 0)


def test_a_call_of_unknown_outcome_is_booked_at_its_cap_and_tried_again() -> None:
    world = World(provider=fails_first(1, Ambiguous("reset")))

    async def main() -> None:
        async with worker(world) as one:
            await one.run(call())
            totals = one.ledger.totals()[0]
            assert (totals.certain, totals.ambiguous, totals.open) == (PRICE, CAP, 0)

    run(main())
    assert world.kinds() == ["intent", "ambiguous", "intent", "completion"]


def test_an_answer_after_a_lost_call_says_what_that_one_may_have_cost() -> None:
    world = World(provider=fails_first(1, Ambiguous("reset")))

    async def main() -> None:
        async with worker(world) as one:
            await one.run(call())

    run(main())
    completion = world.records()[-1]
    assert isinstance(completion, Completion)
    assert (completion.spent_pico, completion.ambiguous_pico) == (PRICE, CAP)


def test_a_request_refused_for_its_limit_says_what_its_lost_calls_may_have_cost() -> None:
    world = World(provider=fails_first(1, Ambiguous("reset")))

    async def main() -> None:
        async with worker(world) as one:
            await one.run(call(max_cost_pico=CAP))

    run(main())
    failure = world.records()[-1]
    assert isinstance(failure, Failure)
    assert (failure.error.code, failure.spent_pico, failure.ambiguous_pico) == ("over_budget", 0, CAP)


def test_a_provider_that_hangs_is_cut_off_and_booked() -> None:
    world = World(provider=Bill(hangs))

    async def main() -> float:
        async with worker(world) as one:
            await one.run(call())
        return asyncio.get_running_loop().time()

    assert run(main()) < 3 * 61 + 5
    assert world.kinds() == ["intent", "ambiguous"] * 3 + ["failure"]


def test_an_answer_that_cannot_be_used_is_charged_and_counts() -> None:
    error = Charged("not JSON", usage=Usage(input_tokens=10, output_tokens=5), service_tier="standard")
    world = World(provider=fails_first(9, error))

    async def main() -> None:
        async with worker(world) as one:
            await one.run(call())

    run(main())
    assert world.kinds() == ["intent", "charged"] * 3 + ["failure"]
    failure = world.records()[-1]
    assert isinstance(failure, Failure)
    assert failure.spent_pico == 3 * PRICE


def test_what_one_model_refuses_goes_to_the_next_one_of_the_route() -> None:
    world = World(provider=fails_first(1, Rejected("too long", code="context_length_exceeded")))

    async def main() -> None:
        async with worker(world) as one:
            await one.run(call("a", "unheard-of", "small", "big"))

    run(main())
    assert [model for _, model, _ in world.provider.calls] == ["small", "big"]
    assert world.kinds() == ["intent", "unpaid", "intent", "completion"]


def test_what_every_model_would_refuse_is_refused_once() -> None:
    world = World(provider=fails_first(9, Rejected("bad messages", code="provider_rejected")))

    async def main() -> None:
        async with worker(world) as one:
            await one.run(call("a", "small", "big"))

    run(main())
    assert world.kinds() == ["intent", "unpaid", "failure"]


def test_nothing_is_sent_that_could_cost_more_than_the_request_allows() -> None:
    world = World()

    async def main() -> None:
        async with worker(world) as one:
            await one.run(call("a", "small", "big", max_cost_pico=CAP - 1))
            await one.run(call("b", max_cost_pico=CAP))

    run(main())
    assert world.kinds() == ["failure", "intent", "completion"]
    failure = world.records()[0]
    assert isinstance(failure, Failure)
    assert failure.error.code == "over_budget"


@pytest.mark.parametrize("code", ["cancelled", "deadline_passed"])
def test_a_request_that_waits_for_a_permit_is_not_paid_when_its_job_is_cancelled_or_its_deadline_passes(code: str) -> None:
    async def slow(_model: Model, _number: int) -> ProviderReply:
        await asyncio.sleep(30)
        return REPLY

    world = World(provider=Bill(slow), permits=dict.fromkeys(Lane, 1))

    async def main() -> None:
        async with worker(world) as one:
            first = one.start(call("a"))
            second = one.start(call("b", deadline_ms=NOW + 10_000 if code == "deadline_passed" else None))
            await asyncio.sleep(5)
            if code == "cancelled":
                world.cancelled.add("b")
            await asyncio.gather(first, second)

    run(main())
    assert len(world.provider.calls) == 1
    [failure] = [r for r in world.records() if isinstance(r, Failure)]
    assert failure.error.code == code
    assert failure.at_ms == NOW + (10_000 if code == "deadline_passed" else 30_000)


def test_an_answer_too_large_for_the_ledger_is_charged_and_refused() -> None:
    async def script(_model: Model, _number: int) -> ProviderReply:
        return ProviderReply({"text": "x" * 1_000_000}, REPLY.usage, "stop", "p1")

    world = World(provider=Bill(script))

    async def main() -> None:
        async with worker(world) as one:
            await one.run(call())

    run(main())
    assert world.kinds() == ["intent", "charged", "failure"]
    charged = world.records()[1]
    assert isinstance(charged, ChargedRecord)
    assert charged.paid_pico == PRICE


@pytest.mark.parametrize("useless", ["unreadable", "too large"])
def test_an_answer_of_no_use_is_charged_at_the_service_tier_that_its_reply_names(useless: str) -> None:
    async def script(_model: Model, _number: int) -> ProviderReply:
        if useless == "unreadable":
            raise Charged("no choices", usage=REPLY.usage, service_tier="priority")
        return replace(REPLY, body={"text": "x" * 1_000_000}, service_tier="priority")

    world = World(provider=Bill(script))

    async def main() -> None:
        async with worker(world) as one:
            prices = {"standard": PRICE, "priority": 2 * PRICE}
            one.stage.parts = replace(one.stage.parts, price=lambda _model, _usage, tier, _ms: prices[tier])
            await one.run(call())

    run(main())
    charged = [r.paid_pico for r in world.records() if isinstance(r, ChargedRecord)]
    assert charged == [2 * PRICE] * len(world.provider.calls)


def test_an_outcome_is_written_however_long_the_broker_is_away() -> None:
    world = World()
    append = world.topic.append
    failures = iter(range(20))

    async def away(topic: str, key: bytes | None, value: bytes, *, partition: int | None = None) -> int:
        if next(failures, None) is not None:
            raise ConnectionError("no broker")
        return await append(topic, key, value, partition=partition)

    world.topic.append = away  # type: ignore[method-assign]

    async def main() -> None:
        async with worker(world) as one:
            await one.run(call())

    run(main())
    assert world.kinds() == ["intent", "completion"]
    assert len(world.provider.calls) == 1


def test_a_stopping_worker_writes_down_the_calls_in_flight_and_begins_no_others() -> None:
    async def slow(_model: Model, _number: int) -> ProviderReply:
        await asyncio.sleep(8)
        return REPLY

    world = World(provider=Bill(slow), permits=dict.fromkeys(Lane, 1))

    async def main() -> None:
        async with worker(world) as one:
            sent, waits = one.start(call("r1")), one.start(call("r2"))
            await world.provider.reached.wait()
            assert await one.stage.drain(20) == 0
            for task in (sent, waits, one.start(call("r3"))):
                with pytest.raises(Stale):
                    await task

    run(main())
    assert world.kinds() == ["intent", "completion"]
    assert len(world.provider.calls) == 1


class RolledBack:
    """The broker's fence, whose first transactions are aborted: who reads the log uncommitted sees their records all the same."""

    def __init__(self, world: World, times: int) -> None:
        self.world, self.times, self.real = world, times, MemoryFencedLog(world.topic)
        self.rolled_back = asyncio.Event()

    async def acquire(self, partition: int) -> None:
        await self.real.acquire(partition)

    async def release(self, partition: int) -> None:
        await self.real.release(partition)

    async def append(self, partition: int, member: bytes, *, urgent: bool = False) -> int:
        if self.times:
            self.times -= 1
            self.world.aborted.append(member)
            self.rolled_back.set()
            raise Unavailable("the transaction was aborted")
        return await self.real.append(partition, member, urgent=urgent)


@pytest.mark.parametrize("seen_by", ["its writer", "the next owner"])
def test_an_intent_that_was_rolled_back_is_no_attempt_and_nobody_waits_for_it(seen_by: str) -> None:
    """Even where only one payment is allowed, and the reader sees records of aborted transactions."""
    world = World(on_ambiguous="fail")

    async def main() -> float:
        fence = RolledBack(world, 2)
        one = make(world, fence, world.topic, world.topic.append, now)
        await one.ledger.assigned([0])
        task = one.start(call())
        await fence.rolled_back.wait()
        if seen_by == "the next owner":
            await one.crash()
            one = make(world, MemoryFencedLog(world.topic), world.topic, world.topic.append, now)
            await one.ledger.assigned([0])
        for member in world.aborted:
            one.ledger.learn(0, await world.topic.end(0), packets.ledger.decode(b"[" + member + b"]")[0])
        await (one.run(call()) if seen_by == "the next owner" else task)
        await one.crash()
        return asyncio.get_running_loop().time()

    took = run(main())
    assert len(world.provider.calls) == 1
    assert "ambiguous" not in world.kinds()
    assert world.kinds()[-1] == "completion"
    assert took < world.settings.call_timeout_s


class SlowToLetGo(MemoryFencedLog):
    """Its last commit takes a while."""

    def __init__(self, world: World) -> None:
        super().__init__(world.topic)
        self.releasing = asyncio.Event()

    async def release(self, partition: int) -> None:
        self.releasing.set()
        await asyncio.sleep(1)
        await super().release(partition)


class OneAtATime(MemoryFlightIndex):
    """Local files, which a second opening of the same partition finds locked."""

    opened = 0

    def __init__(self) -> None:
        assert OneAtATime.opened == 0, "in use by another worker"
        super().__init__()
        OneAtATime.opened += 1

    def close(self) -> None:
        OneAtATime.opened -= 1


def test_a_partition_that_is_taken_away_and_given_back_at_once_is_opened_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Even where the next rebalance cuts short whoever was told of the first: half a drop would leave its files locked."""
    monkeypatch.setattr(payers, "MemoryFlightIndex", OneAtATime)
    world = World()

    async def main() -> None:
        fence = SlowToLetGo(world)
        one = make(world, fence, world.topic, world.topic.append, now)
        await one.ledger.assigned([0])
        revoking = asyncio.create_task(one.ledger.revoked([0]))
        await fence.releasing.wait()
        revoking.cancel()
        await asyncio.gather(revoking, return_exceptions=True)
        await one.ledger.revoked([0])
        await one.ledger.assigned([0])
        await one.run(call())
        await one.ledger.close()

    run(main())
    assert world.kinds() == ["intent", "completion"]
    assert OneAtATime.opened == 0


def test_a_model_that_was_taken_to_learn_is_booked_as_exploration_and_its_fallback_as_an_answer() -> None:
    async def refuses_small(model: Model, _number: int) -> ProviderReply:
        if model.name == "small":
            raise Rejected("no", code="model_not_found")
        return REPLY

    explored = Chosen(model="small", expected=0.3, chance=0.01, explored=True)

    def purposes(script: Any) -> list[tuple[str, str]]:
        world = World(provider=Bill(script) if script else Bill())
        asked = call("r1", "small", "big")
        asked = asked.model_copy(update={"route": asked.route.model_copy(update={"chosen": explored})})

        async def main() -> None:
            async with worker(world) as one:
                await one.run(asked)

        run(main())
        return [(r.type, r.purpose) for r in world.records() if isinstance(r, Intent | Completion)]

    assert purposes(None) == [("intent", "exploration"), ("completion", "exploration")]
    assert purposes(refuses_small) == [("intent", "exploration"), ("intent", "answer"), ("completion", "answer")]

"""The exact stage over rows: one flight per fingerprint, every waiter answered once, nothing released before it is durable."""

import asyncio
from itertools import permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inference_engine.agents.exact import ExactStage
from inference_engine.agents.keeper import EvictionKeeper
from inference_engine.agents.safe import DeadLetter
from inference_engine.pipeline import exact
from inference_engine.pipeline.eviction import PolicyName
from inference_engine.pipeline.exact import shared
from inference_engine.pipeline.respond import failed
from inference_engine.schemas import packets
from inference_engine.schemas.answers import AnswerRecord, ErrorInfo
from inference_engine.schemas.costs import CostEvent
from inference_engine.schemas.record import Lane
from inference_engine.schemas.requests import Follow, Lookup, Miss, Request

from ..pipeline.support import NOW, answer, identity, request
from ..pipeline.test_respond import CLERK, completion, made
from .support import TOPICS, Clock, KeepAll, MemoryBroker, MemoryRows, event, outbox

STEPS = ("ask", "answer", "fail", "again", "restart")
MISSES = TOPICS.misses(Lane.STANDARD)


class World:
    def __init__(self) -> None:
        self.rows, self.broker, self.clock = MemoryRows(), MemoryBroker(), Clock()
        self.cancelled: set[str] = set()
        self.revoked: set[str] = set()
        self.restart()

    def restart(self) -> None:
        self.stage = ExactStage(
            self.rows,
            outbox(self.broker),
            CLERK,
            KeepAll(),
            self.clock,
            lease_ms=60_000,
            cancelled=lambda r: r.identity.job in self.cancelled,
            revoked=lambda r: r.source.fingerprint in self.revoked,
        )

    async def ask(self, *requests: Request, follow: Follow | None = None) -> None:
        await self.stage.on_lookups(event(TOPICS.lookups, packets.lookups.encode([Lookup(request=r, follow=follow) for r in requests])))

    async def answer(self, *records: AnswerRecord) -> None:
        await self.stage.on_answers(event(TOPICS.answers, packets.answers.encode(records)))

    def answered(self) -> list[str]:
        return [r["custom_id"] for r in self.broker.responses()]


def asked(custom_id: str, text: str = "What is a cat?") -> Request:
    return request(text, who=identity(custom_id))


async def test_one_flight_answers_everyone_who_asked_and_later_ones_hit() -> None:
    world = World()
    await world.ask(asked("r1"), asked("r2"))
    await world.ask(asked("r3"))
    assert len(world.broker.members(MISSES)) == 1
    assert world.answered() == []
    await world.answer(made(asked("r1")))
    assert sorted(world.answered()) == ["r1", "r2", "r3"]
    await world.ask(asked("r4"))
    assert sorted(world.answered()) == ["r1", "r2", "r3", "r4"]
    assert len(world.broker.members(MISSES)) == 1
    tiers = {r["custom_id"]: r["engine"]["cache"]["tier"] for r in world.broker.responses()}
    assert tiers == {"r1": "none", "r2": "exact", "r3": "exact", "r4": "exact"}


async def test_twins_in_two_packets_at_the_same_time_share_one_flight() -> None:
    world = World()
    await asyncio.gather(*(world.ask(asked(f"r{i}")) for i in range(5)))
    assert len(world.broker.members(MISSES)) == 1
    await world.answer(made(asked("r0")))
    assert sorted(world.answered()) == [f"r{i}" for i in range(5)]


async def test_a_flight_that_the_next_owner_can_not_see_is_never_sent() -> None:
    """The next owner takes the lanes in another order: it would start a second flight, and both would be paid."""
    world = World()
    world.rows.refuse = True
    with pytest.raises(ConnectionError):
        await world.ask(asked("r1"), asked("r2"))
    world.rows.refuse = False
    world.restart()
    await world.ask(asked("r2"))
    await world.ask(asked("r1"))
    assert [miss["request"]["identity"]["custom_id"] for miss in world.broker.members(MISSES)] == ["r2"]


async def test_an_heir_that_the_next_owner_can_not_see_is_never_sent() -> None:
    world = World()
    await world.ask(asked("r1"), asked("r2"))
    world.rows.refuse = True
    with pytest.raises(ConnectionError):
        await world.answer(failed(asked("r1"), ErrorInfo(code="over_budget", message="0.01"), world.clock.ms))
    world.rows.refuse = False
    await world.ask(asked("r3", "Another prompt"))  # what waited for a packet has gone by then, too
    assert [miss["request"]["identity"]["custom_id"] for miss in world.broker.members(MISSES)] == ["r1", "r3"]


async def test_nothing_but_the_answer_is_left_when_all_are_served() -> None:
    world = World()
    await world.ask(asked("r1"), asked("r2"))
    await world.answer(made(asked("r1")))
    assert [key[:1] for key in world.rows.rows[0]] == [b"a"]


async def test_waiters_survive_a_restart() -> None:
    world = World()
    await world.ask(asked("r1"), asked("r2"))
    world.restart()
    await world.stage.assigned([0])
    await world.answer(made(asked("r1")))
    assert sorted(world.answered()) == ["r1", "r2"]


async def test_a_refused_response_keeps_its_waiter() -> None:
    world = World()
    await world.ask(asked("r1"))
    world.broker.refuse = True
    with pytest.raises(ConnectionError):
        await world.answer(made(asked("r1")))
    world.broker.refuse = False
    await world.answer(made(asked("r1")))
    assert world.answered() == ["r1"]


async def test_an_error_goes_to_all_waiters_and_is_not_kept() -> None:
    world = World()
    await world.ask(asked("r1"), asked("r2"))
    await world.answer(failed(asked("r1"), ErrorInfo(code="exhausted", message="3 attempts"), world.clock.ms))
    assert [r["error"]["code"] for r in world.broker.responses()] == ["exhausted"] * 2
    await world.ask(asked("r3"))
    assert len(world.broker.members(MISSES)) == 2


async def test_a_waiter_inherits_the_flight_of_an_owner_whose_budget_ended() -> None:
    world = World()
    await world.ask(asked("r1"), asked("r2"), asked("r3"))
    await world.answer(failed(asked("r1"), ErrorInfo(code="over_budget", message="0.01"), world.clock.ms))
    assert world.answered() == ["r1"]
    flights = world.broker.members(MISSES)
    assert [m["request"]["identity"]["custom_id"] for m in flights] == ["r1", "r2"]
    await world.answer(made(asked("r2")))
    assert sorted(world.answered()) == ["r1", "r2", "r3"]


@pytest.mark.parametrize("redelivered", [False, True])
async def test_whoever_flies_itself_is_told_what_its_own_call_says_and_has_one_row(redelivered: bool) -> None:
    """An answer read back was too old for r2, which flew; then the first one's own came once more, young by a clock that had been wrong."""
    world = World()
    await world.ask(asked("r1"), asked("r2"), asked("r3"))
    old = made(asked("r1")).model_copy(update={"request": asked("r1"), "cacheable": False, "created_ms": 0, "ttl_s": 1})
    await world.answer(old)
    assert [m["request"]["identity"]["custom_id"] for m in world.broker.members(MISSES)] == ["r1", "r2"]
    await world.answer(made(asked("r1")))
    assert sorted(world.answered()) == ["r1", "r3"]
    if redelivered:
        await world.ask(asked("r2"))
    assert sorted(world.answered()) == ["r1", "r3"]
    await world.answer(made(asked("r2")))
    assert sorted(world.answered()) == ["r1", "r2", "r3"]
    assert {r["custom_id"]: r["engine"]["cache"]["tier"] for r in world.broker.responses()} == {"r1": "none", "r2": "none", "r3": "exact"}
    hits = [CostEvent.model_validate(c) for c in world.broker.members(TOPICS.costs)]
    assert [row.request_id for row in hits if row.kind == "answer"] == ["r3"], "the others have the ledger's"
    await world.ask(asked("r4"))
    assert world.answered()[-1] == "r4"


async def test_a_follower_waits_for_its_source_and_is_answered_under_its_own_name() -> None:
    world = World()
    source, follower = asked("r1"), asked("r2", "What are cats?")
    await world.ask(source, follower)  # both fly; the follower is then coalesced with the source
    follow = Follow(fingerprint=source.fingerprint, scope=source.scope, kind="coalesced", similarity=0.95, since_ms=world.clock.ms)
    await world.ask(follower, follow=follow)
    await world.answer(made(source))
    assert world.answered() == ["r1"]
    shared = packets.answers.decode(world.broker.topics[TOPICS.answers][0][1])
    await world.answer(*shared)
    assert world.answered() == ["r1", "r2"]
    assert world.broker.responses()[1]["engine"]["cache"] == {"tier": "coalesced", "similarity": 0.95, "source_id": source.fingerprint}


async def test_a_follower_of_a_failed_source_goes_back_to_lead_or_to_follow_another_one() -> None:
    world = World()
    source, follower = asked("r1"), asked("r2", "What are cats?")
    await world.ask(source)
    follow = Follow(fingerprint=source.fingerprint, scope=source.scope, kind="semantic", similarity=0.95, since_ms=world.clock.ms)
    await world.ask(follower, follow=follow)
    await world.answer(failed(source, ErrorInfo(code="exhausted", message="x"), world.clock.ms))
    back = world.broker.members(MISSES)[-1]
    assert (back["request"]["identity"]["custom_id"], back["fallen"]) == ("r2", [source.fingerprint])
    assert not back.get("skip_semantic")


async def test_requests_of_a_cancelled_job_are_answered_and_not_sent_on() -> None:
    world = World()
    world.cancelled.add("j")
    await world.ask(asked("r1"))
    assert [r["error"]["code"] for r in world.broker.responses()] == ["cancelled"]
    assert world.broker.members(MISSES) == []


async def test_a_packet_that_is_none_is_a_dead_letter() -> None:
    with pytest.raises(DeadLetter):
        await World().stage.on_lookups(event(TOPICS.lookups, b"{}"))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(["ask", "answer", "fail", "again", "restart"]), st.integers(0, 5), st.integers(0, 2)), max_size=25)
)
def test_every_request_is_answered_whatever_the_order(steps: list[tuple[str, int, int]]) -> None:
    """Any order of requests, answers, failures, redeliveries and restarts: in the end each identity has a response."""

    async def run() -> None:
        world = World()
        seen: dict[str, Request] = {}
        for what, who, text in steps:
            one = asked(f"r{who}-{text}", f"question {text}")
            if what in ("ask", "again"):
                seen[one.identity.custom_id] = one
                await world.ask(one)
            elif what == "restart":
                world.restart()
                await world.stage.assigned([0])
            else:
                await finish(world, text, fail=what == "fail")
        for text in range(3):
            await finish(world, text, fail=False)
        assert set(world.answered()) == set(seen)

    async def finish(world: World, text: int, *, fail: bool) -> None:
        for miss in [m for m in packets_of(world) if m.request.body["messages"][0]["content"] == f"question {text}"][-1:]:
            record = failed(miss.request, ErrorInfo(code="exhausted", message="x"), world.clock.ms) if fail else made(miss.request)
            await world.answer(record)

    def packets_of(world: World) -> list[Miss]:
        return [m for _, value in world.broker.topics[MISSES] for m in packets.misses.decode(value)]

    asyncio.run(run())


async def test_who_joins_while_an_owners_own_error_goes_out_flies_on() -> None:
    """The flight of an owner whose budget ended has no heir yet: whoever joins before it lands must not wait for nobody."""
    world = World()
    await world.ask(asked("r1"))
    over = failed(asked("r1"), ErrorInfo(code="over_budget", message="0.01"), world.clock.ms)
    await asyncio.gather(world.answer(over), world.ask(asked("r2")))
    assert [m["request"]["identity"]["custom_id"] for m in world.broker.members(MISSES)] == ["r1", "r2"]
    await world.answer(made(asked("r2")))
    assert world.answered() == ["r1", "r2"]


async def test_an_owners_own_error_delivered_again_after_a_restart_starts_no_second_heir() -> None:
    """Rows come back in another order than they were written in: the flight that was inherited stays with its heir."""
    world = World()
    await world.ask(asked("r1"), asked("r2"), asked("r3"))
    over = failed(asked("r1"), ErrorInfo(code="over_budget", message="0.01"), world.clock.ms)
    await world.answer(over)
    world.rows.rows[0] = dict(reversed(world.rows.rows[0].items()))
    world.restart()
    await world.stage.assigned([0])
    await world.answer(over)
    assert {m["request"]["identity"]["custom_id"] for m in world.broker.members(MISSES)} == {"r1", "r2"}


async def test_a_waiter_whose_row_was_refused_is_written_when_its_packet_comes_again() -> None:
    world = World()
    world.rows.refuse = True
    with pytest.raises(ConnectionError):
        await world.ask(asked("r1"))
    world.rows.refuse = False
    await world.ask(asked("r1"))
    await world.answer(made(asked("r1")))
    assert world.answered() == ["r1"]


async def test_a_request_under_way_is_not_answered_a_second_time_because_its_job_was_cancelled() -> None:
    """Delivered again after a crash: the call stage says what becomes of it, once; and an answer given stays given."""
    world = World()
    await world.ask(asked("r1"))
    world.cancelled.add("j")
    await world.ask(asked("r1"))
    assert world.answered() == []
    await world.answer(made(asked("r1")))
    await world.ask(asked("r1"))
    assert {r["id"] for r in world.broker.responses()} == {world.broker.responses()[0]["id"]}


@pytest.mark.parametrize("again", [0, 1])
@pytest.mark.parametrize("own_first", [False, True])
async def test_a_follower_that_also_completed_its_own_call_has_one_answer_row_and_one_payment_in_vain(own_first: bool, again: int) -> None:
    """A redelivered miss can be sent both ways. Whichever comes first is the answer; delivered again, nothing changes."""
    world = World()
    source, follower = asked("r1"), asked("r2", "What are cats?")
    await world.ask(source)
    await world.answer(made(source))
    await world.ask(follower)
    completed = completion(follower, attempt="own")
    own = CLERK.outcome(completed)
    assert own.answer is not None
    assert own.cost is not None
    follow = Follow(fingerprint=source.fingerprint, scope=source.scope, kind="semantic", similarity=0.95)
    await world.ask(follower, follow=follow)
    shared = packets.answers.decode(world.broker.topics[TOPICS.answers][0][1])
    order = [[own.answer], shared] if own_first else [shared, [own.answer]]
    for records in order * (1 + again):
        await world.answer(*records)
    rows: dict[str, CostEvent] = {own.cost.event_id: own.cost}
    for row in (CostEvent.model_validate(row) for row in world.broker.members(TOPICS.costs)):
        if row.request_id == "r2" and row.version >= getattr(rows.get(row.event_id), "version", 0):
            rows[row.event_id] = row
    assert sorted(row.kind for row in rows.values()) == (["answer"] if own_first else ["answer", "duplicate"])
    assert sum(row.base_cost_pico for row in rows.values()) == own.cost.base_cost_pico
    told = {r["engine"]["cache"]["tier"] for r in world.broker.responses() if r["custom_id"] == "r2"}
    assert told == {"none" if own_first else "semantic"}


def saying(request: Request, text: str) -> AnswerRecord:
    return made(request, answer=answer(text))


def ways_to_end(request: Request) -> dict[str, AnswerRecord]:
    """How one request can end, redelivered: by its own call, or with the answer of one source or another."""
    ways = {"own": saying(request, "its own")}
    for name in ("one", "other"):
        source = saying(asked(name, f"What is {name}?"), f"that of {name}")
        follow = Follow(fingerprint=source.fingerprint, scope=source.scope, kind="semantic", similarity=0.95)
        ways[name] = shared(source, Lookup(request=request, follow=follow), NOW)
    return ways


@pytest.mark.parametrize("at_once", [False, True])
@pytest.mark.parametrize("order", list(permutations(["own", "one", "other"], 2)))
async def test_a_request_that_ends_twice_and_otherwise_is_one_thing_to_everyone_whatever_is_delivered_again(
    order: tuple[str, str], at_once: bool
) -> None:
    world = World()
    owner, waiter = asked("r1"), asked("r2")
    ways = ways_to_end(owner)
    await world.ask(owner, waiter)
    if at_once:
        await asyncio.gather(*(world.answer(ways[name]) for name in order))
    else:
        for name in order:
            await world.answer(ways[name])
            await world.ask(owner, waiter)
    world.restart()
    await world.stage.assigned([0])
    await world.ask(owner, waiter, asked("r3"))
    told = {(r["custom_id"], r["id"], r["response"]["body"]["choices"][0]["message"]["content"]) for r in world.broker.responses()}
    assert sorted(name for name, _, _ in told) == ["r1", "r2", "r3"]
    assert len({said for _, _, said in told}) == 1


@pytest.mark.parametrize("gone", ["revoked", "old"])
async def test_an_answer_that_was_taken_back_or_is_too_old_gives_way_to_the_next_one(gone: str) -> None:
    world = World()
    ways = ways_to_end(asked("r1"))
    await world.ask(asked("r1"))
    await world.answer(ways["one"])
    if gone == "revoked":
        world.revoked.add(ways["one"].source.fingerprint)
    else:
        world.clock.ms += 1000 * ways["one"].ttl_s + 1
    own = ways["own"].model_copy(update={"created_ms": world.clock.ms})
    await world.answer(own)
    await world.ask(asked("r2"))
    assert [r["response"]["body"]["choices"][0]["message"]["content"] for r in world.broker.responses()] == ["that of one", "its own"]


@pytest.mark.parametrize(("policy", "gone"), [("lru", "r3"), ("cost_aware", "r2")])
async def test_after_a_start_a_stored_answer_is_kept_by_its_age_and_by_what_it_cost(policy: PolicyName, gone: str) -> None:
    world = World()
    paid = {"r1": 9_000_000, "r2": 10, "r3": 9_000_000}
    for i, (name, pico) in enumerate(paid.items()):
        record = made(asked(name, name))
        assert record.answer is not None
        worth = record.answer.model_copy(update={"paid_pico": pico})
        await world.answer(record.model_copy(update={"answer": worth, "created_ms": record.created_ms - i}))
    world.restart()
    world.stage._keeper = EvictionKeeper(policy, 2, None, 1)
    await world.stage.assigned([0])
    left = {exact.fingerprint_of(key) for key in world.rows.rows[0] if key[:1] == exact.ANSWER}
    assert left == {asked(name, name).fingerprint for name in paid if name != gone}

"""The learning stage over rows and topics in memory: joined in any order, learned once, durable before it is acknowledged, restored."""

import asyncio
from collections.abc import Sequence

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from inference_engine.agents.feedback import FeedbackStage
from inference_engine.agents.packer import WAIT_S
from inference_engine.agents.respond import RespondStage
from inference_engine.agents.routers import Routers
from inference_engine.agents.safe import DeadLetter
from inference_engine.connectors.taught_file import pack_router, unpack_router
from inference_engine.pipeline import vectors
from inference_engine.pipeline.feedback import Lesson, declined
from inference_engine.pipeline.taught_router import TaughtRouter, teach
from inference_engine.schemas import packets
from inference_engine.schemas.answers import Usage
from inference_engine.schemas.feedback import LessonRecord, Rated, Served
from inference_engine.schemas.ledger import Charged, LedgerRecord
from inference_engine.schemas.record import Lane
from inference_engine.schemas.requests import Chosen

from ..pipeline.feedback_support import COSTS, WORTH, lessons
from ..pipeline.support import identity, request
from ..pipeline.test_respond import CLERK, completion
from .support import TOPICS, Clock, MemoryBroker, MemoryRows, event, outbox
from .virtual_time import run


class School:
    """One worker's stage; what it publishes comes back to its routers."""

    def __init__(self) -> None:
        self.rows, self.broker, self.clock = MemoryRows(), MemoryBroker(), Clock()
        self.restart()

    def restart(self) -> None:
        self.routers = Routers()
        for _, value in self.broker.topics[TOPICS.routers]:
            self.routers.apply(value)
        self.stage = FeedbackStage(
            self.rows, outbox(self.broker), self.clock, default_tenant="t", default_job="j", taught=lambda tenant: self.routers.of(tenant)
        )

    async def take(self, news: Sequence[LessonRecord]) -> None:
        await self.stage.on_lessons(event(TOPICS.lessons, packets.lessons.encode(news)))
        await self.learned()

    async def learned(self) -> None:
        """Until nothing is being learned."""
        while tasks := [found.task for found in self.stage._classes.values() if found.task is not None]:
            await asyncio.gather(*tasks)
        for _, value in self.broker.topics[TOPICS.routers]:
            self.routers.apply(value)

    def state(self, tenant: str = "t") -> TaughtRouter:
        found = self.routers.of(tenant)
        assert found is not None
        return found


def news_of(made: Sequence[Lesson], tenant: str = "t") -> list[LessonRecord]:
    found: list[LessonRecord] = []
    for i, lesson in enumerate(made):
        who = identity(f"r{lesson.at_ms}-{i}", tenant=tenant)
        assert lesson.embedding is not None
        chosen = Chosen(model=lesson.model, expected=lesson.expected, chance=lesson.chance or 1.0, costs=COSTS)
        found.append(
            Served(identity=who, model=lesson.model, chosen=chosen, features=tuple(float(f) for f in lesson.features),
                   embedding=vectors.pack(lesson.embedding), at_ms=lesson.at_ms)
        )  # fmt: skip
        found.append(Rated(identity=who, score=lesson.score, at_ms=lesson.at_ms + 1))
    return found


async def test_feedback_on_served_answers_teaches_the_router_and_is_published() -> None:
    school = School()
    await school.take(news_of(lessons(600)))
    state = school.state()
    assert (state.status, state.lessons, state.models) == ("learned", 600, ("large", "small"))


async def test_what_was_served_and_what_was_said_meet_in_any_order() -> None:
    straight, mixed = School(), School()
    news = news_of(lessons(120))
    await straight.take(news)
    order = np.random.default_rng(0).permutation(len(news))
    await mixed.take([news[i] for i in order])
    assert mixed.state().means == straight.state().means


async def test_a_record_that_is_delivered_again_is_one_lesson() -> None:
    school = School()
    news = news_of(lessons(60))
    for _ in range(3):
        await school.take(news)
    assert school.state().lessons == 60
    assert len(school.broker.topics[TOPICS.routers]) == 1


async def test_what_comes_while_it_learns_or_rests_is_learned_without_another_word() -> None:
    school = School()
    await school.stage.on_lessons(event(TOPICS.lessons, packets.lessons.encode(news_of(lessons(100)))))
    (found,) = school.stage._classes.values()
    while not school.broker.topics[TOPICS.routers]:  # noqa: ASYNC110 - the first is published, and then it rests
        await asyncio.sleep(0)
    assert found.task is not None  # it rests
    await school.take(news_of(lessons(100, seed=1, from_ms=1_000)))
    assert school.state().lessons == 200


async def test_what_was_learned_is_restored_on_assignment_and_learned_on() -> None:
    school = School()
    await school.take(news_of(lessons(100)))
    before = school.state()
    school.restart()
    await school.stage.assigned([0])
    await school.learned()
    assert school.state().version == before.version  # nothing new: nothing is learned again
    await school.take(news_of(lessons(100, seed=1, from_ms=1_000)))
    assert (school.state().version, school.state().lessons) == (before.version + 1, 200)


async def test_a_state_that_was_not_published_before_a_crash_is_published_by_the_next_owner() -> None:
    school = School()
    await school.take(news_of(lessons(100)))
    school.broker.topics[TOPICS.routers].clear()
    school.restart()
    await school.stage.assigned([0])
    await school.learned()
    assert school.state().lessons == 100


async def test_a_partition_that_went_is_not_taught_here_any_more() -> None:
    school = School()
    await school.take(news_of(lessons(100)))
    await school.stage.revoked([0])
    assert not school.stage._classes


async def test_tenants_learn_apart() -> None:
    school = School()
    small_is_bad = {key: 0.9 if key[0] == "large" else 0.1 for key in WORTH}
    await school.take([*news_of(lessons(100)), *news_of(lessons(100, worth=small_is_bad), "other")])
    mine, other = school.state(), school.state("other")
    assert other.means[1] < mine.means[1] - 0.2


async def test_a_refused_write_is_told_to_the_source_so_that_it_comes_again() -> None:
    school = School()
    school.rows.refuse = True
    with pytest.raises(ConnectionError):
        await school.take(news_of(lessons(60)))
    school.rows.refuse = False
    await school.take(news_of(lessons(60)))
    assert school.state().lessons == 60


async def test_a_fall_of_quality_raises_an_alert_steps_back_and_is_learned_anew() -> None:
    school = School()
    good = [*lessons(400, expected=None)]
    await school.take(news_of(good))
    assert school.state().status == "learned"
    worse = {("large", True): 0.85, ("large", False): 0.85, ("small", True): 0.05, ("small", False): 0.05}
    fallen = lessons(60, seed=5, worth=worse, large=0.3, from_ms=10_000, expected=0.9)
    with capture_logs() as logs:
        await school.take(news_of(fallen))
    state = school.state()
    assert [entry["log_level"] for entry in logs if "worth less than was foretold" in entry["event"]] == ["error"]
    assert (state.status, state.drifts, state.since_ms >= 10_000) == ("drifted", 1, True)
    assert state.means[0] > state.means[1]
    await school.take(news_of(lessons(600, seed=6, from_ms=20_000)))
    assert (school.state().status, school.state().drifts) == ("learned", 1)


@pytest.mark.parametrize("value", [b"", b"\xff", b"[1]", b'{"custom_id": "r1", "score": 2}'])
async def test_what_is_no_feedback_is_a_dead_letter(value: bytes) -> None:
    school = School()
    with pytest.raises(DeadLetter, match="not feedback"):
        await school.stage.on_feedback(event(TOPICS.feedback, value))
    assert not school.broker.topics[TOPICS.lessons]


async def test_feedback_goes_to_the_partition_of_its_tenant() -> None:
    school = School()
    await school.stage.on_feedback(event(TOPICS.feedback, b'{"custom_id": "r1", "score": 0.5}', headers=(("tenant", b"acme"),)))
    [member] = school.broker.members(TOPICS.lessons)
    assert member["identity"] == {"tenant": "acme", "job": "j", "custom_id": "r1"}
    assert member["score"] == 0.5


async def test_feedback_is_kept_beside_the_costs_once_however_often_it_is_delivered() -> None:
    school = School()
    for _ in range(2):
        await school.stage.on_feedback(event(TOPICS.feedback, b'{"custom_id": "r1", "score": 0.5}'))
    first, second = school.broker.members(TOPICS.costs)
    assert (first["kind"], first["request_id"], first["score"], first["event_id"]) == ("feedback", "r1", 0.5, second["event_id"])


class Replayed:
    """A ledger that has read everything."""

    async def owned(self, partition: int) -> None: ...

    def learn(self, partition: int, offset: int, record: LedgerRecord) -> bool:
        return True


@pytest.mark.parametrize("learning", [True, False])
async def test_a_paid_answer_is_a_lesson_where_a_router_that_learns_chose_its_model(learning: bool) -> None:
    broker = MemoryBroker()
    stage = RespondStage(outbox(broker), CLERK, Replayed())
    chosen = Chosen(model="small", expected=0.4, explored=True, costs=COSTS) if learning else None
    record = completion(request(), chosen=chosen, purpose="exploration" if learning else "answer")
    await stage.on_ledger(event(TOPICS.ledger, packets.ledger.encode([record])))
    assert len(broker.members(TOPICS.answers)) == 1
    [cost] = broker.members(TOPICS.costs)
    assert cost.get("purpose", "") == ("exploration" if learning else "answer")
    assert cost["kind"] == "answer"
    assert [m["chosen"]["model"] for m in broker.members(TOPICS.lessons)] == (["small"] if learning else [])


async def test_an_answer_that_was_held_back_teaches_that_its_model_was_worth_nothing_beside_what_is_said_of_the_one_given() -> None:
    broker, school = MemoryBroker(), School()
    stage = RespondStage(outbox(broker), CLERK, Replayed())
    asked, chosen = request(), Chosen(model="small", expected=0.4, costs=COSTS)
    held = Charged(flight=asked.flight, attempt="a1", number=1, model="small", paid_pico=8, usage=Usage(input_tokens=1, output_tokens=1),
                   reason="refused", discarded="refusal", chosen=chosen, request=asked, at_ms=1)  # fmt: skip
    given = completion(asked, number=2, attempt="a2", chosen=chosen)
    given = given.model_copy(update={"answer": given.answer.model_copy(update={"model_used": "large"})})
    await stage.on_ledger(event(TOPICS.ledger, packets.ledger.encode([held, given])))
    news: list[LessonRecord] = []
    for _, value in broker.topics[TOPICS.lessons]:
        news += packets.lessons.decode(value)
    await school.take([*news, Rated(identity=asked.identity, score=0.9, at_ms=9)])
    found = sorted((lesson.model, lesson.score, lesson.expected) for lesson in school.stage._classes["t"].lessons.values())
    assert found == [("large", 0.9, None), ("small", 0.0, 0.4)]


async def test_an_imported_router_stays_until_enough_is_heard_here() -> None:
    school = School()
    imported = teach(lessons(200, seed=3), np.random.default_rng(0), version=9)
    school.broker.topics[TOPICS.routers].append((None, pack_router("t", imported)))
    school.routers.apply(pack_router("t", imported))
    await school.take(news_of(lessons(20)))
    assert school.state().version == 9
    await school.take(news_of(lessons(120)))
    assert (school.state().version, school.state().lessons) == (10, 120)


def test_a_lesson_keeps_an_urgent_answer_in_work_no_longer_than_its_lane_allows() -> None:
    """As many ledger records are in work at once as the respond stage may have: a tenth of a second for each would be its whole rate."""

    async def main() -> float:
        stage = RespondStage(outbox(MemoryBroker()), CLERK, Replayed())
        chosen = Chosen(model="small", costs=COSTS)
        for number in range(20):
            asked = request(f"question {number}", who=identity(f"r{number}")).model_copy(update={"lane": Lane.EXPRESS})
            await stage.on_ledger(event(TOPICS.ledger, packets.ledger.encode([completion(asked, chosen=chosen)])))
        return asyncio.get_running_loop().time()

    assert run(main()) <= 20 * 2 * WAIT_S[Lane.EXPRESS]


def test_a_cheap_answer_that_only_waited_for_another_to_agree_is_no_lesson() -> None:
    asked, chosen = request(), Chosen(model="small", costs=COSTS)
    held = Charged(flight=asked.flight, attempt="a1", number=1, model="small", paid_pico=8, usage=Usage(input_tokens=1, output_tokens=1),
                   reason="", discarded="agreement", chosen=chosen, request=asked, at_ms=1)  # fmt: skip
    assert declined(held) is None
    assert declined(held.model_copy(update={"discarded": "structure"})) is not None


def test_an_older_state_never_replaces_a_newer_one() -> None:
    routers = Routers()
    made = {version: pack_router("t", teach(lessons(10), np.random.default_rng(0), version=version)) for version in (1, 2)}
    for raw in (made[2], made[1], b"nonsense", None):
        routers.apply(raw)
    assert routers.shown()["t"]["version"] == 2
    assert orjson.dumps(routers.shown())
    assert unpack_router(made[1])[1].version == 1


@settings(max_examples=15, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.booleans()), max_size=12), st.integers(0, 11))
def test_a_restart_at_any_point_changes_nothing(steps: list[tuple[int, bool]], at: int) -> None:
    """Served and rated in any order, some of it twice, with a crash in between: the rows are those of an undisturbed run."""
    base = news_of(lessons(4))

    async def play(crash: bool) -> dict[bytes, bytes]:
        school = School()
        for i, (which, is_rating) in enumerate(steps):
            await school.take([base[2 * which + is_rating]])
            if crash and i == at:
                school.restart()
                await school.stage.assigned([0])
        return dict(school.rows.rows[0])

    assert asyncio.run(play(True)) == asyncio.run(play(False))

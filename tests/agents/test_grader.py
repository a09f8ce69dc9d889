"""A share of the answers is graded by a model: once each, durably, at a price that stands in the costs, and the router learns from it."""

import asyncio
from collections.abc import Mapping
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inference_engine.agents.grader import Grader
from inference_engine.agents.packer import WAIT_S
from inference_engine.agents.respond import RespondStage
from inference_engine.pipeline.errors import Rejected
from inference_engine.pipeline.feedback import Lesson
from inference_engine.pipeline.models import Model
from inference_engine.pipeline.ports import ProviderReply, Vector
from inference_engine.schemas import packets
from inference_engine.schemas.answers import Usage
from inference_engine.schemas.feedback import LessonRecord
from inference_engine.schemas.ledger import Completion, Failure, Intent
from inference_engine.schemas.record import JsonObject, Lane
from inference_engine.schemas.requests import Call, Chosen, Request, Route

from ..pipeline.feedback_support import COSTS
from ..pipeline.support import catalogue, identity, request
from ..pipeline.test_respond import CLERK, completion
from .support import TOPICS, MemoryBroker, event, outbox
from .test_feedback import Replayed, School
from .test_flow import Flow
from .virtual_time import run

BIG = catalogue().get("big")


class Teacher:
    """Answers with the question, and grades by what the tests say."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.graded: list[dict[str, str]] = []
        self.says: str | Exception = '{"score": 6}'

    async def complete(
        self, model: Model, body: JsonObject, *, timeout: float, metadata: Mapping[str, str], begun: object = None
    ) -> ProviderReply:
        text = body["messages"][-1]["content"]
        await asyncio.sleep(0)
        if text.startswith('{"request"'):
            self.graded.append(orjson.loads(text))
            if isinstance(self.says, Exception):
                raise self.says
            said = self.says
        else:
            self.asked.append(text)
            said = f"re: {text}"
        finish = "content_filter" if "refuse" in text else "stop"
        choice = {"index": 0, "message": {"role": "assistant", "content": said}, "finish_reason": finish}
        return ProviderReply({"id": "c", "choices": [choice]}, Usage(input_tokens=10, output_tokens=5), finish, "p")

    async def close(self) -> None:
        return None


class GradedFlow(Flow):
    """Every answer is graded, unless the rate is changed; the router learns."""

    def __init__(self, rate: float = 1.0) -> None:
        super().__init__(semantic=False)
        self.provider: Any = Teacher()
        self.rate = rate
        self.refused: set[str] = set()

    def _route(self, request: Request, embedding: Vector | None = None) -> Route:
        chosen = Chosen(model="small", expected=0.5, costs=COSTS) if request.model == "auto" else None
        return Route(models=("small",), reason="test", chosen=chosen)

    def label(self, record: Completion) -> Call | None:
        return Grader(BIG, self.rate, lambda tenant: tenant not in self.refused, self.clock).label(record)

    def awaited(self, partition: int, flight: str) -> bool:
        return False

    async def ask(self, custom_id: str, text: str, model: str = "auto", **engine: Any) -> None:
        body = {"model": model, "messages": [{"role": "user", "content": text}]}
        line = {"custom_id": custom_id, "body": body, "engine": {"priority": "express", **engine}}
        await self.broker.append(TOPICS.requests, None, orjson.dumps(line), partition=0)

    def ledgered(self) -> list[Any]:
        return [record for packet in self.topic.packets.get(0, []) for record in packets.ledger.decode(packet)]

    def costs(self, kind: str) -> list[dict[str, Any]]:
        return [row for row in self.broker.members(TOPICS.costs) if row["kind"] == kind]

    async def lessons(self) -> dict[str, Lesson]:
        """What the learning stage makes of its topic, by custom_id."""
        school = School()
        news: list[LessonRecord] = []
        for _, value in self.broker.topics[TOPICS.lessons]:
            news += packets.lessons.decode(value)
        await school.take(news)
        names = {identity(f"r{i}", job="default", tenant="local").key: f"r{i}" for i in range(100)}
        found = school.stage._classes["local"].lessons if school.stage._classes else {}
        return {names[key[1:]]: lesson for key, lesson in found.items()}


async def test_a_grade_is_a_lesson_and_its_price_a_row_of_the_request_that_was_graded() -> None:
    flow = GradedFlow()
    await flow.start()
    for i in range(3):
        await flow.ask(f"r{i}", f"question {i}")
    await flow.run()
    assert flow.provider.graded[0] == {"request": "question 0", "system": "", "answer": "re: question 0"}
    assert {name: (lesson.score, lesson.judged) for name, lesson in (await flow.lessons()).items()} == {
        f"r{i}": (0.6, True) for i in range(3)
    }
    rows = flow.costs("judge")
    assert sorted((r["request_id"], r["purpose"], r["model_used"], r["base_cost_pico"], r["score"]) for r in rows) == [
        (f"r{i}", "grade", "big", 400, 0.6) for i in range(3)
    ]
    intents = [r.purpose for r in flow.ledgered() if isinstance(r, Intent)]
    assert sorted(intents) == ["answer"] * 3 + ["grade"] * 3
    assert len(flow.broker.responses()) == 3, "nobody is answered by a grade"


@settings(max_examples=25, deadline=None)
@given(st.lists(st.sampled_from(["crash", "ledger", "calls", "none"]), min_size=1, max_size=6), st.sampled_from([1.0, 0.5]))
def test_whatever_is_delivered_again_or_lost_with_its_worker_an_answer_is_graded_once(mishaps: list[str], rate: float) -> None:
    async def play() -> None:
        flow = GradedFlow(rate)
        await flow.start()
        for i, mishap in enumerate(mishaps):
            await flow.ask(f"r{i}", f"question {i}")
            if mishap == "calls":
                for lane in Lane:
                    flow.again(TOPICS.calls(lane), 3)
            if mishap == "ledger":
                flow.again(TOPICS.ledger, 4)
            await flow.run()
            if mishap == "crash":
                await flow.start()
                flow.again(TOPICS.ledger, 100)
                flow.again(TOPICS.calls(Lane.BATCH), 100)
        await flow.run()
        shown = [data["request"] for data in flow.provider.graded]
        assert len(set(shown)) == len(shown)
        assert len(shown) == len(mishaps) or rate < 1
        assert {name for name, lesson in (await flow.lessons()).items() if lesson.judged} == {f"r{text.split()[1]}" for text in shown}
        assert len({row["event_id"] for row in flow.costs("judge")}) == len(shown)

    asyncio.run(play())


async def test_a_question_that_its_worker_died_with_is_asked_by_the_next() -> None:
    flow = GradedFlow()
    await flow.start()
    await flow.ask("r0", "question 0")
    calls = TOPICS.calls(Lane.BATCH)
    while not flow.broker.topics[calls]:
        for topic, offset, value in [new for new in flow._new() if new[0] != calls]:
            await flow.handle(topic, value, offset)
        await asyncio.sleep(0)
    flow.done[calls] = 0
    await flow.start()
    await flow.run()
    assert (await flow.lessons())["r0"].score == 0.6


@pytest.mark.parametrize("reply", ["I can't tell", '{"score": 99}', Rejected("no such model here", code="model_not_found")])
async def test_a_judge_that_fails_or_says_nothing_teaches_nothing_and_fails_no_request(reply: str | Exception) -> None:
    flow = GradedFlow()
    flow.provider.says = reply
    await flow.start()
    await flow.ask("r0", "question 0")
    await flow.run()
    assert flow.texts() == {"r0": {"re: question 0"}}
    assert await flow.lessons() == {}
    assert flow.costs("error") == []
    failures = [r for r in flow.ledgered() if isinstance(r, Failure)]
    assert {r.purpose for r in failures} == ({"grade"} if isinstance(reply, Exception) else set())


@pytest.mark.parametrize(
    ("text", "asked"),
    [("question", {"max_cost_usd": "1"}), ("please refuse it", {}), ("question", {"model": "small"})],
    ids=["capped", "refusal", "by name"],
)
async def test_what_a_request_does_not_allow_or_would_teach_nothing_is_not_asked(text: str, asked: dict[str, Any]) -> None:
    flow = GradedFlow()
    await flow.start()
    await flow.ask("r0", text, **asked)
    await flow.run()
    assert len(flow.texts()) == 1
    assert flow.provider.graded == []


async def test_answers_of_a_tenant_whose_data_may_not_go_to_the_judge_are_not_shown_to_it() -> None:
    flow = GradedFlow()
    flow.refused = {"local"}
    await flow.start()
    await flow.ask("r0", "question 0")
    await flow.run()
    assert flow.provider.graded == []


async def test_an_answer_that_a_cache_gave_is_not_graded() -> None:
    flow = GradedFlow()
    await flow.start()
    for i in range(3):
        await flow.ask(f"r{i}", "the same question")
    await flow.run()
    assert len(flow.provider.graded) == 1


def test_an_answer_that_was_graded_before_it_was_given_is_not_graded_again() -> None:
    grader = Grader(BIG, 1.0, lambda _: True, lambda: 1)
    record = completion(request(), chosen=Chosen(model="small", costs=COSTS))
    assert grader.label(record) is not None
    assert grader.label(record.model_copy(update={"judged": 0.8})) is None


def test_a_question_keeps_an_urgent_answer_in_work_no_longer_than_its_lane_allows() -> None:
    async def main() -> float:
        grader = Grader(BIG, 1.0, lambda _: True, lambda: 1)
        stage = RespondStage(outbox(MemoryBroker()), CLERK, Replayed(), label=grader.label)
        for number in range(20):
            asked = request(f"question {number}", who=identity(f"r{number}")).model_copy(update={"lane": Lane.EXPRESS})
            record = completion(asked, chosen=Chosen(model="small", costs=COSTS))
            assert grader.label(record) is not None
            await stage.on_ledger(event(TOPICS.ledger, packets.ledger.encode([record])))
        return asyncio.get_running_loop().time()

    assert run(main()) <= 20 * 2 * WAIT_S[Lane.EXPRESS]

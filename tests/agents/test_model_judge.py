"""A model as the judge: asked through the ledger, booked, heard in time, and paid for by nobody where nobody wants to know any more."""

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import orjson
import pytest

from inference_engine.agents.embed import EmbedQueue
from inference_engine.agents.learned import LearnedSharing
from inference_engine.agents.learners import Learners, Promised
from inference_engine.agents.model_judge import ModelJudge
from inference_engine.agents.questions import Questions
from inference_engine.agents.sharing import Sharing
from inference_engine.pipeline.errors import Rejected
from inference_engine.pipeline.models import Model
from inference_engine.pipeline.ports import Case, ProviderReply
from inference_engine.schemas.answers import Told, Usage
from inference_engine.schemas.ledger import Completion, Failure, Intent
from inference_engine.schemas.record import JsonObject, Lane
from inference_engine.schemas.requests import Call, Identity, Waiter

from ..pipeline.support import catalogue
from .learning import QUICK, LearningFlow, question
from .support import TOPICS
from .test_learned import SUBJECTS, ask_all

SMALL = catalogue().get("small")
WAYS = {"card": "close it in the app at once and ask for a new one", "account": "write to us and wait until we have written back"}


class Judged:
    """Answers questions in free text, never twice in the same words, and compares answers by what they begin with."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.compared = 0
        self.reply: str | Exception | None = None
        """In place of the comparison."""

    async def complete(
        self, model: Model, body: JsonObject, *, timeout: float, metadata: Mapping[str, str], begun: object = None
    ) -> ProviderReply:
        text = body["messages"][-1]["content"]
        await asyncio.sleep(0)
        if text.startswith('{"reference"'):
            said = self._compare(orjson.loads(text))
        else:
            self.asked.append(text)
            subject, once = text.split()[2], "".join("abcdefghij"[int(digit)] for digit in str(len(self.asked)))
            said = f"{WAYS.get(subject, 'ask somebody else')}, it is your {subject}, dear {once}"
        choice = {"index": 0, "message": {"role": "assistant", "content": said}, "finish_reason": "stop"}
        return ProviderReply({"id": "c", "choices": [choice]}, Usage(input_tokens=10, output_tokens=5), "stop", f"p{len(self.asked)}")

    def _compare(self, data: dict[str, Any]) -> str:
        self.compared += 1
        if isinstance(self.reply, Exception):
            raise self.reply
        if self.reply is not None:
            return self.reply
        same = [i for i, other in enumerate(data["answers"], 1) if other.split(",")[0] == data["reference"].split(",")[0]]
        return orjson.dumps({"same": same}).decode()

    async def close(self) -> None:
        return None


class Never:
    """The judge of those that the model may not see."""

    at_once = 1

    def __init__(self) -> None:
        self.asked = 0

    async def agree(self, own: Told, others: Any, case: Case) -> list[bool | None]:
        self.asked += 1
        return [None for _ in others]


class JudgedFlow(LearningFlow):
    """With a model as the judge."""

    def __init__(self) -> None:
        super().__init__(replace(QUICK, audit_rate=1e-9))
        self.provider: Any = Judged()
        self.judge: ModelJudge
        self.questions: Questions
        self.otherwise = Never()
        self.refused: set[str] = set()

    def share(self, queue: EmbedQueue | None) -> Sharing:
        def promised(tenant: str, feature: str) -> Promised:
            return Promised(tenant, "", self.settings.bound)

        self.questions = Questions(self.out.ask)
        self.judge = ModelJudge(SMALL, self.questions, self.otherwise, lambda tenant: tenant not in self.refused, self.clock)
        self.learned = LearnedSharing(Learners(self.decisions, self.settings), promised, self.shards, self.judge, self.clock)
        self.shards.listener = self.learned
        return self.learned

    def judged(self, partition: int, record: Completion | Failure) -> None:
        self.questions.heard(partition, record)

    def awaited(self, partition: int, flight: str) -> bool:
        return self.questions.awaits(partition, flight)

    def costs(self, kind: str) -> list[dict[str, Any]]:
        return [row for row in self.broker.members(TOPICS.costs) if row["kind"] == kind]


async def test_it_learns_to_share_from_what_the_model_says_of_free_text() -> None:
    flow = JudgedFlow()
    await flow.start()
    tiers = await ask_all(flow, "r", 110, SUBJECTS[:2])
    assert tiers[60:].count("semantic") > 20
    assert all(SUBJECTS[int(name[1:]) % 2] in str(said) for name, said in flow.texts().items())
    assert flow.provider.compared > 20


async def test_every_question_is_intended_first_and_is_a_row_of_the_request_that_it_is_booked_to() -> None:
    flow = JudgedFlow()
    await flow.start()
    await ask_all(flow, "r", 4, SUBJECTS[:1])
    assert flow.purposes() == ["answer", "answer", "judge", "answer", "judge", "answer", "judge"]
    rows = flow.costs("judge")
    assert [(row["request_id"], row["purpose"], row["base_cost_pico"]) for row in rows] == [(f"r{i}", "judge", 400) for i in (1, 2, 3)]
    assert sum(row.get("base_cost_pico", 0) for row in flow.broker.members(TOPICS.costs)) == 400 * 7
    assert len(flow.costs("answer")) == 4
    assert len(flow.broker.responses()) == 4, "nobody is answered by a judge"


async def test_the_same_answers_are_not_compared_twice() -> None:
    flow = JudgedFlow()
    await flow.start()
    own, other = Told(kind="text", digest="a", text="open the app, now"), Told(kind="text", digest="b", text="open the app, later")
    case = Case(0, "s", Waiter(identity=Identity(tenant="t", job="j", custom_id="r"), lane=Lane.BATCH, model="small", accepted_ms=0))
    for one, two in ((own, [other, other]), (own, [other]), (other, [own])):
        said = await answered(flow, asyncio.create_task(flow.judge.agree(one, two, case)))
        assert said == [True] * len(two)
    assert flow.provider.compared == 1


async def answered(flow: JudgedFlow, asking: "asyncio.Task[list[bool | None]]") -> list[bool | None]:
    while not asking.done():
        await flow.run()
        await asyncio.sleep(0)
    return await asking


async def test_a_question_that_was_paid_before_a_crash_is_answered_from_the_ledger() -> None:
    flow = JudgedFlow()
    await flow.start()
    own, other = Told(kind="text", digest="a", text="open the app, now"), Told(kind="text", digest="b", text="open the app, later")
    case = Case(0, "s", Waiter(identity=Identity(tenant="t", job="j", custom_id="r"), lane=Lane.BATCH, model="small", accepted_ms=0))
    for _ in range(2):
        assert await answered(flow, asyncio.create_task(flow.judge.agree(own, [other], case))) == [True]
        await flow.start()
    assert flow.provider.compared == 1


@pytest.mark.parametrize("reply", ["I can't tell", '{"same": [99]}', Rejected("no such model here", code="model_not_found")])
async def test_a_judge_that_fails_or_says_nothing_teaches_nothing_and_fails_no_request(reply: str | Exception) -> None:
    flow = JudgedFlow()
    flow.provider.reply = reply
    await flow.start()
    assert set(await ask_all(flow, "r", 30, SUBJECTS[:1])) == {"none"}
    assert all(len(said) == 1 for said in flow.texts().values())
    assert flow.costs("error") == []
    assert next(iter(flow.learned._learners.all())).learner.policy.shares is False
    failures = [r for r in flow.ledgered() if isinstance(r, Failure)]
    assert {r.purpose for r in failures} == ({"judge"} if isinstance(reply, Exception) else set())


async def test_a_worker_that_died_pays_for_no_question_that_was_not_sent() -> None:
    flow = JudgedFlow()
    await flow.start()
    await ask_all(flow, "r", 1, SUBJECTS[:1])
    await flow.ask("r1", question(SUBJECTS[0], 1))
    calls = TOPICS.calls(Lane.STANDARD)
    while not flow.broker.topics[calls]:
        for topic, offset, value in [new for new in flow._new() if new[0] != calls]:
            await flow.handle(topic, value, offset)
        await asyncio.sleep(0)
    flow.done[calls] = 0  # the question lies on the topic, and the worker dies
    await flow.start()
    await flow.settle()
    assert flow.provider.compared == 0
    assert "judge" not in {r.purpose for r in flow.ledgered() if isinstance(r, Intent)}
    ends = [r for r in flow.ledgered() if isinstance(r, Failure)]
    assert [(r.purpose, r.error.code) for r in ends] == [("judge", "not_awaited")]
    assert flow.costs("error") == []


async def test_what_a_request_or_a_tenant_does_not_allow_is_not_asked() -> None:
    flow = JudgedFlow()
    flow.refused = {"strict"}
    await flow.start()
    for i in range(3):
        await flow.ask_as("strict", f"s{i}", question("card", i))
        await flow.ask(f"capped{i}", question("card", i), max_cost_usd="1")
        await flow.settle()
    assert flow.provider.compared == 0
    assert flow.otherwise.asked == 4


async def test_who_loses_the_partition_or_the_patience_learns_nothing() -> None:
    own, other = Told(kind="text", digest="a", text="open the app"), Told(kind="text", digest="b", text="open the door")
    case = Case(0, "s", Waiter(identity=Identity(tenant="t", job="j", custom_id="r"), lane=Lane.BATCH, model="small", accepted_ms=0))

    async def lost(partition: int, call: Call) -> None:
        await asyncio.sleep(0)

    async def down(partition: int, call: Call) -> None:
        raise ConnectionError("no broker")

    questions = Questions(lost)
    judge = ModelJudge(SMALL, questions, Never(), lambda _: True, lambda: 1, wait_s=30)
    asking = [asyncio.create_task(judge.agree(own, [other], case)) for _ in range(2)]
    await asyncio.sleep(0.01)
    questions.forget([1])
    assert len(questions._asked) == 1, "the same question is asked once"
    questions.forget([0])
    assert await asyncio.gather(*asking) == [[None], [None]]
    for questions, wait_s in ((Questions(lost), 0.01), (Questions(down), 30)):
        broken = ModelJudge(SMALL, questions, Never(), lambda _: True, lambda: 1, wait_s=wait_s)
        assert await broken.agree(own, [other], case) == [None]
        assert not questions._asked


async def test_a_model_that_takes_no_temperature_is_asked_without_one() -> None:
    flow = JudgedFlow()
    await flow.start()
    own, other = Told(kind="text", digest="a", text="open the app, now"), Told(kind="text", digest="b", text="open the app, later")
    case = Case(0, "s", Waiter(identity=Identity(tenant="t", job="j", custom_id="r"), lane=Lane.BATCH, model="small", accepted_ms=0))
    asked: list[Call] = []

    async def lost(partition: int, call: Call) -> None:
        asked.append(call)

    for sampling in (True, False):
        model = replace(SMALL, supports_sampling=sampling)
        await ModelJudge(model, Questions(lost), Never(), lambda _: True, lambda: 1, wait_s=0.01).agree(own, [other], case)
    assert ["temperature" in call.request.body for call in asked] == [True, False]

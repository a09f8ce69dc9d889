"""A flow whose sharing is learned: the provider answers by what is meant, which the tests know."""

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import orjson

from inference_engine.agents.embed import EmbedQueue
from inference_engine.agents.judge import EmbeddingJudge
from inference_engine.agents.learned import LearnedSharing
from inference_engine.agents.learners import Learners, Promised
from inference_engine.agents.sharing import Sharing
from inference_engine.pipeline.answer_groups import Vote
from inference_engine.pipeline.learned import Learner
from inference_engine.pipeline.learned_settings import LearnedSettings
from inference_engine.pipeline.learned_state import pack
from inference_engine.pipeline.models import Model
from inference_engine.pipeline.ports import Neighbour, Point, ProviderReply
from inference_engine.schemas.answers import Usage
from inference_engine.schemas.corrections import Correction
from inference_engine.schemas.ledger import Completion, Intent
from inference_engine.schemas.packets import ledger as ledger_packets
from inference_engine.schemas.record import JsonObject
from inference_engine.schemas.requests import Identity

from ..pipeline.support import body
from .support import TOPICS, MemoryRows, event
from .test_flow import Flow

QUICK = LearnedSettings(bound=0.05, first_lessons=20, caution=0.5, refit_every=20, audit_rate=0.2, rest=10)
WORDS = [
    *("please", "now", "today", "again", "kindly", "quickly", "maybe", "there"),
    *("here", "soon", "later", "first", "once", "still", "even"),
]


class Meaning:
    """Answers with the subject of the question, its third word, in the terms of the `era`. Keeps its bill."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.era = "old"

    async def complete(
        self, model: Model, body: JsonObject, *, timeout: float, metadata: Mapping[str, str], begun: object = None
    ) -> ProviderReply:
        text = body["messages"][-1]["content"]
        await asyncio.sleep(0)
        self.asked.append(text)
        said = f"{self.era} {text.split()[2]}"
        choice = {"index": 0, "message": {"role": "assistant", "content": said}, "finish_reason": "stop"}
        return ProviderReply({"id": "c", "choices": [choice]}, Usage(input_tokens=10, output_tokens=5), "stop", f"p{len(self.asked)}")

    async def close(self) -> None:
        return None


class LearningFlow(Flow):
    """`bounds`: by tenant, else that of the settings. The table of decisions outlives a crash."""

    def __init__(self, settings: LearnedSettings = QUICK, bounds: Mapping[str, float] | None = None) -> None:
        super().__init__()
        self.settings = settings
        self.bounds = bounds or {}
        self.provider: Any = Meaning()
        self.decisions = MemoryRows()
        self.learned: LearnedSharing

    def share(self, queue: EmbedQueue | None) -> Sharing:
        assert queue is not None

        def promised(tenant: str, feature: str) -> Promised:
            return Promised(tenant, "", self.bounds.get(tenant, self.settings.bound))

        learners = Learners(self.decisions, self.settings)
        self.learned = LearnedSharing(learners, promised, self.shards, EmbeddingJudge(queue, 0.85), self.clock)
        self.shards.listener = self.learned
        self.corrections.listeners.append(self.learned.corrected)
        return self.learned

    async def settle(self) -> None:
        """Hands records on until nothing new comes, and everything that came is compared; what is to be kept by now is."""
        await self.run()
        for _ in range(1_000):
            if not self.learned._judging:
                break
            await asyncio.wait(self.learned._judging, timeout=0.005)
            await self.run()
        assert not self.learned._judging, "answers are compared, and never come to an end"
        await asyncio.gather(*(one.writing for one in self.learned._learners.all() if one.writing is not None))

    async def ask_as(self, tenant: str, custom_id: str, text: str) -> None:
        line = orjson.dumps({"custom_id": custom_id, "body": body(text), "engine": {"priority": "express"}})
        await self.ingest.on_request(event(TOPICS.requests, line, headers=(("tenant", tenant.encode()),)))

    async def report_wrong(self, custom_id: str) -> Correction:
        """As the command does, by the cost rows."""
        rows = [row for row in self.broker.members(TOPICS.costs) if row["kind"] == "answer" and row["request_id"] == custom_id]
        identity = Identity(tenant=rows[-1]["tenant_id"], job=rows[-1]["job"], custom_id=custom_id)
        near = rows[-1].get("cache_tier") in ("semantic", "coalesced")
        correction = Correction(fingerprint=rows[-1]["source_id"], reported=identity, by_similarity=near, at_ms=self.clock())
        await self.broker.append(TOPICS.corrections, correction.key, correction.model_dump_json().encode())
        self.corrections.apply(correction.model_dump_json().encode())
        return correction

    def tiers(self) -> dict[str, str]:
        return {r["custom_id"]: r["engine"]["cache"]["tier"] for r in self.broker.responses()}

    def ledgered(self) -> list[Any]:
        return [record for packet in self.topic.packets.get(0, []) for record in ledger_packets.decode(packet)]

    def purposes(self) -> list[str]:
        """Of the intents, each of which was completed."""
        records = self.ledgered()
        done = {r.attempt: r.purpose for r in records if isinstance(r, Completion)}
        intents = {r.attempt: r.purpose for r in records if isinstance(r, Intent)}
        assert done == intents
        return [r.purpose for r in records if isinstance(r, Intent)]

    async def teach(self, tenant: str = "local") -> None:
        """The table holds a learner that shares from a cosine of about 0.8 on; as if an earlier worker had learned it."""
        state = sharing_learner(self.settings).state()
        if self.settings.audit_rate == 1.0:  # all of them, however sure they are
            state = replace(state, audit_scale=1e9)
        await self.decisions.write(0, {Promised(tenant, "", 0.0).key: pack(state)})


def sharing_learner(settings: LearnedSettings) -> Learner:
    learner, random = Learner(settings), np.random.default_rng(3)
    vector = np.zeros(1, dtype=np.float32)
    for i in range(600):
        similarity = float(random.uniform(0.4, 1.0))
        point = Point(f"{i:064x}", vector, "t", "s", "about it", 0, 1 << 60)
        considered = learner.consider("a question", "s", [Neighbour(point, similarity)], i)
        assert considered.best is not None
        learner.counted("s", considered.best.row)
        learner.learn("s", f"{i + 10_000:064x}", considered, [Vote(point.id, similarity > 0.75)], i)
    assert 0.7 < learner.policy.floor < 0.85
    return learner


def question(subject: str, i: int) -> str:
    """The same meaning for one subject, in some hundred wordings: their cosine is about 0.85."""
    return f"where is {subject} and how do I get it back {WORDS[i % 15]} {WORDS[(i // 15 + i + 1) % 15]}"

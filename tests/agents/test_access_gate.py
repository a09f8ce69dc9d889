"""The policy static with CACHE_MIN_ACCESS_COUNT: an answer is shared by similarity only after it was given often enough."""

from dataclasses import replace

from inference_engine.agents.compose import sharing_of
from inference_engine.agents.embed import EmbedQueue
from inference_engine.agents.settings import CachingConfig, Settings
from inference_engine.agents.sharing import Sharing, StaticSharing
from inference_engine.pipeline.semantic import StaticPolicy

from ..pipeline.support import catalogue
from .support import TOPICS
from .test_flow import POLICY, Flow

QUESTION = "how do I reset my password"


class GatedFlow(Flow):
    """An answer must have been given twice from a cache."""

    def __init__(self) -> None:
        super().__init__()
        self.tell_served = True

    def share(self, queue: EmbedQueue | None) -> Sharing:
        return StaticSharing(replace(POLICY, min_access_count=2), self.shards.served)

    async def asked(self, custom_id: str, text: str) -> str:
        """The tier that answered."""
        await self.ask(custom_id, text)
        await self.run()
        found: str = {r["custom_id"]: r["engine"]["cache"]["tier"] for r in self.broker.responses()}[custom_id]
        return found


async def test_exact_hits_and_shared_answers_open_the_gate_for_similar_questions() -> None:
    flow = GatedFlow()
    await flow.start()
    assert await flow.asked("paid", QUESTION) == "none"
    assert await flow.asked("near-0", f"{QUESTION} please") == "none"
    assert await flow.asked("exact-1", QUESTION) == "exact"
    assert await flow.asked("near-1", f"{QUESTION} today") == "none"
    assert await flow.asked("exact-2", QUESTION) == "exact"
    assert await flow.asked("near-2", f"{QUESTION} quickly") == "semantic"
    assert list(flow.shards._shards[0].served.values()) == [3]


async def test_after_a_start_it_is_known_again_how_often_an_answer_was_given() -> None:
    flow = GatedFlow()
    await flow.start()
    for name in ("paid", "exact-1", "exact-2"):
        await flow.asked(name, QUESTION)
    await flow.start()
    for _, value in flow.broker.topics[TOPICS.vectors]:
        flow.shards.apply(0, value)
    assert await flow.asked("near", f"{QUESTION} please") == "semantic"


async def test_a_prompt_that_is_answered_anew_begins_at_zero() -> None:
    flow = GatedFlow()
    await flow.start()
    for name in ("paid", "exact-1", "exact-2"):
        await flow.asked(name, QUESTION)
    flow.clock.ms += 2 * 3600 * 1000
    assert await flow.asked("paid-again", QUESTION) == "none"
    assert await flow.asked("near", f"{QUESTION} please") == "none"


async def test_without_the_gate_nobody_is_told_how_often_an_answer_was_given() -> None:
    flow = Flow()
    await flow.start()
    for name in ("paid", "exact"):
        await flow.ask(name, QUESTION)
        await flow.run()
    assert len(flow.broker.members(TOPICS.vectors)) == 1


def test_the_gate_is_that_of_the_settings_and_is_off_by_default() -> None:
    gated = Settings(caching=CachingConfig(policy="static", min_access_count=4))
    assert sharing_of(gated, catalogue()) == StaticPolicy(threshold=0.92, min_access_count=4)
    assert CachingConfig().min_access_count == 0

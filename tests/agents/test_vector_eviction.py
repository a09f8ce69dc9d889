"""What leaves a full semantic tier is what CACHE_EVICTION_POLICY names: hits count, and what they saved does."""

import numpy as np
import pytest

from inference_engine.agents.keeper import EvictionKeeper
from inference_engine.agents.shards import Shards
from inference_engine.connectors.vector_index import BruteForceIndex
from inference_engine.pipeline import vectors
from inference_engine.pipeline.eviction import PolicyName
from inference_engine.schemas import packets
from inference_engine.schemas.answers import VectorRecord

from .support import TOPICS, Clock
from .test_flow import Flow, NoTail

PLANTS = {"fern": "how often do I water a fern", "rose": "may a rose stand in the sun", "moss": "which soil does moss grow on"}


def near(plant: str, word: str) -> str:
    return f"{PLANTS[plant]} {word}"


@pytest.mark.parametrize("policy", ["lru", "lfu", "cost_aware"])
async def test_a_prompt_that_was_hit_outlives_one_that_was_not(policy: PolicyName) -> None:
    flow = Flow()
    flow.vector_keeper = EvictionKeeper(policy, 2, None, 1)
    await flow.start()
    for name, text in (("fern", PLANTS["fern"]), ("rose", PLANTS["rose"]), ("hit", near("fern", "please")), ("moss", PLANTS["moss"])):
        await flow.ask(name, text)
        await flow.run()
    await flow.ask("kept", near("fern", "now"))
    await flow.run()
    await flow.ask("gone", near("rose", "now"))
    await flow.run()
    tiers = {r["custom_id"]: r["engine"]["cache"]["tier"] for r in flow.broker.responses()}
    assert (tiers["hit"], tiers["kept"], tiers["gone"]) == ("semantic", "semantic", "none")


async def test_those_that_joined_its_call_count_as_hits_of_a_prompt() -> None:
    flow = Flow()
    flow.vector_keeper = EvictionKeeper("lfu", 2, None, 1)
    await flow.start()
    await flow.ask("fern", PLANTS["fern"])
    await flow.ask("with", near("fern", "please"))
    await flow.run()
    for plant in ("rose", "moss"):
        await flow.ask(plant, PLANTS[plant])
        await flow.run()
    await flow.ask("kept", near("fern", "now"))
    await flow.run()
    tiers = {r["custom_id"]: r["engine"]["cache"]["tier"] for r in flow.broker.responses()}
    assert sorted((tiers["fern"], tiers["with"])) == ["coalesced", "none"]
    assert tiers["kept"] == "semantic"


async def test_an_answer_says_in_the_topic_what_it_cost() -> None:
    flow = Flow()
    await flow.start()
    await flow.ask("fern", PLANTS["fern"])
    await flow.run()
    assert [record["paid_pico"] for record in flow.broker.members(TOPICS.vectors)] == [400]


async def test_cost_aware_keeps_the_dear_answers_after_a_start_too() -> None:
    clock = Clock()

    def record(i: int, paid_pico: int) -> VectorRecord:
        vector = vectors.pack(np.eye(8, dtype=np.float32)[i])
        return VectorRecord(tenant="t", scope="s", fingerprint=f"{i:064x}", text=f"q{i}", vector=vector, created_ms=clock(),
                            expires_ms=clock() + 1000, paid_pico=paid_pico)  # fmt: skip

    shards = Shards(lambda _: BruteForceIndex(8, clock=clock), NoTail(), EvictionKeeper("cost_aware", 2, None, 1), clock)  # type: ignore[arg-type]
    await shards.assigned([0])
    shards.apply(0, packets.vectors.encode([record(0, 9_000), record(1, 10), record(2, 10), record(3, 10)]))
    found = (await shards.search(0, "t", "s", np.eye(8, dtype=np.float32)[:1], 8))[0]
    assert sorted(n.point.text for n in found) == ["q0", "q3"]
    await shards.stop()

"""The learned decision in the running engine: who shares, what is audited, what is kept, and what ends it."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prometheus_client import REGISTRY
from structlog.testing import capture_logs

from inference_engine.agents.learners import Promised
from inference_engine.pipeline.learned_state import unpack
from inference_engine.pipeline.ports import Neighbour, Vectors
from inference_engine.schemas.record import JsonObject, Lane

from ..pipeline.support import body
from .learning import QUICK, LearningFlow, question
from .support import LANES, TOPICS
from .test_flow import AGAIN, QUESTIONS, STEPS

SUBJECTS = ("card", "account", "parcel", "ticket")
NO_AUDITS = replace(QUICK, audit_rate=1e-9)


async def ask_all(flow: LearningFlow, name: str, count: int, subjects: Sequence[str] = SUBJECTS, begin: int = 0) -> list[str]:
    """One after the other, from the wording `begin` on; returns the tiers."""
    for i in range(count):
        await flow.ask(f"{name}{i}", question(subjects[i % len(subjects)], begin + i))
        await flow.settle()
        flow.clock.ms += 10
    tiers = flow.tiers()
    return [tiers[f"{name}{i}"] for i in range(count)]


async def test_it_shares_nothing_until_it_has_compared_enough_answers_and_then_paraphrases() -> None:
    flow = LearningFlow()
    await flow.start()
    tiers = await ask_all(flow, "r", 110)
    assert set(tiers[:20]) == {"none"}
    assert tiers[60:].count("semantic") > 20
    assert all(said == {f"old {SUBJECTS[int(name[1:]) % 4]}"} for name, said in flow.texts().items())
    assert flow.learned.shown()["sharing"] == 1


async def test_what_was_learned_outlives_the_worker() -> None:
    flow = LearningFlow(NO_AUDITS)
    await flow.start()
    await ask_all(flow, "r", 110)
    await flow.start()
    flow.shards.apply(0, flow.broker.topics[TOPICS.vectors][0][1])  # the index is rebuilt from its topic
    await flow.ask("again", question("card", 140))
    await flow.settle()
    assert flow.tiers()["again"] == "semantic"


async def test_a_state_that_cannot_be_read_shares_nothing_and_is_told() -> None:
    flow = LearningFlow()
    await flow.start()
    await flow.decisions.write(0, {Promised("local", "", 0.0).key: b"not a state"})
    assert set(await ask_all(flow, "r", 8)) == {"none"}


async def test_tenants_and_scopes_never_share_at_cosine_one() -> None:
    flow = LearningFlow(NO_AUDITS)
    await flow.teach("a")
    await flow.teach("b")
    await flow.start()
    text = question("card", 1)
    for tenant in ("a", "b"):
        await flow.ask_as(tenant, f"first-{tenant}", text)
        await flow.settle()
    assert flow.tiers() == {"first-a": "none", "first-b": "none"}
    await flow.ask_as("b", "second-b", question("card", 2))
    await flow.settle()
    assert flow.tiers()["second-b"] == "semantic", "its own answer is found: so the index was asked above"
    assert flow.provider.asked == [text, text]


@pytest.mark.parametrize("tenants", [("a", "a"), ("a", "b")])
async def test_a_point_of_another_tenant_is_refused_even_where_the_index_finds_it(tenants: tuple[str, str]) -> None:
    flow = LearningFlow(NO_AUDITS)
    for tenant in tenants:
        await flow.teach(tenant)
    await flow.start()
    await flow.ask_as(tenants[0], "first", question("card", 1))
    await flow.settle()
    shard = flow.shards._shards[0]
    search = shard.index.search

    def everybodys(tenant: str, scope: str, vectors: Vectors, limit: int) -> list[list[Neighbour]]:
        add, _ = shard.take()
        shard.index.upsert(add)
        request = flow.broker.members(TOPICS.misses(Lane.EXPRESS))[0]["request"]
        return search(tenants[0], request["scope"], vectors, limit)

    shard.index.search = everybodys  # type: ignore[method-assign]
    await flow.ask_as(tenants[1], "second", question("card", 2))
    await flow.settle()
    assert flow.tiers()["second"] == ("semantic" if tenants[0] == tenants[1] else "none")


async def test_a_tenant_that_was_promised_none_gets_no_answer_by_similarity() -> None:
    flow = LearningFlow(NO_AUDITS, bounds={"strict": 0.0})
    await flow.teach("strict")
    await flow.teach("local")
    await flow.start()
    for i in range(3):
        await flow.ask_as("strict", f"s{i}", question("card", i))
        await flow.ask_as("local", f"l{i}", question("card", i))
        await flow.settle()
    tiers = flow.tiers()
    assert [tiers[f"s{i}"] for i in range(3)] == ["none"] * 3
    assert [tiers[f"l{i}"] for i in range(3)] == ["none", "semantic", "semantic"]


def turns(*texts: str) -> list[JsonObject]:
    """A user's and an assistant's words in turns."""
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]


async def test_a_last_turn_shares_only_with_that_of_the_same_conversation() -> None:
    flow = LearningFlow(NO_AUDITS)
    await flow.teach()
    await flow.start()
    began, otherwise = ("I lost it", "I am sorry to hear that"), ("I found it", "I am glad to hear that")
    again, empty = question("card", 5), " "
    for name, messages in (
        ("first", turns(*began, question("card", 1))),
        ("same conversation", turns(*began, question("card", 2))),
        ("another", turns(*otherwise, question("card", 3))),
        ("none before", turns(question("card", 4))),
        ("said before", turns(again, "tell me more", question("card", 1), "tell me more", again)),
        ("said before, too", turns(again, "tell me more", question("card", 1), "tell me more", question("card", 6))),
        ("repeats itself", turns(again, "tell me more", question("card", 1), "tell me more", again + " ")),
        ("empty", turns(*began, empty)),
    ):
        line = {"custom_id": name, "body": {**body(""), "messages": messages}, "engine": {"priority": "express"}}
        await flow.broker.append(TOPICS.requests, None, orjson.dumps(line), partition=0)
        await flow.settle()
    assert {name for name, tier in flow.tiers().items() if tier == "semantic"} == {"same conversation"}


async def test_an_audited_hit_is_paid_for_under_its_purpose_and_its_answer_is_its_own() -> None:
    flow = LearningFlow(replace(QUICK, audit_rate=1.0))
    await flow.teach()
    await flow.start()
    await flow.ask("r0", question("card", 0))
    await flow.settle()
    flow.provider.era = "new"
    await flow.ask("r1", question("card", 1))
    await flow.settle()
    assert flow.purposes() == ["answer", "audit"]
    assert flow.texts()["r1"] == {"new card"}
    assert flow.tiers()["r1"] == "none"
    rows = [row for row in flow.broker.members(TOPICS.costs) if row["kind"] == "answer"]
    assert [(row["request_id"], row["purpose"], row["base_cost_pico"]) for row in rows] == [("r0", "answer", 400), ("r1", "audit", 400)]
    await flow.learned.close()
    lessons = unpack(flow.decisions.rows[0][Promised("local", "", 0.0).key]).lessons
    assert (lessons[-1].at_ms, lessons[-1].agrees) == (flow.clock.ms, False)


async def test_audits_stand_for_all_the_hits_they_were_drawn_from() -> None:
    flow = LearningFlow(replace(QUICK, audit_rate=0.1))
    await flow.teach()
    await flow.start()
    tiers = await ask_all(flow, "r", 120, ["card"])
    audits = flow.purposes().count("audit")
    assert 3 <= audits <= 40
    await flow.learned.close()
    lessons = unpack(flow.decisions.rows[0][Promised("local", "", 0.0).key]).lessons
    stand_for = sum(lesson.weight**2 for lesson in lessons if lesson.weight > 1.0)
    assert stand_for == pytest.approx(tiers.count("semantic") + audits, rel=0.4)


async def test_answers_that_changed_end_the_sharing_and_that_is_told() -> None:
    flow = LearningFlow(replace(QUICK, audit_rate=0.5))
    await flow.teach()
    await flow.start()
    before = REGISTRY.get_sample_value("inference_semantic_fallbacks_total", {"scopes": "one"}) or 0.0
    assert (await ask_all(flow, "old", 30)).count("semantic") > 5
    flow.provider.era = "new"
    with capture_logs() as logs:
        await ask_all(flow, "new", 60, begin=40)
    assert [entry["log_level"] for entry in logs if "broke the promised bound" in entry["event"]] == ["warning"]
    shown = flow.learned.shown()
    assert shown["fallbacks"] == 1
    assert (REGISTRY.get_sample_value("inference_semantic_fallbacks_total", {"scopes": "one"}) or 0.0) == before + 1
    stale = {name for name, said in flow.texts().items() if name.startswith("new") and said != {f"new {SUBJECTS[int(name[3:]) % 4]}"}}
    assert len(stale) < 30
    assert stale.isdisjoint({f"new{i}" for i in range(45, 60)})


async def test_prompts_that_pend_together_share_by_the_same_decision_and_are_audited_too() -> None:
    shared, audited = [], []
    for rate in (1e-9, 1.0):
        flow = LearningFlow(replace(QUICK, audit_rate=rate))
        await flow.teach()
        await flow.start()
        for i in range(3):
            await flow.ask(f"r{i}", question("card", i))
        await flow.ask("other", "something else entirely is what I want to know about the weather")
        await flow.settle()
        shared.append(sorted(flow.tiers().values()))
        audited.append(sorted(flow.purposes()))
    assert shared == [["coalesced", "coalesced", "none", "none"], ["none"] * 4]
    assert audited == [["answer", "answer"], ["answer", "answer", "audit", "audit"]]


async def test_nothing_pends_together_before_anything_was_learned() -> None:
    flow = LearningFlow()
    await flow.start()
    for i in range(4):
        await flow.ask(f"r{i}", question("card", i))
    await flow.settle()
    assert set(flow.tiers().values()) == {"none"}


async def test_an_index_that_is_down_counts_as_requests_without_a_hit() -> None:
    flow = LearningFlow()
    await flow.start()
    flow.shards._rest_until = float("inf")
    assert await ask_all(flow, "r", 3) == ["none"] * 3
    assert next(iter(flow.learned._learners.all())).learner.state().seen == (None, None, None)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("rate", [0.3, 1.0])
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
@given(steps=st.lists(STEPS, max_size=14))
def test_with_audits_too_each_is_answered_once_and_paid_at_most_once(rate: float, steps: list[tuple[str, int, int]]) -> None:
    async def run() -> None:
        flow = LearningFlow(replace(QUICK, audit_rate=rate))
        await flow.teach()
        await flow.start()
        asked: set[str] = set()
        for what, a, b in steps:
            flow.clock.ms += 1000
            if what == "ask":
                number = (a + b) % len(QUESTIONS)
                asked.add(f"r{a}-{number}")
                await flow.ask(f"r{a}-{number}", f"where is {QUESTIONS[number]} and how do I get it", priority=LANES[a % 2])
            elif what == "again":
                flow.again(AGAIN[a], b)
            else:
                await flow.run()
                if what == "crash":
                    await flow.start()
        await flow.settle()
        assert set(flow.texts()) == asked
        assert len(flow.provider.asked) == len(set(flow.provider.asked))

    asyncio.run(run())

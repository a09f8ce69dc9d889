"""A leader that fails hands over to the next: one of its followers is called, and the others follow that one."""

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from inference_engine.pipeline.errors import Rejected
from inference_engine.pipeline.models import Model
from inference_engine.pipeline.ports import Begun, ProviderReply
from inference_engine.schemas.record import JsonObject, Lane

from .support import LANES, TOPICS
from .test_flow import READ, Echo, Flow

WORDS = ("", "now", "today", "please", "kindly", "soon", "again", "here")
ASKED = {f"r{i}": f"please tell me how do I reset the password of my account {word}".strip() for i, word in enumerate(WORDS)}
"""Each of them is near enough to each other to share."""


class Refuses(Echo):
    """Refuses the first prompts that it is asked, each whenever it comes; answers the others."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count
        self.refused: dict[str, None] = {}

    async def complete(
        self, model: Model, body: JsonObject, *, timeout: float, metadata: Mapping[str, str], begun: Begun | None = None
    ) -> ProviderReply:
        text = body["messages"][-1]["content"]
        if text not in self.asked and len(self.refused) < self.count:
            self.refused[text] = None
        if text in self.refused:
            await asyncio.sleep(0)
            raise Rejected("no such thing", code="provider_rejected")
        return await super().complete(model, body, timeout=timeout, metadata=metadata, begun=begun)

    @property
    def calls(self) -> int:
        return len(self.refused) + len(self.asked)


class Handover(Flow):
    """A flow whose worker may die in the midst of its work."""

    def __init__(self, refuse: int) -> None:
        super().__init__()
        self.refuses = Refuses(refuse)
        self.provider = self.refuses

    async def die_after(self, records: int) -> None:
        """So many records are handled; what was under way then is cut off and comes again, to a worker that knows the topics and rows.

        Calls end first: one that is cut off may be billed twice, and that is another matter.
        """
        work: dict[asyncio.Task[None], tuple[str, int]] = {}
        while records > 0:
            work |= {asyncio.create_task(self.handle(topic, value, i)): (topic, i) for topic, i, value in self._new()}
            if not work:
                break
            done, _ = await asyncio.wait(work, timeout=0.005, return_when=asyncio.FIRST_COMPLETED)
            records -= len(done)
            for task in done:
                del work[task]
                task.result()
        calls = [task for task, (topic, _) in work.items() if topic.startswith("calls")]
        await asyncio.gather(*calls)
        for task, (topic, offset) in work.items():
            if task not in calls:
                task.cancel()
                self.done[topic] = min(self.done[topic], offset)
        await asyncio.gather(*(task for task in work if task not in calls), return_exceptions=True)
        await self.start()


async def ask_all(flow: Flow, lane: Lane, asked: Sequence[str] = tuple(ASKED)) -> None:
    for custom_id in asked:
        await flow.ask(custom_id, ASKED[custom_id], priority=lane)


def told(flow: Flow) -> Counter[str]:
    """How many were told what. Each was told one thing only."""
    texts = flow.texts()
    assert all(len(said) == 1 for said in texts.values()), texts
    return Counter(next(iter(said)) for said in texts.values())


@pytest.mark.parametrize("refused", range(len(ASKED) + 1))
async def test_each_leader_that_is_refused_costs_one_more_call_and_the_rest_share_one_answer(refused: int) -> None:
    flow = Handover(refused)
    await flow.start()
    await ask_all(flow, Lane.BATCH)
    await flow.run()
    assert flow.refuses.calls == min(refused + 1, len(ASKED))
    answered = {} if refused == len(ASKED) else {f"re: {flow.provider.asked[0]}": len(ASKED) - refused}
    assert told(flow) == Counter({"provider_rejected": refused, **answered}) - Counter()
    tiers = Counter(r["engine"]["cache"]["tier"] for r in flow.broker.responses() if r["response"])
    assert tiers == Counter({"none": 1, "coalesced": len(ASKED) - refused - 1} if answered else {}) - Counter()


async def test_who_comes_to_a_leader_that_failed_before_leads_or_follows_the_next_one_and_later_ones_do_not_find_it() -> None:
    flow = Handover(1)
    await flow.start()
    first, came, later = tuple(ASKED)[:1], tuple(ASKED)[1:5], tuple(ASKED)[5:]
    await ask_all(flow, Lane.STANDARD, first)
    await flow.run()
    fallen = flow.broker.members(TOPICS.lookups)[0]["request"]["fingerprint"]
    for asked in (came, later):
        await ask_all(flow, Lane.STANDARD, asked)
        await flow.run()
    sent_there = [m for m in flow.broker.members(TOPICS.lookups) if (m.get("follow") or {}).get("fingerprint") == fallen]
    assert {m["request"]["identity"]["custom_id"] for m in sent_there} == set(came)
    assert flow.refuses.calls == 2
    assert told(flow) == {"provider_rejected": 1, f"re: {flow.provider.asked[0]}": len(ASKED) - 1}


@pytest.mark.parametrize("topic", [TOPICS.requests, TOPICS.lookups, TOPICS.misses(Lane.STANDARD), TOPICS.answers])
async def test_who_was_refused_is_told_the_same_when_it_comes_again_though_its_likes_were_answered(topic: str) -> None:
    """Asked anew, under the same name, it may share their answer."""
    flow = Handover(1)
    await flow.start()
    for custom_id in tuple(ASKED)[:3]:
        await ask_all(flow, Lane.STANDARD, (custom_id,))
        await flow.run()
    for crash in (False, True):
        if crash:
            await flow.start()
            flow.again(TOPICS.vectors, 100)
        flow.again(topic, 100)
        await flow.run()
        assert told(flow) == {"provider_rejected": 1, f"re: {flow.provider.asked[0]}": 2}
    flow.clock.ms += 1000
    await ask_all(flow, Lane.STANDARD, tuple(ASKED)[:1])
    await flow.run()
    assert flow.texts()["r0"] == {"provider_rejected", f"re: {flow.provider.asked[0]}"}
    assert flow.refuses.calls == 2


async def test_an_answer_that_left_the_table_before_its_point_left_the_index_is_not_waited_for_twice() -> None:
    flow = Handover(0)
    await flow.start()
    await ask_all(flow, Lane.STANDARD, tuple(ASKED)[:1])
    await flow.run()
    flow.rows.rows[0].clear()
    await ask_all(flow, Lane.STANDARD, tuple(ASKED)[1:])
    await flow.run()
    assert all(m["follow"]["fallen"] for m in flow.broker.members(TOPICS.lookups)[-6:])
    assert max(len(m.get("fallen", ())) for m in flow.broker.members(TOPICS.misses(Lane.STANDARD))) == 1
    assert flow.refuses.calls == 2


async def test_a_follower_whose_deadline_is_near_does_not_wait_for_another_leader() -> None:
    flow = Handover(1)
    await flow.start()
    for custom_id, text in ASKED.items():
        await flow.ask(custom_id, text, priority="batch", deadline=30)
    while not flow.refuses.refused:
        await flow.die_after(1)
    flow.clock.ms += 15_001
    await flow.run()
    assert flow.refuses.calls == len(ASKED)
    assert told(flow)["provider_rejected"] == 1


TOPIC = st.sampled_from([*READ, TOPICS.ledger])
STEPS = st.one_of(
    st.tuples(st.just("ask"), st.sampled_from(sorted(ASKED)), st.sampled_from(LANES)),
    st.tuples(st.just("die"), st.integers(1, 40), st.none()),
    st.tuples(st.just("run"), st.none(), st.none()),
    st.tuples(st.just("again"), TOPIC, st.integers(1, 4)),
)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(0, len(ASKED)), st.lists(STEPS, max_size=14))
def test_whatever_dies_or_comes_again_each_is_given_one_answer_and_none_is_paid_twice(
    refused: int, steps: list[tuple[str, Any, Any]]
) -> None:
    """Also a follower whose new leader dies with its worker. Who was refused and asks again may be given another one's answer then."""

    async def run() -> None:
        flow = Handover(refused)
        await flow.start()
        asked: dict[str, Any] = {}
        for what, which, more in [*((("ask", custom_id, Lane.BATCH)) for custom_id in sorted(ASKED)[:5]), *steps]:
            flow.clock.ms += 100
            if what == "ask":
                lane = asked.setdefault(which, more)
                await flow.ask(which, ASKED[which], priority=lane)
            elif what == "again":
                flow.again(which, more)
            elif what == "die":
                await flow.die_after(which)
            else:
                await flow.run()
        await flow.run()
        texts = flow.texts()
        assert set(texts) == set(asked)
        assert all(len(said - {"provider_rejected"}) <= 1 for said in texts.values()), texts
        assert {ASKED[custom_id] for custom_id, said in texts.items() if "provider_rejected" in said} == set(flow.refuses.refused)
        assert len(flow.provider.asked) == len(set(flow.provider.asked))
        assert flow.refuses.calls <= len(asked)

    asyncio.run(run())

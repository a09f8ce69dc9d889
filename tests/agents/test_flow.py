"""The whole flow over topics and channels in memory: every request is answered exactly once, whatever is delivered twice or fails."""

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from inference_engine.agents.attempt import CallParts, CallSettings
from inference_engine.agents.call import CallStage
from inference_engine.agents.call_agent import CallAgent
from inference_engine.agents.coalesce import CoalesceSettings, CoalesceStage
from inference_engine.agents.embed import Book, EmbedQueue, EmbedStage
from inference_engine.agents.exact import ExactStage, Keeper
from inference_engine.agents.ingest import IngestStage
from inference_engine.agents.ledger import LedgerSettings, LedgerStage
from inference_engine.agents.limits import Limits
from inference_engine.agents.outbox import Outbox
from inference_engine.agents.pending import Group, Pending
from inference_engine.agents.prefix import PrefixRoom
from inference_engine.agents.respond import RespondStage
from inference_engine.agents.route import RouteStage, guarded
from inference_engine.agents.safe import DeadLetter
from inference_engine.agents.semantic import SemanticStage
from inference_engine.agents.shards import Shards
from inference_engine.agents.sharing import Sharing, StaticSharing
from inference_engine.connectors.corrections import Corrections
from inference_engine.connectors.embedder import HashEmbedder
from inference_engine.connectors.memory_ledger import MemoryFencedLog, MemoryLedgerTopic
from inference_engine.connectors.vector_index import BruteForceIndex
from inference_engine.pipeline.errors import Rejected
from inference_engine.pipeline.flights import MemoryFlightIndex
from inference_engine.pipeline.ingest import Door
from inference_engine.pipeline.models import Model
from inference_engine.pipeline.ports import Begun, Embedder, ProviderReply, Vector
from inference_engine.pipeline.respond import Clerk
from inference_engine.pipeline.semantic import StaticPolicy
from inference_engine.pipeline.window import window_policies
from inference_engine.schemas.answers import Usage
from inference_engine.schemas.ledger import ASKING, Completion, Failure
from inference_engine.schemas.record import JsonObject, Lane
from inference_engine.schemas.requests import Call, Request, Route

from ..pipeline.support import body, catalogue
from .support import LANES, TOPICS, Clock, KeepAll, MemoryBroker, MemoryRows, event

READ = (
    *(TOPICS.requests, TOPICS.lookups, TOPICS.answers, TOPICS.vectors, TOPICS.bulk_lookups),
    *(TOPICS.misses(lane) for lane in Lane),
    *(TOPICS.calls(lane) for lane in Lane),
)
POLICY = StaticPolicy(threshold=0.8)


class Echo:
    """Answers with the question; refuses those that ask for it, is cut off where it should write at length. Keeps its bill."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    async def complete(
        self, model: Model, body: JsonObject, *, timeout: float, metadata: Mapping[str, str], begun: Begun | None = None
    ) -> ProviderReply:
        text = body["messages"][-1]["content"]
        await asyncio.sleep(0)
        if "refuse" in text:
            raise Rejected("no such thing", code="provider_rejected")
        self.asked.append(text)
        message = {"role": "assistant", "content": f"re: {text}"}
        finish = "length" if "at length" in text else "stop"
        choice = {"index": 0, "message": message, "finish_reason": finish}
        return ProviderReply({"id": "c", "choices": [choice]}, Usage(input_tokens=10, output_tokens=5), finish, f"p{len(self.asked)}")

    async def close(self) -> None:
        return None


class NoTail:
    """The `vectors` topic is delivered by the flow itself."""

    async def start(self) -> None: ...

    async def stop(self) -> None: ...

    def assign(self, offsets: Mapping[int, int]) -> None: ...


class Flow:
    """One worker's stages, joined by a broker in memory whose records are handed on by `run`."""

    def __init__(self, *, semantic: bool = True) -> None:
        self.broker, self.rows, self.clock, self.provider = MemoryBroker(), MemoryRows(), Clock(), Echo()
        self.topic = MemoryLedgerTopic()
        self.models = catalogue()
        self.semantic = semantic
        self.vector_keeper: Keeper = KeepAll()
        self.tell_served = False
        self.embedder: Embedder = HashEmbedder()
        self.done: dict[str, int] = {}
        self.dead: list[str] = []

    async def append(self, topic: str, key: bytes | None, value: bytes, *, partition: int | None = None) -> int:
        if topic == TOPICS.ledger:
            return await self.topic.append(topic, key, value, partition=partition)
        return await self.broker.append(topic, key, value, partition=partition)

    async def start(self) -> None:
        """Makes the stages anew, as after a crash: what is not in a topic or a row is gone."""
        out = self.out = Outbox(self.append, TOPICS, 1)
        clerk = Clerk(self.models)
        self.ledger = LedgerStage(
            topic=TOPICS.ledger,
            fenced=MemoryFencedLog(self.topic),
            reader=self.topic,
            append=self.append,
            index=lambda _: MemoryFlightIndex(),
            now=self.clock,
            sleep=asyncio.sleep,
            new_epoch=lambda: object().__repr__(),
            settings=LedgerSettings(),
        )
        await self.ledger.assigned([0])
        self.corrections = Corrections([], TOPICS.corrections)
        self.exact = ExactStage(
            self.rows,
            out,
            clerk,
            KeepAll(),
            self.clock,
            lease_ms=60_000,
            cancelled=lambda _: False,
            revoked=self.corrections.revoked,
            tell_served=self.tell_served,
        )
        await self.exact.assigned([0])
        self.shards = Shards(lambda _: BruteForceIndex(384, clock=self.clock), NoTail(), self.vector_keeper, self.clock)  # type: ignore[arg-type]
        self.shards.made_before = self.corrections.made_before
        self.corrections.listeners.append(self.shards.corrected)
        await self.shards.assigned([0])
        self.ingest = IngestStage(out, Door(self.models, 3600), self.clock, {}, "local")
        route = RouteStage(out, self._route, self.shards.sent, self.clock)
        queue = EmbedQueue(self.embedder, book=self.book(out)) if self.semantic else None
        self.sharing = self.share(queue)

        async def to_route(groups: list[Group]) -> None:
            await guarded(route, groups)

        coalesce = CoalesceStage(CoalesceSettings(window_policies(max_wait_ms=2)), self.sharing, to_route)
        near = SemanticStage(self.shards, self.sharing, out, coalesce.on_batch, to_route, self.clock)

        async def to_semantic(pendings: list[Pending]) -> None:
            await near.on_batch(pendings)

        self.embed = EmbedStage(queue, to_semantic, to_route)
        for _, value in self.broker.topics[TOPICS.corrections]:
            self.corrections.apply(value)
        self.call = CallAgent(CallStage(self._call_parts(clerk, out)))
        self.respond = RespondStage(out, clerk, self.ledger, self.judged, self.label)

    def share(self, queue: EmbedQueue | None) -> Sharing:
        return StaticSharing(POLICY)

    def book(self, out: Outbox) -> Book | None:
        """Hears what the embedder bills."""
        return None

    def judged(self, partition: int, record: Completion | Failure) -> None:
        """A judge's call has ended."""

    def label(self, record: Completion) -> Call | None:
        """A question what the answer is worth."""
        return None

    def awaited(self, partition: int, flight: str) -> bool:
        return True

    def _route(self, request: Request, embedding: Vector | None = None) -> Route:
        return Route(models=("small" if request.model == "auto" else request.model,), reason="test")

    def _call_parts(self, clerk: Clerk, out: Outbox) -> CallParts:
        async def reemit(partition: int, record: Any) -> None:
            if record.purpose in ASKING:
                self.judged(partition, record)
                return
            sends = out.batch()
            answer = clerk.again(record, self.clock())
            assert answer is not None
            sends.answer(answer, record.request.lane)
            await sends.settle()

        return CallParts(
            catalogue=self.models,
            providers={"simulated": self.provider},
            ledger=self.ledger,
            limits=Limits(dict.fromkeys(Lane, 64), clock=asyncio.get_running_loop().time),
            prefixes=PrefixRoom(lambda _: None, enabled=False, remember=0, now=self.clock),
            cap=lambda model, body: 1_000_000_000,
            price=lambda model, usage, tier, at_ms: 400,
            reemit=reemit,
            cancelled=lambda _: False,
            on_ambiguous=lambda _: "retry",
            awaited=self.awaited,
            now=self.clock,
            sleep=asyncio.sleep,
            random=lambda: 0.0,
            settings=CallSettings(call_timeout_s=5),
        )

    async def handle(self, topic: str, value: bytes, offset: int) -> None:
        delivered = event(topic, value, offset=offset)
        try:
            if topic == TOPICS.requests:
                await self.ingest.on_request(delivered)
            elif topic in (TOPICS.lookups, TOPICS.bulk_lookups):
                await self.exact.on_lookups(delivered)
            elif topic == TOPICS.answers:
                await self.exact.on_answers(delivered)
            elif topic == TOPICS.vectors:
                self.shards.apply(0, value)
            elif topic == TOPICS.ledger:
                await self.respond.on_ledger(delivered)
            elif topic.startswith("misses"):
                await self.embed.on_misses(delivered)
            elif topic.startswith("calls"):
                await self.call.on_calls(delivered)
        except DeadLetter as error:
            self.dead.append(str(error))

    def _new(self) -> list[tuple[str, int, bytes]]:
        """Records that nobody has handled yet, of topics that the worker reads."""
        found = []
        for topic in (
            TOPICS.requests,
            TOPICS.lookups,
            TOPICS.bulk_lookups,
            TOPICS.answers,
            TOPICS.vectors,
            *(f"{k}.{lane}" for k in ("misses", "calls") for lane in Lane),
        ):
            values = [value for _, value in self.broker.topics[topic]]
            found += [(topic, i, values[i]) for i in range(self.done.get(topic, 0), len(values))]
            self.done[topic] = len(values)
        packets = self.topic.packets.get(0, [])
        found += [(TOPICS.ledger, i, packets[i]) for i in range(self.done.get(TOPICS.ledger, 0), len(packets))]
        self.done[TOPICS.ledger] = len(packets)
        return found

    async def run(self) -> None:
        """Hands records on until nothing new comes."""
        work: set[asyncio.Task[None]] = set()
        while True:
            work |= {asyncio.create_task(self.handle(topic, value, i)) for topic, i, value in self._new()}
            if not work:
                return
            done, work = await asyncio.wait(work, timeout=0.005, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()

    def again(self, topic: str, back: int) -> None:
        """The last records of a topic are delivered once more."""
        self.done[topic] = max(0, self.done.get(topic, 0) - back)

    async def ask(self, custom_id: str, text: str, **engine: Any) -> None:
        line = {"custom_id": custom_id, "body": body(text), "engine": {"priority": "express", **engine}}
        await self.broker.append(TOPICS.requests, None, orjson.dumps(line), partition=0)

    def texts(self) -> dict[str, set[str]]:
        """custom_id -> the distinct answers or error codes it was given."""
        found: dict[str, set[str]] = {}
        for r in self.broker.responses():
            said = r["error"]["code"] if r["error"] else r["response"]["body"]["choices"][0]["message"]["content"]
            found.setdefault(r["custom_id"], set()).add(said)
        return found


async def test_repeats_are_paid_once_and_paraphrases_share() -> None:
    flow = Flow()
    await flow.start()
    texts = [
        "how do I reset my password",
        "how do I reset my password",
        "how do I reset my password please",
        "what is the fee of a transfer",
    ]
    for i, text in enumerate(texts):
        await flow.ask(f"r{i}", text)
    await flow.run()
    tiers = {r["custom_id"]: r["engine"]["cache"]["tier"] for r in flow.broker.responses()}
    assert len(flow.provider.asked) == 2
    assert sorted(tiers.values()) == ["coalesced", "exact", "none", "none"]
    await flow.ask("r9", "how do I reset my password, please")
    await flow.run()
    assert {r["custom_id"]: r["engine"]["cache"]["tier"] for r in flow.broker.responses()}["r9"] == "semantic"
    assert len(flow.provider.asked) == 2


async def test_without_an_embedder_nothing_is_shared_by_similarity() -> None:
    flow = Flow(semantic=False)
    await flow.start()
    await flow.ask("r1", "how do I reset my password")
    await flow.ask("r2", "how do I reset my password please")
    await flow.run()
    assert len(flow.provider.asked) == 2


async def test_tenants_and_scopes_never_share_at_similarity_one() -> None:
    flow = Flow()
    await flow.start()
    no_options: dict[str, Any] = {}
    for i, engine in enumerate((no_options, {"sample_index": 1}, {"use_cache": False})):
        await flow.ask(f"r{i}", "how do I reset my password", **engine)
    await flow.run()
    assert len(flow.provider.asked) == 3


async def test_a_follower_of_a_refused_leader_is_asked_when_nobody_else_is_left() -> None:
    flow = Flow()
    await flow.start()
    await flow.ask("r1", "please refuse to answer this question of mine")
    await flow.ask("r2", "please refuse to answer this question of mine now")
    await flow.run()
    assert flow.texts() == {"r1": {"provider_rejected"}, "r2": {"provider_rejected"}}


async def test_garbage_is_a_dead_letter_and_stops_nothing() -> None:
    flow = Flow()
    await flow.start()
    await flow.broker.append(TOPICS.requests, None, b"\xff", partition=0)
    await flow.ask("r1", "hello")
    await flow.run()
    assert len(flow.dead) == 1
    assert set(flow.texts()) == {"r1"}


async def test_a_crash_with_everything_redelivered_pays_nothing_again() -> None:
    flow = Flow()
    await flow.start()
    for i in range(5):
        await flow.ask(f"r{i}", f"question {'abcde'[i]} about {['cats', 'dogs', 'cars', 'ships', 'trees'][i]}")
    await flow.run()
    paid = sorted(flow.provider.asked)
    flow.done.clear()
    await flow.start()
    await flow.run()
    assert sorted(flow.provider.asked) == paid
    assert all(len(said) == 1 for said in flow.texts().values())


STEPS = st.one_of(
    st.tuples(st.just("ask"), st.integers(0, 7), st.integers(0, 5)),
    st.tuples(st.just("run"), st.just(0), st.just(0)),
    st.tuples(st.just("again"), st.integers(0, 8), st.integers(1, 4)),
    st.tuples(st.just("crash"), st.just(0), st.just(0)),
)
QUESTIONS = ["reset my password", "reset my password please", "reset my pin", "close my account", "refuse this"]
QUESTIONS += ["open an account", "at length on it", "at length on it now"]
AGAIN = [*READ[:4], TOPICS.ledger, TOPICS.misses(Lane.EXPRESS), TOPICS.calls(Lane.EXPRESS), TOPICS.lookups, TOPICS.answers]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(STEPS, max_size=14))
def test_any_order_of_requests_redeliveries_and_crashes_answers_each_once(steps: list[tuple[str, int, int]]) -> None:
    """Each identity gets a response; an answer belongs to its question or one that it may share with; each is paid at most once."""

    async def run() -> None:
        flow = Flow()
        await flow.start()
        asked: dict[str, str] = {}
        for what, a, b in steps:
            flow.clock.ms += 1000
            if what == "ask":
                text = QUESTIONS[(a + b) % len(QUESTIONS)]
                custom_id = f"r{a}-{(a + b) % len(QUESTIONS)}"
                asked[custom_id] = text
                await flow.ask(custom_id, text, priority=LANES[a % 2])
            elif what == "again":
                flow.again(AGAIN[a], b)
            else:
                await flow.run()
                if what == "crash":
                    await flow.start()
        await flow.run()
        assert set(flow.texts()) == set(asked)
        kept = [text for text in flow.provider.asked if "at length" not in text]  # what is cut off is not kept
        assert len(kept) == len(set(kept))

    asyncio.run(run())


async def test_two_that_mean_the_same_and_fly_again_do_not_wait_for_each_other() -> None:
    """Both were paid once, so both are in the index, but their answers were cut off and not kept. Asked again at the same time, each
    finds the other: one that only follows must not be followed."""
    flow = Flow()
    await flow.start()
    texts = ["write at length about my password reset", "write at length about my password reset please"]
    for again in range(2):
        flow.clock.ms += 1000
        await asyncio.gather(*(flow.ask(f"r{i}-{again}", text, priority=("express", "standard")[i]) for i, text in enumerate(texts)))
        await flow.run()
    assert set(flow.texts()) == {"r0-0", "r1-0", "r0-1", "r1-1"}


async def test_a_prompt_asked_again_after_its_time_to_live_is_found_again() -> None:
    """An expired point gives way to the next one of its prompt; else each prompt could be found once in the life of an index."""
    flow = Flow()
    await flow.start()
    await flow.ask("r0", "how do I reset my password")
    await flow.run()
    flow.clock.ms += 2 * 3600 * 1000
    await flow.ask("r1", "how do I reset my password")
    await flow.run()
    await flow.ask("r2", "how do I reset my password please")
    await flow.run()
    assert {r["custom_id"]: r["engine"]["cache"]["tier"] for r in flow.broker.responses()}["r2"] == "semantic"


async def test_a_record_without_a_tenant_is_a_dead_letter_that_nobody_waits_for() -> None:
    flow = Flow()
    await flow.start()
    line = orjson.dumps({"custom_id": "r1", "body": body("hello")})
    for tenant in (b"", b"t" * 300):
        with pytest.raises(DeadLetter):
            await flow.ingest.on_request(event(TOPICS.requests, line, headers=(("tenant", tenant),)))


async def test_a_request_is_accepted_when_it_was_written_however_late_it_is_read() -> None:
    """Cancelling a job must reach its rows that no worker has read yet, and what is delivered again is no new request."""
    flow = Flow()
    await flow.start()
    line = orjson.dumps({"custom_id": "r1", "body": body("hello")})
    written = flow.clock.ms
    for later in (0, 5_000):
        flow.clock.ms = written + later
        await flow.ingest.on_request(replace(event(TOPICS.requests, line), timestamp_ms=written))
    assert {m["request"]["accepted_ms"] for m in flow.broker.members(TOPICS.lookups)} == {written}
    await flow.ingest.on_request(replace(event(TOPICS.requests, line), timestamp_ms=written + 3600_000))
    assert flow.broker.members(TOPICS.lookups)[-1]["request"]["accepted_ms"] == flow.clock.ms  # a producer's clock may be ahead


async def test_an_old_answer_from_the_ledger_is_for_the_one_it_was_paid_for() -> None:
    """The same request asked again after its time to live is not paid again; another one that waits for it is past that time, too."""
    flow = Flow(semantic=False)
    await flow.start()
    await flow.ask("r1", "hello")
    await flow.run()
    flow.clock.ms += 2 * 3600 * 1000
    await flow.ask("r1", "hello")
    await flow.ask("r2", "hello")
    await flow.run()
    assert flow.provider.asked == ["hello", "hello"]
    assert {r["custom_id"]: r["engine"]["cache"]["tier"] for r in flow.broker.responses()} == {"r1": "none", "r2": "none"}


async def test_a_worker_that_ends_leaves_its_ledger_saved() -> None:
    """The next one reads on from there, and no longer from what was saved some seconds before."""
    flow = Flow(semantic=False)
    await flow.start()
    await flow.ask("r1", "hello")
    await flow.run()
    index, packets = flow.ledger._owned[0].index, len(flow.topic.packets[0])
    await flow.ledger.close()
    assert orjson.loads(index.meta() or b"[0]")[0] == packets - 1  # the last packet may have more members that were not seen yet
    assert flow.ledger.partitions == frozenset()

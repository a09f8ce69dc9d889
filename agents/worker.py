"""A worker: wires the stages to the world, runs the topology until it is told to stop."""

import asyncio
import random
import time
import uuid
from collections.abc import Callable, Hashable, Mapping

import structlog

from ..connectors.controls import Controls
from ..connectors.corrections import Corrections
from ..connectors.fenced_log import FencedLog
from ..connectors.flight_index import RocksFlightIndex
from ..connectors.heap import give_back_freed
from ..connectors.kafka_admin import verify_topics
from ..connectors.ledger_log import LedgerLog
from ..connectors.providers.accounts import keys_of
from ..pipeline.billing import bill, cap
from ..pipeline.models import Model
from ..pipeline.ports import Judge
from ..pipeline.prefix import Terms, terms_of
from ..pipeline.prices import ServiceTier, day_of, rates
from ..pipeline.provider_batch import way_prices
from ..pipeline.respond import Clerk
from ..pipeline.semantic import StaticPolicy
from ..schemas.ledger import ASKING, Completion, Failure
from ..schemas.record import Lane
from .attempt import CallParts
from .batch_parts import BatchParts
from .call import CallStage
from .call_agent import CallAgent
from .coalesce import CoalesceStage
from .embed import EmbedQueue, EmbedStage
from .embedding_costs import EmbeddingBook
from .exact import ExactStage
from .feedback import FeedbackStage
from .grader import Checker, Grader
from .health import Health
from .ingest import IngestStage
from .judge import EmbeddingJudge
from .learned import LearnedSharing
from .learners import Learners
from .ledger import LedgerStage
from .limits import Limits
from .model_judge import ModelJudge
from .names import DECISIONS_TABLE, EXACT_TABLE, LESSONS_TABLE, app_id
from .outbox import Outbox
from .own_folder import only_worker_in
from .prefix import PrefixRoom
from .provider_batch import BatchStage
from .questions import Questions
from .respond import RespondStage
from .route import RouteStage
from .safe import SafeApp, create_app, run_app
from .semantic import SemanticStage
from .shards import Shards
from .sharing import Sharing, StaticSharing
from .throttle import Throttle
from .topology import Channels, Limit, Stages, build_topology, to_channel
from .watchdog import Watchdog
from .worker_parts import SemanticParts, WorkerParts

log = structlog.get_logger(__name__)

MAX_RECORD_BYTES = 7 * 1024 * 1024

DRAIN_S = 20.0
"""A worker that is asked to stop waits so long for its provider calls; `down` and most supervisors kill after 30 s."""

CLOSE_S = 30.0
"""For everything that is closed after the last event."""

TELLING = frozenset({"openai", "anthropic", "cohere"})
"""Providers whose replies say what their limits are."""

MB = 1024 * 1024
IN_WORK: Mapping[str, Limit] = {
    "ingest": Limit(1024, 16 * MB),
    "exact": Limit(64, 16 * MB),
    "embed": Limit(64, 16 * MB),
    "call": Limit(512, 16 * MB),  # a packet may hold one call only, and that may take minutes
    "respond": Limit(64),
    "learn": Limit(64),
}
"""What of a stage may be in work at once; what lies behind is read when its turn comes."""


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def terms_now(model: Model, tier: ServiceTier = "standard") -> Terms | None:
    """The terms of a model's prompt cache at today's prices. Raises `Unpriced`."""
    return terms_of(model, rates(model, tier, day_of(now_ms())).base)


class Worker:
    """One process's share of the pipeline."""

    def __init__(self, parts: WorkerParts) -> None:
        self.parts = parts
        self.app = self._app()
        self.throttle = Throttle(parts.throttle)
        self.outbox = Outbox(
            self.app.append, parts.topics, parts.partitions, self.throttle.packet_size, semantic=parts.semantic is not None
        )
        self.clerk = Clerk(parts.catalogue)
        self.questions = Questions(self.outbox.ask)
        grading = parts.grading
        self.grader = Grader(grading.judge.model, grading.rate, grading.judge.may, now_ms) if grading else None
        self.controls = Controls(parts.brokers, parts.topics.controls)
        self.corrections = Corrections(parts.brokers, parts.topics.corrections)
        self.limits = Limits(parts.permits, clock=time.monotonic, keys=keys_of(parts.providers), careful=TELLING, breaker=parts.breaker)
        self.fenced = FencedLog(",".join(parts.brokers), parts.topics.ledger, f"{app_id(parts.topics)}-calls")
        self.ledger = self._ledger()
        self.calls = CallStage(self._call_parts())
        self.batches = BatchStage(self._batch_parts())
        self.calls.batches = self.batches if parts.batches else None
        self.queue = self._queue(parts.semantic) if parts.semantic else None
        self.likeness = EmbeddingJudge(self.queue, parts.semantic.judge_similarity) if parts.semantic and self.queue else None
        self.shards: Shards | None = None
        self.sharing: Sharing | None = None
        self.stages = self._stages()

    def _app(self) -> SafeApp:
        parts = self.parts
        return create_app(
            app_id(parts.topics), parts.brokers, parts.data_dir / "tables", store=parts.store, max_request_bytes=MAX_RECORD_BYTES
        )

    def _queue(self, semantic: SemanticParts) -> EmbedQueue:
        price = semantic.price
        book = None if price is None else EmbeddingBook(price, self.outbox, now_ms, lambda: uuid.uuid4().hex)
        return EmbedQueue(semantic.embedder, self.throttle.packet_size, book)

    def _ledger(self) -> LedgerStage:
        parts = self.parts
        return LedgerStage(
            topic=parts.topics.ledger,
            fenced=self.fenced,
            reader=LedgerLog(",".join(parts.brokers), parts.topics.ledger),
            append=self.app.append,
            index=lambda partition: RocksFlightIndex(parts.data_dir / "ledger" / str(partition)),
            now=now_ms,
            sleep=asyncio.sleep,
            new_epoch=lambda: uuid.uuid4().hex,
            settings=parts.ledger,
            max_members=self.throttle.packet_size,
            end_worker=self._end,
        )

    def _end(self, error: Exception) -> None:
        self._ending = asyncio.ensure_future(self.app.crash(error))

    def _call_parts(self) -> CallParts:
        parts = self.parts
        return CallParts(
            catalogue=parts.catalogue,
            providers=parts.providers,
            ledger=self.ledger,
            limits=self.limits,
            prefixes=PrefixRoom(
                terms_now,
                enabled=parts.prefix_enabled,
                remember=parts.prefix_cache_size,
                now=now_ms,
                least_tokens=min((m.prompt_cache_min_tokens for m in parts.catalogue.models), default=0),
            ),
            cap=lambda model, body: cap(model, body, day_of(now_ms())),
            price=lambda model, usage, tier, at_ms: bill(model, usage, tier, day_of(at_ms)),
            reemit=self._answer_again,
            cancelled=self.controls.cancelled,
            on_ambiguous=parts.on_ambiguous,
            now=now_ms,
            sleep=asyncio.sleep,
            random=random.random,
            settings=parts.call,
            prices=lambda model, body: way_prices(model, body, day_of(now_ms())),
            awaited=self.questions.awaits,
            hedge=parts.hedge,
            judge=lambda: self.likeness,
            check=self._check(),
        )

    def _check(self) -> Checker | None:
        grading = self.parts.grading
        if grading is None:
            return None
        return Checker(
            grading.judge.model, self.questions, lambda at, call, ours: self.calls.run(at, call, call.request.lane, ours),
            grading.judge.may, now_ms,
        )  # fmt: skip

    def _batch_parts(self) -> BatchParts:
        parts = self.parts
        return BatchParts(
            calls=self.calls.parts,
            stage=self.calls,
            providers=parts.batches,
            prices=lambda model, body: way_prices(model, body, day_of(now_ms())),
            cap=lambda model, body: cap(model, body, day_of(now_ms()), "batch"),
            new_key=lambda: uuid.uuid4().hex[:24],
            folder=parts.data_dir / "batches",
            terms=lambda model: terms_now(model, "batch") if parts.prefix_enabled else None,
            # A submission may carry megabytes. After a crash a batch is looked for until none can be under way any more.
            create_timeout_s=parts.call.call_timeout_s * 2.5,
            slack_s=parts.call.intent_slack_s,
        )

    async def _answer_again(self, partition: int, record: Completion | Failure) -> None:
        if record.purpose in ASKING:
            self.questions.heard(partition, record)
            return
        answer = self.clerk.again(record, now_ms())
        if answer is not None:
            sends = self.outbox.batch()
            sends.answer(answer, record.request.lane)
            await sends.settle()

    def _stages(self) -> Stages:
        parts, app, out = self.parts, self.app, self.outbox
        self.channels = Channels(app.channel(), app.channel(), app.channel())
        to_semantic, to_coalesce, to_route = (to_channel(c) for c in (self.channels.semantic, self.channels.coalesce, self.channels.route))
        semantic = parts.semantic
        if semantic is not None:
            self.shards = Shards.create(semantic.make_index, parts.brokers, parts.topics.vectors, semantic.keeper, now_ms)
            self.shards.made_before = self.corrections.made_before
            self.corrections.listeners.append(self.shards.corrected)
            self.sharing = self._sharing(semantic, self.shards)
        table = app.safe_table(EXACT_TABLE, partitions=parts.partitions, max_row_bytes=MAX_RECORD_BYTES)
        lease_ms = int((parts.call.max_attempts * (parts.call.call_timeout_s + 30) + parts.call.give_up_s) * 1000)
        return Stages(
            ingest=IngestStage(out, parts.door, now_ms, parts.tenants, parts.default_tenant),
            exact=ExactStage(
                table,
                out,
                self.clerk,
                parts.keeper,
                now_ms,
                lease_ms=lease_ms,
                cancelled=self.controls.cancelled,
                revoked=self.corrections.revoked,
                tell_served=semantic is not None and isinstance(semantic.policy, StaticPolicy) and semantic.policy.min_access_count > 0,
                oldest_call_ms=lambda partition: app.oldest_unfinished_ms(map(parts.topics.calls, Lane), partition),
            ),
            embed=EmbedStage(self.queue, to_semantic, to_route),
            semantic=SemanticStage(self.shards, self.sharing, out, to_coalesce, to_route, now_ms) if self.shards and self.sharing else None,
            coalesce=CoalesceStage(semantic.coalesce, self.sharing, to_route, more=self.queue.expects, calls_wait=self.limits.waits)
            if semantic and self.queue and self.sharing
            else None,
            route=RouteStage(out, parts.decide_route, self.shards.sent if self.shards else lambda _: None, now_ms),
            call=CallAgent(self.calls, self.throttle.at_once),
            respond=RespondStage(out, self.clerk, self.ledger, self.questions.heard, self.grader.label if self.grader else lambda _: None),
            learn=FeedbackStage(
                app.safe_table(LESSONS_TABLE, partitions=parts.partitions, max_row_bytes=MAX_RECORD_BYTES),
                out,
                now_ms,
                default_tenant=parts.default_tenant,
                default_job=parts.door.default_job,
                taught=parts.routers.of if parts.routers else lambda _: None,
            ),
        )

    def _sharing(self, semantic: SemanticParts, shards: Shards) -> Sharing:
        # The table is there with either policy: what was learned outlives a time with the other one.
        table = self.app.safe_table(DECISIONS_TABLE, partitions=self.parts.partitions, max_row_bytes=MAX_RECORD_BYTES)
        policy = semantic.policy
        if isinstance(policy, StaticPolicy):
            return StaticSharing(policy, shards.served)
        assert self.likeness is not None
        judge: Judge = self.likeness
        if policy.judging is not None:
            judge = ModelJudge(policy.judging.model, self.questions, judge, policy.judging.may, now_ms)
        sharing = LearnedSharing(Learners(table, policy.settings), policy.bounds, shards, judge, now_ms)
        shards.listener = sharing
        self.corrections.listeners.append(sharing.corrected)
        return sharing

    def _share(self) -> None:
        share = len(self.app.partitions) / self.parts.partitions
        self.limits.set_share(share)
        self.calls.parts.prefixes.set_share(share)

    async def _assigned(self, partitions: frozenset[int]) -> None:
        self._share()
        if self.sharing is not None:
            # What an event of a partition that had gone may have loaded again since.
            await self.sharing.forget(sorted(partitions))
        await asyncio.gather(
            self.ledger.assigned(partitions),
            self.stages.exact.assigned(partitions),
            self.stages.learn.assigned(partitions),
            *([self.shards.assigned(partitions)] if self.shards else []),
        )
        # Where no batches are set up, calls that were parked before are made one by one.
        await self.batches.assigned(partitions)

    async def _revoked(self, partitions: frozenset[int]) -> None:
        if self.sharing is not None:
            await self.sharing.forget(sorted(partitions))
        self.questions.forget(partitions)
        await self.batches.revoked(partitions)
        await asyncio.gather(
            self.ledger.revoked(partitions),
            self.stages.exact.revoked(partitions),
            self.stages.learn.revoked(partitions),
            *([self.shards.revoked(partitions)] if self.shards else []),
        )
        self._share()

    async def run(self, stop: asyncio.Event, *, on_ready: Callable[[int], None] | None = None) -> None:
        """Runs until `stop` is set, as the only worker in its folder.

        `on_ready` hears the port of the health server once all partitions deliver.

        Raises `ConfigError` or `Unavailable` where it can't start; then nothing was taken over.
        """
        with only_worker_in(self.parts.data_dir):
            await self._run(stop, on_ready)

    async def _run(self, stop: asyncio.Event, on_ready: Callable[[int], None] | None) -> None:
        parts = self.parts
        await asyncio.to_thread(verify_topics, parts.brokers, parts.specs)
        requests = [parts.topics.requests, *parts.tenants]
        build_topology(self.app, parts.topics, self.stages, self.channels, requests, IN_WORK, self.throttle)
        self.app.on_assigned(self._assigned)
        self.app.on_revoked(self._revoked)
        self.app.on_stopping(self._drain)
        health = Health(self)
        await self.controls.start()
        await self.corrections.start()
        if parts.routers is not None:
            await parts.routers.start(parts.brokers, parts.topics.routers)
        if self.shards is not None:
            await self.shards.start()
        port = await health.start(parts.metrics_port)
        announce = asyncio.create_task(self._announce(port, on_ready), name="announce")
        watchdog = self._watchdog()
        watchdog.start()
        turning = asyncio.create_task(self.throttle.run(), name="throttle")
        giving_back = asyncio.create_task(give_back_freed(), name="give back freed memory")
        try:
            await run_app(self.app, stop=stop)
        finally:
            watchdog.stop()
            announce.cancel()
            turning.cancel()
            giving_back.cancel()
            async with asyncio.timeout(CLOSE_S):
                await self._close(health)

    def _watchdog(self) -> Watchdog:
        app, calls = self.app, {self.parts.topics.calls(lane) for lane in Lane}

        def marks() -> dict[Hashable, int]:
            found: dict[Hashable, int] = {f"the call of flight {flight[:12]}": at for flight, at in self.calls.progress().items()}
            found |= {f"{agent}, which begins nothing": begun for agent, begun in app.begins_nothing().items()}
            # What waits for its turn is no standstill: another tenant's events may come before it for long.
            for tp, at in app.at_work().items():
                # A packet of calls may be tried for long, and may wait for its turn.
                moves = self.calls.moves(tp.partition) if tp.topic in calls else 0
                if moves is not None:
                    found[f"{tp.topic}[{tp.partition}]"] = at + moves
            return found

        return Watchdog(
            self.parts.watchdog,
            marks=marks,
            recovering=lambda: None if app.ready.is_set() else f"generation {app.membership.generation}",
            counts=lambda: app.membership.lease.valid,
            crash=app.crash,
        )

    async def _announce(self, port: int, on_ready: Callable[[int], None] | None) -> None:
        await self.app.ready.wait()
        log.info("the worker is ready", partitions=sorted(self.app.partitions), port=port)
        if on_ready is not None:
            on_ready(port)

    async def _drain(self) -> None:
        if self.sharing is not None:
            await self.sharing.close()
        lost = await self.batches.drain(DRAIN_S)
        if lost:
            log.warning("batches were being submitted at the end: the next owner looks for them at the provider", batches=lost)
        cut = await self.calls.drain(DRAIN_S)
        if cut:
            log.warning("calls were under way at the end: they stay open in the ledger and are settled by the next owner", calls=cut)

    async def _close(self, health: Health) -> None:
        await self.batches.close()
        await self.ledger.close()
        await self.fenced.close()
        await self.controls.stop()
        await self.corrections.stop()
        await self.stages.learn.stop()
        if self.parts.routers is not None:
            await self.parts.routers.stop()
        if self.shards is not None:
            await self.shards.stop()
        if self.queue is not None:
            self.queue.close()
        for provider in {id(p): p for p in self.parts.providers.values()}.values():
            await provider.close()
        await health.stop()

"""The flow, top to bottom: named Faust agents, their topics and channels.

    batch jobs, gateway, CLI
      -> requests             [any key]      ingest    validate, normalise, fingerprint; bad -> dead-letters + error response
      -> lookups              [fingerprint]  exact     answers known -> responses; in flight -> wait (single flight)
      -> misses.LANE          [scope shard]  embed     micro-batches
                              (channel)      semantic  nearest answered prompt of the same scope -> follows its answer
                              (channel)      coalesce  windowed DBSCAN: near-identical misses follow one leader
                              (channel)      route     the cheapest capable model
      -> calls.LANE           [fingerprint]  call      intent, limits, provider, completion
      -> ledger               [same partition as its call]  the truth about money
                                             respond   completions -> answers, vectors, costs
      -> answers              [fingerprint]  exact     fills its table, releases everyone who waits -> responses
      -> vectors              [scope shard]  semantic  fills its index
      -> responses            [tenant, job, custom_id]
    users -> feedback -> lessons [tenant]  learn     joins answers with what was said of them, teaches the router -> routers
    every stage -> costs                     sink      ClickHouse (a process of its own, agents/sink_worker.py)

LANE is express, standard or batch. The batch lane has a door and lookups of its own, `requests.batch` and `lookups.batch`, read by the same
stages, and its packets begin as the others' latency allows (agents/throttle.py): a job of a million rows stands before nobody.

An edge is a topic where the key or the pace changes, else an in-memory channel: then the source is released after the next durable write.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..schemas.record import Lane
from ..schemas.topics import Topics
from .call_agent import CallAgent
from .coalesce import CoalesceStage
from .dead_letters import dead_letter_headers
from .embed import EmbedStage
from .exact import ExactStage
from .feedback import FeedbackStage
from .ingest import IngestStage
from .metrics import DEAD_LETTERS
from .pending import Group, Pending
from .respond import RespondStage
from .route import RouteStage, guarded
from .safe import DeadLetter, Delivered, Gate, SafeApp, Turns, consume, items, send_through
from .semantic import SemanticStage
from .throttle import Throttle

AT_ONCE = {"ingest": 16}
"""Records begun in one pass of the event loop beside somebody urgent; of packets one, since it holds dozens of requests."""

Handle = Callable[[Delivered], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Stages:
    """One runner per stage; made by the worker, so that a test can give its own."""

    ingest: IngestStage
    exact: ExactStage
    embed: EmbedStage
    semantic: SemanticStage | None
    coalesce: CoalesceStage | None
    """None, like `semantic`, where the semantic tier is off."""
    route: RouteStage
    call: CallAgent
    respond: RespondStage
    learn: FeedbackStage


@dataclass(frozen=True, slots=True)
class Limit:
    """Of a stage."""

    records: int
    bytes: int | None = None
    """None: in the order of arrival, and no matter whose."""


@dataclass(frozen=True, slots=True)
class Channels:
    """The in-memory edges."""

    semantic: Any
    coalesce: Any
    route: Any


def build_topology(
    app: SafeApp,
    topics: Topics,
    stages: Stages,
    channels: Channels,
    request_topics: Sequence[str],
    limits: Mapping[str, Limit],
    throttle: Throttle,
) -> None:
    """Binds every stage to its edge. `limits`: how much of a stage may be in work at once. Tenants take turns at every edge before the
    provider; behind it nobody waits for long."""

    async def dead(event: Delivered, error: DeadLetter) -> None:
        DEAD_LETTERS.labels(event.topic, error.error_class).inc()
        await app.append(topics.dead_letters, event.key, event.value or b"", headers=dead_letter_headers(event, error))

    def share(event: Delivered) -> bytes:
        return share_of(event, topics.requests, request_topics)

    def agent(name: str, *names: str, handle: Handle, gate: Gate | None = None) -> None:
        stage = name.partition(".")[0]
        limit, few = limits[stage], AT_ONCE.get(stage, 1)
        turns = Turns(share, limit.bytes) if limit.bytes else None

        async def run(stream: Any) -> None:
            await consume(
                app,
                stream,
                handle,
                limit=limit.records,
                name=name,
                on_dead=dead,
                turns=turns,
                at_once=lambda: throttle.at_once(few),
                gate=gate,
            )

        app.agent(app.topic(*names), name=name)(run)

    def channel_agent(name: str, channel: Any, handle: Callable[[Any], Awaitable[None]]) -> None:
        async def run(stream: Any) -> None:
            async for item in items(stream):
                await handle(item)

        app.agent(channel, name=name)(run)

    # RequestLine, one a record
    agent("ingest", *request_topics, handle=stages.ingest.on_request)
    agent("ingest.batch", topics.bulk_requests, handle=stages.ingest.on_request, gate=throttle.gate())

    # packets of Lookup, the batch lane's apart; packets of AnswerRecord
    async def exact(event: Delivered) -> None:
        if event.topic == topics.lookups:
            throttle.urgent()
        await (stages.exact.on_answers(event) if event.topic == topics.answers else stages.exact.on_lookups(event))

    agent("exact", topics.lookups, topics.answers, handle=exact)

    agent("exact.batch", topics.bulk_lookups, handle=stages.exact.on_lookups, gate=throttle.gate())

    # packets of Miss; each lane has its own agent, so that a full batch lane never delays express
    for lane in Lane:
        agent(f"embed.{lane}", topics.misses(lane), handle=stages.embed.on_misses, gate=throttle.gate() if lane is Lane.BATCH else None)

    if stages.semantic is not None and stages.coalesce is not None:
        # list[Pending] with vectors
        channel_agent("semantic", channels.semantic, stages.semantic.on_batch)

        # list[Pending] that nothing known answers
        channel_agent("coalesce", channels.coalesce, stages.coalesce.on_batch)

    # list[Group]: leaders with their followers
    async def route(groups: list[Group]) -> None:
        await guarded(stages.route, groups)

    async def routes(stream: Any) -> None:
        await side_by_side(stream, route)

    app.agent(channels.route, name="route")(routes)

    # packets of Call
    for lane in Lane:
        agent(f"call.{lane}", topics.calls(lane), handle=stages.call.on_calls, gate=throttle.gate() if lane is Lane.BATCH else None)

    # packets of LedgerRecord
    agent("respond", topics.ledger, handle=stages.respond.on_ledger)

    # FeedbackLine, one a record; packets of Served and Rated
    async def learn(event: Delivered) -> None:
        await (stages.learn.on_lessons(event) if event.topic == topics.lessons else stages.learn.on_feedback(event))

    agent("learn", topics.feedback, topics.lessons, handle=learn)


def share_of(event: Delivered, shared: str, request_topics: Sequence[str]) -> bytes:
    """Whose event it is: on the `shared` requests topic a header says so, another requests topic is one tenant's own, and packets on
    internal topics have their tenant as key."""
    if event.topic == shared:
        return next((value for name, value in event.headers if name == "tenant"), b"")
    return event.topic.encode() if event.topic in request_topics else event.key or b""


async def side_by_side(stream: Any, handle: Callable[[Any], Awaitable[None]]) -> None:
    """Begins items in their order, and the next one while others still wait for the broker: all lanes share this edge, and a packet of
    the batch lane may wait a tenth of a second. How many are under way is bounded by the sources, which wait for their members.
    """
    tasks: set[asyncio.Task[None]] = set()

    async def work(item: Any) -> None:
        await handle(item)

    try:
        async for item in items(stream):
            task = asyncio.create_task(work(item))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def to_channel(channel: Any) -> Callable[[Any], Awaitable[None]]:
    """An edge within the process."""

    async def send(item: list[Pending] | list[Group]) -> None:
        await send_through(channel, item)

    return send

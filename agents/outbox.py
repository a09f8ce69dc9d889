"""Where a stage puts what it decided: the edges of the topology, each awaited before the source is released."""

import asyncio
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from ..pipeline.fingerprint import digest, partition_of
from ..schemas.answers import AnswerRecord, VectorRecord
from ..schemas.costs import CostEvent
from ..schemas.feedback import LessonRecord, Rated, Served
from ..schemas.packets import answers, calls, costs, lessons, lookups, misses, vectors
from ..schemas.record import Lane, Record
from ..schemas.requests import Call, Identity, Lookup, Miss, Request
from ..schemas.responses import ResponseLine
from ..schemas.topics import Topics
from .metrics import observe_cost, observe_response
from .packer import MAX_MEMBERS, WAIT_S, Append, Packer, settle

R = TypeVar("R", bound=Record)


@dataclass(frozen=True, slots=True)
class Packers:
    """One packer per internal topic."""

    lookups: Packer[Lookup]
    bulk_lookups: Packer[Lookup]
    misses: dict[Lane, Packer[Miss]]
    calls: dict[Lane, Packer[Call]]
    answers: Packer[AnswerRecord]
    vectors: Packer[VectorRecord]
    costs: Packer[CostEvent]
    lessons: Packer[LessonRecord]


class Outbox:
    """All edges of one worker. Partitions follow from fingerprint and scope, so every worker computes the same."""

    def __init__(
        self,
        append: Append,
        topics: Topics,
        partitions: int,
        max_members: Callable[[], int] = lambda: MAX_MEMBERS,
        *,
        semantic: bool = True,
    ) -> None:
        """`max_members`: of a packet that is made now. `semantic`: whether requests may share by similarity."""
        self.append = append
        self.semantic = semantic
        self.topics = topics
        self.partitions = partitions
        self.packers = Packers(
            lookups=Packer(append, topics.lookups, lookups, max_members=max_members),
            bulk_lookups=Packer(append, topics.bulk_lookups, lookups, max_members=max_members),
            misses={lane: Packer(append, topics.misses(lane), misses, max_members=max_members) for lane in Lane},
            calls={lane: Packer(append, topics.calls(lane), calls, max_members=max_members) for lane in Lane},
            answers=Packer(append, topics.answers, answers, max_members=max_members),
            vectors=Packer(append, topics.vectors, vectors),
            # Read by the sink alone, in a process of its own: larger inserts are cheaper, and nobody waits for them.
            costs=Packer(append, topics.costs, costs, max_members=lambda: 256),
            lessons=Packer(append, topics.lessons, lessons),
        )

    def batch(self) -> "Sends":
        return Sends(self)

    async def ask(self, partition: int, call: Call) -> None:
        """Puts a question on the partition of whoever waits for what is said; returns when it is durable."""
        sends = self.batch()
        sends.question(call, call.request.lane, partition)
        await sends.settle()


class Sends:
    """What one event causes; `settle` returns when the broker has all of it."""

    __slots__ = ("_box", "_futures")

    def __init__(self, box: Outbox) -> None:
        self._box = box
        self._futures: list[asyncio.Future[int]] = []

    def lookup(self, lookup: Lookup) -> "asyncio.Future[int]":
        fingerprint = lookup.follow.fingerprint if lookup.follow else lookup.request.fingerprint
        lane, packers = lookup.request.lane, self._box.packers
        packer = packers.bulk_lookups if lane is Lane.BATCH else packers.lookups
        return self._put(packer, fingerprint, lookup, WAIT_S[lane], lookup.request)

    def miss(self, miss: Miss) -> "asyncio.Future[int]":
        lane = miss.request.lane
        return self._put(self._box.packers.misses[lane], shard_of(miss, semantic=self._box.semantic), miss, WAIT_S[lane], miss.request)

    def call(self, call: Call) -> "asyncio.Future[int]":
        lane = call.request.lane
        return self._put(self._box.packers.calls[lane], call.request.fingerprint, call, WAIT_S[lane], call.request)

    def question(self, call: Call, within: Lane, partition: int | None = None) -> "asyncio.Future[int]":
        """`within`: the lane of what it delays. `partition`: whose owner waits for what is said."""
        packer, request = self._box.packers.calls[call.request.lane], call.request
        if partition is None:
            return self._put(packer, request.fingerprint, call, WAIT_S[within], request)
        return self._keep(packer.put(partition, call, WAIT_S[within], request.identity.tenant.encode()))

    def answer(self, record: AnswerRecord, lane: Lane) -> "asyncio.Future[int]":
        return self._put(self._box.packers.answers, record.fingerprint, record, WAIT_S[lane])

    def vector(self, record: VectorRecord, lane: Lane) -> "asyncio.Future[int]":
        return self._put(self._box.packers.vectors, record.scope, record, WAIT_S[lane])

    def cost(self, event: CostEvent, lane: Lane) -> None:
        observe_cost(event)
        # Rows need no order: one tenant's are spread, so that a big tenant does not wait for itself.
        partition = zlib.crc32(event.event_id.encode()) % self._box.partitions
        self._keep(self._box.packers.costs.put(partition, event, WAIT_S[lane]))

    def lesson(self, news: Served | Rated, lane: Lane) -> "asyncio.Future[int]":
        """`lane`: of the request, whose ledger record stays in work until this is written, too."""
        tenant = digest([news.identity.tenant.encode()])
        return self._put(self._box.packers.lessons, tenant, news, WAIT_S[lane])

    def response(self, identity: Identity, line: ResponseLine) -> None:
        observe_response(line)
        value = line.model_dump_json().encode()
        self._futures.append(asyncio.ensure_future(self._box.append(self._box.topics.responses, identity.key, value)))

    def _put(self, packer: Packer[R], digest: str, member: R, wait_s: float, request: Request | None = None) -> "asyncio.Future[int]":
        """`request`: whose tenant has packets of its own on this topic, so that tenants can take turns at it."""
        key = None if request is None else request.identity.tenant.encode()
        return self._keep(packer.put(partition_of(digest, self._box.partitions), member, wait_s, key))

    def _keep(self, future: "asyncio.Future[int]") -> "asyncio.Future[int]":
        self._futures.append(future)
        return future

    async def settle(self) -> None:
        """Raises the first refusal of the broker, after all the others are decided."""
        futures, self._futures = self._futures, []
        await settle(futures)


def shard_of(miss: Miss, *, semantic: bool) -> str:
    """Requests that may share by similarity meet on their scope's partition; the others spread by fingerprint."""
    request = miss.request
    return request.scope if semantic and request.shareable and not miss.skip_semantic else request.fingerprint

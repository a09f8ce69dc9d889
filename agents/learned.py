"""Runs the learned decision in the engine: one learner per scope shard and promise, kept in a table of its own.

    found near it -> find     -> take that answer | pay for an own one (a miss, or an audited hit)
    own answer    -> answered -> judged beside the requests -> learned from -> kept

A learner is written after each fit and each fallback: what a crash forgets are the lessons since then, right and wrong ones alike.
"""

import asyncio
from collections import OrderedDict, defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import structlog

from ..pipeline.answer_groups import Vote
from ..pipeline.errors import EngineError
from ..pipeline.exact import waiter_of
from ..pipeline.learned import NEIGHBOURS, Candidate, Considered, Fallback, LearnedPolicy, row_of
from ..pipeline.ports import Case, Judge, Neighbour, Point
from ..pipeline.semantic import SharingPolicy
from ..schemas.answers import Told
from ..schemas.corrections import Correction
from ..schemas.requests import Request, Waiter
from .learners import Bounds, Learners, Loaded, Promised
from .metrics import AUDITS, COMPARED, FALLBACKS
from .packer import Now
from .pending import Group, Pending

log = structlog.get_logger(__name__)

AWAITED = 5_000
"""Requests of a partition whose own answer is awaited; those decided longest ago teach nothing."""
TO_JUDGE = 1_000
"""Comparisons that wait for the judge; further ones are left out, whatever they would have said."""
REMEMBERED = 10_000
"""Shared answers of a partition that can still be reported wrong and learned from; older ones are only taken back."""
_NO_VECTOR = np.zeros(0, dtype=np.float32)


class Answers(Protocol):
    """What is known of the answers of the points in the index; see agents/shards.py."""

    def told(self, partition: int, fingerprint: str) -> Told | None: ...

    def drop(self, partition: int, fingerprints: Sequence[str]) -> None:
        """They are not found any more."""
        ...


@dataclass(frozen=True, slots=True)
class _Lesson:
    """A decision whose own answer is awaited, or compared."""

    promised: Promised
    scope: str
    fingerprint: str
    considered: Considered
    at_ms: int
    rate: float
    """At which such requests are compared: 1, or for hits that of the audit."""
    whose: Waiter
    """Who asked."""
    own: Told | None = None

    @property
    def audit(self) -> bool:
        return self.considered.share


class LearnedSharing:
    """Implements `Sharing`. Answers come in by `answered`, from whoever reads the `vectors` topic."""

    searched = NEIGHBOURS + 4

    def __init__(self, learners: Learners, bounds: Bounds, answers: Answers, judge: Judge, now: Now) -> None:
        self._learners = learners
        self._bounds = bounds
        self._answers = answers
        self._judge = judge
        self._now = now
        self._awaited: dict[int, OrderedDict[str, _Lesson]] = defaultdict(OrderedDict)
        self._until: dict[int, OrderedDict[str, list[_Lesson]]] = defaultdict(OrderedDict)
        """Lessons that have their own answer and wait for that of their candidate: its leader may be answered later."""
        self._shared: dict[int, OrderedDict[bytes, _Lesson]] = defaultdict(OrderedDict)
        """By who was given another one's answer."""
        self._to_judge: asyncio.Queue[tuple[int, _Lesson]] = asyncio.Queue(TO_JUDGE)
        self._judging: set[asyncio.Task[None]] = set()
        self._fallbacks = 0

    # --- deciding ---

    def find(self, pending: Pending, neighbours: Sequence[Neighbour], now_ms: int) -> Neighbour | None:
        one = self._of(pending)
        if one is None:
            return None
        learner, request = one.learner, pending.miss.request
        since = learner.trusted_since(request.scope)
        if stale := [n.point.id for n in neighbours if n.point.created_ms < since]:
            self._answers.drop(pending.partition, stale)  # they would only take the places of what is trusted
        considered = pending.considered = learner.consider(pending.text or "", request.scope, neighbours, now_ms)
        best = considered.best
        if not considered.share or best is None:
            return None  # counted when it is clear whether it follows another one that pends
        self._count(one, request.scope, considered)
        rate = learner.audit(best.probability)
        if rate is None:
            self._remember(one, request, considered)
            return best.neighbour
        pending.audit = True
        self._await(one, request, considered, rate)
        return None

    def _of(self, pending: Pending) -> Loaded | None:
        promised = self._promised(pending)
        return self._learners.of(pending.partition, promised) if promised.bound > 0.0 else None

    def _promised(self, pending: Pending) -> Promised:
        request = pending.miss.request
        return self._bounds(request.identity.tenant, request.dimensions.feature_name)

    def _count(self, one: Loaded, scope: str, considered: Considered) -> None:
        before = one.learner.policy
        one.learner.counted(scope, None if considered.best is None else considered.best.row)
        if one.learner.policy is not before:
            self._learners.keep(one)

    # --- coalescing ---

    def kind(self, pending: Pending) -> Hashable:
        return self._promised(pending)

    def pair_policy(self, pending: Pending) -> SharingPolicy:
        one = self._of(pending)
        return LearnedPolicy() if one is None else one.learner.pair_policy(pending.miss.request.scope)

    def settle(self, groups: Sequence[Group]) -> list[Group]:
        settled: list[Group] = []
        for group in groups:
            leader, followers = group.leader, group.followers
            one = self._of(leader)
            if one is None:
                settled.append(group)
                continue
            request, considered = leader.miss.request, leader.considered or Considered((), ())
            if not leader.miss.fallen:  # else it was counted as the follower that it was
                self._count(one, request.scope, considered)
            self._await(one, request, considered, 1.0)
            group.followers = []
            settled.append(group)
            for follower, similarity in followers:
                if self._audited(one, leader, follower, similarity):
                    settled.append(Group(follower, prefix_group=group.prefix_group))
                else:
                    group.followers.append((follower, similarity))
        return settled

    def _audited(self, one: Loaded, leader: Pending, follower: Pending, similarity: float) -> bool:
        """Counts a follower as the hit that it is. True: it is to be paid for all the same."""
        request, now = leader.miss.request, self._now()
        assert leader.vector is not None
        point = Point(request.fingerprint, leader.vector, request.identity.tenant, request.scope, leader.text or "", now, now)
        row = row_of(similarity, similarity - nearest(follower), 1.0 / NEIGHBOURS, identical=leader.text == follower.text)
        candidate = Candidate(Neighbour(point, similarity), row, one.learner.policy.probability(row, request.scope))
        considered = Considered((candidate,), (candidate.neighbour,), share=True)
        self._count(one, request.scope, considered)
        rate = one.learner.audit(candidate.probability)
        if rate is None:
            self._remember(one, follower.miss.request, considered)
            return False
        follower.audit = True
        self._await(one, follower.miss.request, considered, rate)
        return True

    # --- learning ---

    def _await(self, one: Loaded, request: Request, considered: Considered, rate: float) -> None:
        if considered.best is None:
            return
        awaited = self._awaited[one.partition]
        awaited[request.fingerprint] = self._lesson(one, request, considered, rate)
        if considered.share:
            AUDITS.inc()
        if len(awaited) > AWAITED:
            awaited.popitem(last=False)

    def _remember(self, one: Loaded, request: Request, considered: Considered) -> None:
        shared = self._shared[one.partition]
        best = considered.best
        assert best is not None
        shared[request.identity.key] = self._lesson(one, request, Considered((best,), (best.neighbour,), share=True), 1.0)
        if len(shared) > REMEMBERED:
            shared.popitem(last=False)

    def _lesson(self, one: Loaded, request: Request, considered: Considered, rate: float) -> _Lesson:
        return _Lesson(one.promised, request.scope, request.fingerprint, _slim(considered), self._now(), rate, waiter_of(request))

    def corrected(self, correction: Correction) -> None:
        """An answer was reported wrong. Where it was shared by similarity, these two don't agree."""
        for partition in list(self._shared) if correction.by_similarity else ():
            lesson = self._shared[partition].pop(correction.reported.key, None)
            best = lesson.considered.best if lesson is not None else None
            if lesson is not None and best is not None and best.neighbour.point.id == correction.fingerprint:
                self._teach(partition, lesson, [Vote(correction.fingerprint, False)])

    def answered(self, partition: int, fingerprint: str, told: Told, *, changed: bool) -> None:
        """A point has its answer. `changed`: it had another one before, so that it is of none of the groups that it was linked with."""
        if changed:
            self.forgot(partition, fingerprint)
        lesson = self._awaited[partition].pop(fingerprint, None)
        if lesson is not None:
            self._hear(partition, _told(lesson, told))
        for waiting in self._until[partition].pop(fingerprint, []):
            self._hear(partition, waiting)

    def forgot(self, partition: int, fingerprint: str) -> None:
        """A point has left the index."""
        self._until[partition].pop(fingerprint, None)
        for one in self._learners.all(partition):
            one.learner.groups.forget(fingerprint)

    def _hear(self, partition: int, lesson: _Lesson) -> None:
        best = lesson.considered.best
        assert best is not None
        if self._answers.told(partition, best.neighbour.point.id) is None:
            until = self._until[partition]
            until.setdefault(best.neighbour.point.id, []).append(lesson)
            if len(until) > TO_JUDGE:
                until.popitem(last=False)
            return
        if not self._to_judge.full():
            self._to_judge.put_nowait((partition, lesson))
        if len(self._judging) < self._judge.at_once:
            judging = asyncio.create_task(self._judge_all(), name="judge answers")
            self._judging.add(judging)
            judging.add_done_callback(self._judging.discard)

    async def _judge_all(self) -> None:
        while not self._to_judge.empty():
            partition, lesson = self._to_judge.get_nowait()
            try:
                await self._learn(partition, lesson)
            except EngineError as error:
                log.warning("an answer was not compared: nothing is learned of it", error=str(error))
            except Exception:
                log.exception("an answer was not compared: nothing is learned of it")

    async def _learn(self, partition: int, lesson: _Lesson) -> None:
        assert lesson.own is not None
        known = [(n.point.id, told) for n in lesson.considered.neighbours if (told := self._answers.told(partition, n.point.id))]
        case = Case(partition, lesson.scope, lesson.whose)
        said = await self._judge.agree(lesson.own, [told for _, told in known], case)
        votes = [Vote(point, agrees) for (point, _), agrees in zip(known, said, strict=True) if agrees is not None]
        self._teach(partition, lesson, votes)
        best = lesson.considered.best
        for vote in votes:
            if best is not None and vote.point == best.neighbour.point.id:
                COMPARED.labels("audit" if lesson.audit else "miss", "agrees" if vote.agrees else "differs").inc()

    def _teach(self, partition: int, lesson: _Lesson, votes: Sequence[Vote]) -> None:
        one = self._learners.of(partition, lesson.promised)
        if one is None:
            return
        one.behind = True
        fallback = one.learner.learn(lesson.scope, lesson.fingerprint, lesson.considered, votes, lesson.at_ms, lesson.rate)
        if fallback is not None:
            self._tell(one, fallback)
            self._learners.keep(one)

    def _tell(self, one: Loaded, fallback: Fallback) -> None:
        self._fallbacks += 1
        FALLBACKS.labels("all" if fallback.scope is None else "one").inc()
        log.warning(
            "compared answers broke the promised bound: only exact hits are given until enough new ones have been compared",
            tenant=one.promised.tenant,
            feature=one.promised.feature,
            scope=fallback.scope or "all",
            bound=one.promised.bound,
            not_trusted_before_ms=fallback.since_ms,
        )

    # --- ownership ---

    async def forget(self, partitions: Sequence[int]) -> None:
        for partition in partitions:
            self._awaited.pop(partition, None)
            self._until.pop(partition, None)
            self._shared.pop(partition, None)
        self._learners.forget(partitions)

    async def close(self) -> None:
        judging = list(self._judging)
        for task in judging:
            task.cancel()
        await asyncio.gather(*judging, return_exceptions=True)
        await self._learners.kept()

    def shown(self) -> Mapping[str, object]:
        """Sums over the learners in memory."""
        every = [one.learner for one in self._learners.all()]
        noises = [noise for learner in every if (noise := learner.groups.judge_noise) is not None]
        return {
            "policy": "learned",
            "learners": len(every),
            "sharing": sum(learner.shares for learner in every),
            "resting_scopes": sum(learner.resting for learner in every),
            "fallbacks": self._fallbacks,
            "judge_noise": round(max(noises), 4) if noises else None,
            "to_compare": self._to_judge.qsize(),
        }


def nearest(pending: Pending) -> float:
    """Cosine to the nearest answered prompt that was found for it."""
    return max((n.similarity for n in pending.considered.neighbours), default=0.0) if pending.considered is not None else 0.0


def _slim(considered: Considered) -> Considered:
    """Without vectors and texts: thousands are kept until their answers come."""
    slim = {n.point.id: replace(n, point=replace(n.point, vector=_NO_VECTOR, text="")) for n in considered.neighbours}
    candidates = tuple(replace(c, neighbour=slim[c.neighbour.point.id]) for c in considered.candidates)
    return replace(considered, candidates=candidates, neighbours=tuple(slim.values()))


def _told(lesson: _Lesson, own: Told) -> _Lesson:
    return replace(lesson, own=own)

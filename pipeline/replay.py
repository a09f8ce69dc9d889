"""Replays a stream of questions whose right answers are known through the semantic tier's own decision, and counts what went wrong.

Line, one by one -> search -> decide -> hit: takes the neighbour's answer (and may be audited)
                                     -> miss: (coalesced with others that pend ->) answered, compared, kept
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from . import coalesce
from .answer_groups import Vote
from .learned import NEIGHBOURS, Candidate, Considered, Fallback, LearnedPolicy, Learner, row_of
from .learned_settings import LearnedSettings
from .ports import Embedded, Neighbour, Point, VectorIndex
from .semantic import Hit, SharingPolicy, StaticPolicy, decide

TENANT = "replay"
SEARCHED = NEIGHBOURS + 4
"""Some of those found may name other numbers and be left out."""
_FOREVER = 1 << 60


@dataclass(frozen=True, slots=True)
class Line:
    """One question. Two of one scope may share an answer if, and only if, `answer_group` is the same."""

    text: str
    answer_group: str
    scope: str = ""


@dataclass(frozen=True, slots=True)
class ReplayOptions:
    policy: Literal["learned", "static"] = "learned"
    learned: LearnedSettings = field(default_factory=LearnedSettings)
    static: StaticPolicy = field(default_factory=StaticPolicy)
    share: bool = True
    """False: nothing is, as where the engine is promised a bound of 0."""
    coalesce: bool = False
    window: int = 32
    """Misses of one scope that pend together, as in the standard lane."""
    patience: int = 128
    """Requests after whose arrival a window closes in any case."""
    judge_delay: int = 0
    """Requests that are decided before an answer has been compared."""


@dataclass(frozen=True, slots=True)
class Decided:
    """What became of one request."""

    shared: Literal["semantic", "coalesced"] | None
    right: bool | None
    """Whether the best candidate had the right answer, shared or not; None where there was none."""
    similarity: float = 0.0
    probability: float = 0.0


@dataclass(slots=True)
class Outcome:
    """Everything counted; `decided` in the order of the stream."""

    decided: list[Decided]
    audits: int = 0
    entries: int = 0
    decision_ns: list[int] = field(default_factory=list)
    fallbacks: list[tuple[int, Fallback]] = field(default_factory=list)
    judge_noise: float | None = None

    @property
    def hits(self) -> int:
        """Requests that took the answer of another one."""
        return sum(d.shared is not None for d in self.decided)

    @property
    def wrong(self) -> int:
        return sum(d.shared is not None and d.right is False for d in self.decided)

    @property
    def coalesced(self) -> int:
        return sum(d.shared == "coalesced" for d in self.decided)

    @property
    def wrong_merges(self) -> int:
        return sum(d.shared == "coalesced" and d.right is False for d in self.decided)


@dataclass(frozen=True, slots=True)
class _Lesson:
    due: int
    line: int
    considered: Considered
    rate: float


class Replay:
    """One pass. Time is the number of the request, as milliseconds."""

    def __init__(
        self,
        lines: Sequence[Line],
        embedded: Embedded,
        index: VectorIndex,
        options: ReplayOptions,
        clock_ns: Callable[[], int],
        flip: Callable[[], bool] = lambda: False,
    ) -> None:
        """`embedded` has a row per line; `index` is empty; `flip` says of each comparison whether the judge errs."""
        self._lines = lines
        self._embedded = embedded
        self._index = index
        self._options = options
        self._clock_ns = clock_ns
        self._flip = flip
        self._learner = Learner(options.learned) if options.policy == "learned" and options.share else None
        self._lessons: deque[_Lesson] = deque()
        self._pending: dict[str, list[tuple[int, Considered | None]]] = {}
        self._kept: dict[str, list[int]] = {}
        self._served: dict[str, int] = {}
        self._out = Outcome([Decided(None, None)] * len(lines))

    def run(self) -> Iterator[int]:
        """Plays the stream; yields the number of each request that was taken, for progress. The outcome is in `outcome` afterwards."""
        for i, line in enumerate(self._lines):
            self._teach(i)
            self._take(i, line)
            self._close(i)
            yield i
        self._close(_FOREVER)
        if self._learner is not None:
            self._out.judge_noise = self._learner.groups.judge_noise
        self._out.entries = self._index.count()

    @property
    def outcome(self) -> Outcome:
        return self._out

    # --- one request ---

    def _take(self, i: int, line: Line) -> None:
        if not self._embedded.whole[i] or not line.text:
            self._count(line.scope, None)
            return
        found = self._index.search(TENANT, line.scope, self._embedded.vectors[i : i + 1], SEARCHED)[0]
        began = self._clock_ns()
        considered = self._consider(i, line, found)
        rate = self._audited(considered)
        self._out.decision_ns.append(self._clock_ns() - began)
        best = considered.best
        if considered.share and best is not None:
            self._share(i, "semantic", best)
            self._count(line.scope, considered)
            if rate is not None:
                self._out.audits += 1
                self._answered(i, considered, rate)
            return
        if best is not None:
            self._out.decided[i] = Decided(None, self._is_right(i, best), best.neighbour.similarity, best.probability)
        if self._options.coalesce:
            self._pending.setdefault(line.scope, []).append((i, considered))
        else:
            self._count(line.scope, considered)
            self._answered(i, considered, 1.0)

    def _consider(self, i: int, line: Line, found: Sequence[Neighbour]) -> Considered:
        if self._learner is not None:
            return self._learner.consider(line.text, line.scope, found, i)
        decision = decide(line.text, found, self._options.static, i, access_counts=self._served)
        nearest = decision.neighbour if isinstance(decision, Hit) else decision.nearest
        if nearest is None:
            return Considered((), ())
        candidate = Candidate(nearest, row_of(nearest.similarity, nearest.similarity, 0.0), 0.0)
        return Considered((candidate,), (nearest,), self._options.share and isinstance(decision, Hit))

    def _audited(self, considered: Considered) -> float | None:
        if self._learner is None or not considered.share or considered.best is None:
            return None
        return self._learner.audit(considered.best.probability)

    def _share(self, i: int, how: Literal["semantic", "coalesced"], candidate: Candidate) -> None:
        point = candidate.neighbour.point.id
        self._served[point] = self._served.get(point, 0) + 1
        self._out.decided[i] = Decided(how, self._is_right(i, candidate), candidate.neighbour.similarity, candidate.probability)

    def _is_right(self, i: int, candidate: Candidate) -> bool:
        return self._lines[int(candidate.neighbour.point.id)].answer_group == self._lines[i].answer_group

    def _count(self, scope: str, considered: Considered | None) -> None:
        if self._learner is not None:
            self._learner.counted(scope, considered.best.row if considered is not None and considered.best is not None else None)

    def _answered(self, i: int, considered: Considered, rate: float) -> None:
        """The request has an answer of its own: it can be shared from now on, and compared when the judge comes to it."""
        line = self._lines[i]
        self._index.upsert([Point(str(i), self._embedded.vectors[i], TENANT, line.scope, line.text, created_ms=i, expires_ms=_FOREVER)])
        self._kept.setdefault(line.scope, []).append(i)
        if self._learner is not None and considered.best is not None:
            self._lessons.append(_Lesson(i + self._options.judge_delay, i, considered, rate))
            if not self._options.judge_delay:
                self._teach(i)

    # --- what is learned from it ---

    def _teach(self, now: int) -> None:
        while self._lessons and self._lessons[0].due <= now and self._learner is not None:
            lesson = self._lessons.popleft()
            own = self._lines[lesson.line]
            votes = [
                Vote(n.point.id, (self._lines[int(n.point.id)].answer_group == own.answer_group) != self._flip())
                for n in lesson.considered.neighbours
            ]
            fallback = self._learner.learn(own.scope, str(lesson.line), lesson.considered, votes, lesson.line, lesson.rate)
            if fallback is not None:
                self._out.fallbacks.append((now, fallback))
                self._drop(fallback)

    def _drop(self, fallback: Fallback) -> None:
        """What is not trusted any more would only take the places of what is."""
        for scope in list(self._kept) if fallback.scope is None else [fallback.scope]:
            kept = self._kept.get(scope, [])
            gone = [str(i) for i in kept if i < fallback.since_ms]
            self._index.delete(gone)
            self._kept[scope] = [i for i in kept if i >= fallback.since_ms]
            if self._learner is not None:
                for point in gone:
                    self._learner.groups.forget(point)

    # --- windows of misses ---

    def _close(self, now: int) -> None:
        for scope, pending in list(self._pending.items()):
            if len(pending) >= self._options.window or now - pending[0][0] >= self._options.patience:
                del self._pending[scope]
                self._merge(scope, pending)

    def _merge(self, scope: str, pending: Sequence[tuple[int, Considered | None]]) -> None:
        policy: SharingPolicy = self._options.static if self._options.share else LearnedPolicy()
        if self._learner is not None:
            policy = self._learner.pair_policy(scope)
        considered = {i: c or Considered((), ()) for i, c in pending}
        prompts = [coalesce.Pending(str(i), self._lines[i].text, i, _nearest(considered[i])) for i, _ in pending]
        vectors = self._embedded.vectors[[i for i, _ in pending]]
        plan = coalesce.plan(prompts, vectors, policy)
        merges = sorted((m for group in plan.groups for m in group.merges), key=lambda m: int(m.leader))
        for merge in merges:
            leader = int(merge.leader)
            self._count(scope, considered[leader])
            self._answered(leader, considered[leader], 1.0)
            for follower in merge.followers:
                self._follow(int(follower.key), leader, follower.similarity, _nearest(considered[int(follower.key)]))

    def _follow(self, i: int, leader: int, similarity: float, nearest: float) -> None:
        line = self._lines[leader]
        point = Point(str(leader), self._embedded.vectors[leader], TENANT, line.scope, line.text, created_ms=leader, expires_ms=_FOREVER)
        row = row_of(similarity, similarity - nearest, 1.0 / NEIGHBOURS, identical=line.text == self._lines[i].text)
        probability = self._learner.policy.probability(row, line.scope) if self._learner is not None else 0.0
        candidate = Candidate(Neighbour(point, similarity), row, probability)
        considered = Considered((candidate,), (candidate.neighbour,), share=True)
        self._share(i, "coalesced", candidate)
        self._count(line.scope, considered)
        rate = self._audited(considered)
        if rate is not None:
            self._out.audits += 1
            self._answered(i, considered, rate)


def _nearest(considered: Considered) -> float:
    return max((n.similarity for n in considered.neighbours), default=0.0)


def replay(
    lines: Sequence[Line],
    embedded: Embedded,
    index: VectorIndex,
    options: ReplayOptions,
    clock_ns: Callable[[], int],
    flip: Callable[[], bool] = lambda: False,
) -> Outcome:
    """The whole stream at once; see `Replay`."""
    play = Replay(lines, embedded, index, options, clock_ns, flip)
    for _ in play.run():
        pass
    return play.outcome


def wilson(count: int, total: int) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson 1927); (0, 1) where nothing was counted."""
    if total == 0:
        return 0.0, 1.0
    z, share = 1.959964, count / total
    middle = share + z * z / (2 * total)
    half = z * float(np.sqrt(share * (1 - share) / total + z * z / (4 * total * total)))
    scale = 1 + z * z / total
    low = 0.0 if count == 0 else (middle - half) / scale
    return low, 1.0 if count == total else (middle + half) / scale

"""The learned decision: who may share an answer so that the share of wrong ones stays below a stated bound.

    found near it, groups -> considered (text, neighbours, groups) -> Candidate(neighbour, row, probability) -> shared or not
    answers compared      -> Learner.learn -> weights, threshold

One logistic regression for all scopes of a tenant tells from five numbers how probable it is that two prompts have one answer: a bias, the
cosine, log(1 - cosine), the margin to the nearest neighbour of another answer group, and how many of the neighbours are of the same group.
Every miss is a lesson (its new answer is compared with those of its neighbours), and so is an audited hit: a share of hits is sent to
the model all the same. The threshold is the lowest one whose error, over the last requests, stays below the bound, both as it is
predicted and as the compared answers show it (`evidence.py`).

Sources: online-learned thresholds with a bound, vCache (arXiv 2502.03771), which learns one per entry and starves on short streams; audits
drawn where they tell most, Neyman (1934). docs/semantic-cache.md has the figures, docs/decisions/semantic-decision.md what was tried.
"""

from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import exp, log, log10, sqrt

import numpy as np

from .answer_groups import AnswerGroups, Vote
from .drift import DriftMonitor
from .evidence import may_share, wrong_at_most
from .learned_settings import LearnedSettings
from .learned_state import LearnerState, Lesson, Row, Seen
from .logistic import Floats, fit, shrunk_offsets, sigmoid
from .numbers import numbers
from .ports import Neighbour
from .semantic import Features, Verdict

NEIGHBOURS = 8
"""How many neighbours the decision looks at."""
_CLOSEST = 1e-3
"""1 - cosine below this is rounding."""
_SAME = 1e-4
_NEVER = 2.0
_STRATA = 5
_WATCHED = 4096
"""Scopes that are watched one by one; those asked longest ago only count among all."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """The neighbour whose answer would be shared, and what speaks for it."""

    neighbour: Neighbour
    row: Row
    probability: float
    """That the answers agree; 0 as long as nothing was learned."""


@dataclass(frozen=True, slots=True)
class Considered:
    """What a decision looked at, kept until its answer is known and compared."""

    candidates: tuple[Candidate, ...]
    """One per answer group, the most probable first; empty where nothing near may be compared."""
    neighbours: tuple[Neighbour, ...]
    """Those whose answers are worth comparing with the new one, most similar first."""
    share: bool = False

    @property
    def best(self) -> Candidate | None:
        return self.candidates[0] if self.candidates else None


def row_of(similarity: float, margin: float, same_share: float, *, identical: bool = False) -> Row:
    """The features of one candidate. Only the same text is nearer than rounding can tell."""
    return (similarity, -log(_SAME if identical else max(1.0 - similarity, _CLOSEST)), margin, same_share)


@dataclass(frozen=True, slots=True)
class LearnedPolicy:
    """What was learned, frozen: a probability for a row, and from which probability on an answer is shared."""

    weights: tuple[float, ...] = (0.0,) * 5
    threshold: float = _NEVER
    """Above 1: nothing is shared."""
    floor: float = _NEVER
    """No pair below this cosine reaches the threshold, in a scope without an offset."""
    offsets: Mapping[str, float] = field(default_factory=dict)
    """What is added to the log odds in scopes that are known to be stricter or laxer than the others."""

    def probability(self, row: Row, scope: str = "") -> float:
        w = self.weights
        z = self.offsets.get(scope, 0.0) + w[0] + w[1] * row[0] + w[2] * row[1] + w[3] * row[2] + w[4] * row[3]
        return 1.0 / (1.0 + exp(-max(-35.0, min(35.0, z))))

    @property
    def fitted(self) -> bool:
        return any(self.weights)

    @property
    def shares(self) -> bool:
        return self.threshold <= 1.0

    def within(self, scope: str) -> "LearnedPolicy":
        """The same for one scope, as a `SharingPolicy`: for the coalescer, whose pairs have no answers yet and so no groups."""
        offset = self.offsets.get(scope, 0.0)
        if not offset:
            return self
        weights = (self.weights[0] + offset, *self.weights[1:])
        return LearnedPolicy(weights, self.threshold, _floor(np.array(weights), self.threshold))

    def accept(self, features: Features) -> Verdict:
        """The word on a pair of one scope; see `within`."""
        row = row_of(features.similarity, features.margin, features.same_group / NEIGHBOURS, identical=features.identical)
        p = self.probability(row)
        return Verdict(p >= self.threshold, f"the answers agree with probability {p:.4f}, asked is {self.threshold:.4f}", p)

    def consider(
        self,
        text: str,
        neighbours: Sequence[Neighbour],
        now_ms: int,
        group_of: Callable[[str], str],
        trusted_since_ms: int = 0,
        scope: str = "",
    ) -> Considered:
        """The decision about a prompt, given up to `NEIGHBOURS` of its own tenant and scope in any order.

        Neighbours that expired, are older than the scope is trusted, or name other numbers are left out as if they were not there.
        """
        own = numbers(text)
        alive = [
            n for n in neighbours if n.point.expires_ms > now_ms and n.point.created_ms >= trusted_since_ms and numbers(n.point.text) == own
        ]
        if not alive:
            return Considered((), ())
        alive.sort(key=lambda n: (-n.similarity, n.point.id))
        del alive[NEIGHBOURS:]
        groups = [group_of(n.point.id) for n in alive]
        found = [self._candidate(text, scope, i, alive, groups) for i in range(len(alive)) if groups.index(groups[i]) == i]
        if self.fitted:
            found.sort(key=lambda c: -c.probability)
        return Considered(tuple(found), tuple(alive), found[0].probability >= self.threshold)

    def _candidate(self, text: str, scope: str, i: int, alive: Sequence[Neighbour], groups: Sequence[str]) -> Candidate:
        group, similarity = groups[i], alive[i].similarity
        other = next((n.similarity for n, g in zip(alive, groups, strict=True) if g != group), 0.0)
        row = row_of(similarity, similarity - other, groups.count(group) / NEIGHBOURS, identical=alive[i].point.text == text)
        return Candidate(alive[i], row, self.probability(row, scope) if self.fitted else 0.0)


@dataclass(frozen=True, slots=True)
class Fallback:
    """The shared answers were no longer what was promised: the scope (None: all of them) trusts nothing older than `since_ms`."""

    scope: str | None
    since_ms: int
    at_ms: int


class Learner:
    """Learns from compared answers, and keeps the policy up to date. One per tenant; deterministic; not safe for threads."""

    def __init__(self, settings: LearnedSettings | None = None) -> None:
        self.settings = settings or LearnedSettings()
        self.policy = LearnedPolicy()
        self.groups = AnswerGroups()
        self.fallbacks: list[Fallback] = []
        self._lessons: deque[Lesson] = deque(maxlen=self.settings.lessons)
        self._seen: deque[Seen] = deque(maxlen=self.settings.window)
        self._since_fit = 0
        self._since_start = 0
        self._audit_debt = [0.5] * _STRATA
        self._audit_scale = 1.0
        self._all = DriftMonitor()
        self._by_scope: OrderedDict[str, DriftMonitor] = OrderedDict()
        self._trusted: dict[str, int] = {}
        self._fell: Counter[str] = Counter()
        self._resting: Counter[str] = Counter()
        self._trusted_all = 0
        self._fell_all = 0
        self._resting_all = 0

    def state(self) -> LearnerState:
        """What was learned, as a value of its own: see `pipeline/learned_state.py`."""
        return LearnerState(
            promise=self._promise,
            weights=self.policy.weights,
            threshold=self.policy.threshold,
            floor=self.policy.floor,
            offsets=dict(self.policy.offsets),
            lessons=tuple(self._lessons),
            seen=tuple(self._seen),
            since_fit=self._since_fit,
            since_start=self._since_start,
            audit_debt=tuple(self._audit_debt),
            audit_scale=self._audit_scale,
            drift=self._all.copy(),
            drift_by_scope={scope: monitor.copy() for scope, monitor in self._by_scope.items()},
            trusted_all=self._trusted_all,
            trusted=dict(self._trusted),
            fell={scope: times for scope, times in self._fell.items() if times},
            resting={scope: left for scope, left in self._resting.items() if left},
            fell_all=self._fell_all,
            resting_all=self._resting_all,
            groups=self.groups.members(),
            groups_made=self.groups.made,
            judge_votes=self.groups.votes,
            judge_minority=self.groups.minority,
        )

    @classmethod
    def restored(cls, settings: LearnedSettings, state: LearnerState) -> "Learner":
        """A learner that goes on where the one of `state` was. Where another bound is asked for now, the threshold is found anew."""
        learner = cls(settings)
        learner.policy = LearnedPolicy(state.weights, state.threshold, state.floor, state.offsets)
        learner.groups = AnswerGroups.restored(state.groups, state.groups_made, state.judge_votes, state.judge_minority)
        learner._lessons.extend(state.lessons)
        learner._seen.extend(state.seen)
        learner._since_fit, learner._since_start = state.since_fit, state.since_start
        learner._audit_debt, learner._audit_scale = list(state.audit_debt), state.audit_scale
        learner._all = state.drift.copy()
        learner._by_scope = OrderedDict((scope, monitor.copy()) for scope, monitor in state.drift_by_scope.items())
        learner._trusted_all, learner._trusted = state.trusted_all, dict(state.trusted)
        learner._fell, learner._resting = Counter(state.fell), Counter(state.resting)
        learner._fell_all, learner._resting_all = state.fell_all, state.resting_all
        if state.promise != learner._promise:
            learner.policy = replace(learner.policy, threshold=_NEVER, floor=_NEVER)
            learner._refit()
        return learner

    @property
    def _promise(self) -> str:
        return f"{self.settings.bound!r} per {self.settings.per}, safety {self.settings.safety!r}, doubt {self.settings.doubted!r}"

    @property
    def shares(self) -> bool:
        """False: nothing was learned that could be shared, or all of it rests."""
        return self.policy.shares and not self._resting_all

    @property
    def resting(self) -> int:
        """Scopes that fell back and share nothing yet."""
        return sum(left > 0 for left in self._resting.values())

    def _rests(self, scope: str) -> bool:
        return self._resting_all > 0 or self._resting[scope] > 0

    def trusted_since(self, scope: str) -> int:
        """Answers of this scope that are older (ms) are not shared by similarity."""
        return max(self._trusted_all, self._trusted.get(scope, 0))

    def consider(self, text: str, scope: str, neighbours: Sequence[Neighbour], now_ms: int) -> Considered:
        """Decides about one request. `counted` must be called for it once it is clear what it shares."""
        found = self.policy.consider(text, neighbours, now_ms, self.groups.of, self.trusted_since(scope), scope)
        return replace(found, share=False) if found.share and self._rests(scope) else found

    def pair_policy(self, scope: str) -> LearnedPolicy:
        """For prompts that pend together and have no answers yet."""
        return LearnedPolicy() if self._rests(scope) else self.policy.within(scope)

    def counted(self, scope: str, row: Row | None) -> None:
        """One more request was decided: `row` is its best candidate's, whether shared or not."""
        self._seen.append(None if row is None else (scope, row))
        self._since_fit += 1
        self._since_start += 1
        if self._since_fit >= min(self.settings.refit_every, max(50, self._since_start // 4)):
            self._since_fit = 0
            self._refit()

    def audit(self, probability: float) -> float | None:
        """Whether this hit is audited: the rate at which such hits are, or None.

        The rates average to the audit rate and are higher where the outcome is less certain; with them, hits are taken at even
        steps within bands of probability, so that no run of luck decides.
        """
        base, unsure = self.settings.audit_rate, float(self._unsure(np.array(probability)))
        rate = max(base / 4.0, base * unsure * self._audit_scale)
        if self._all.suspects:
            rate *= 4.0
        rate = min(1.0, rate)
        band = min(_STRATA - 1, int(-1.5 * log10(max(1.0 - probability, 1e-9))))
        self._audit_debt[band] += rate
        if self._audit_debt[band] < 1.0:
            return None
        self._audit_debt[band] -= 1.0
        return rate

    def learn(
        self, scope: str, point: str, considered: Considered, votes: Sequence[Vote], at_ms: int, rate: float = 1.0
    ) -> Fallback | None:
        """A new answer, that of `point`, was compared with those of the neighbours that were considered for it.

        `rate`: at which such requests are compared (1 for misses, the audit's rate for hits). `at_ms`: when the request was decided.
        Votes may be missing where a neighbour's answer is gone. Returns the fallback that this lesson brought about.
        """
        best = considered.best
        if best is None or best.neighbour.point.created_ms < self.trusted_since(scope):
            return None
        likely = {c.neighbour.point.id: c.probability for c in considered.candidates}
        agree = self.groups.hear(point, votes, likely)
        if best.neighbour.point.id not in agree:
            return None
        agrees = agree[best.neighbour.point.id]
        self._resting_all = max(0, self._resting_all - 1)
        if self._resting[scope]:
            self._resting[scope] -= 1
        self._lessons.append(Lesson(best.row, agrees, 1.0 / sqrt(rate), scope, at_ms))
        if not self.shares or len(self._lessons) < 1.5 * self.settings.first_lessons:
            return None
        return self._watch(scope, best.probability, agrees, at_ms)

    def _watch(self, scope: str, probability: float, agrees: bool, at_ms: int) -> Fallback | None:
        everywhere = self._all.observe(probability, agrees, at_ms)
        here = self._monitor(scope).observe(probability, agrees, at_ms)
        if here is None and everywhere is None:
            return None
        alone = everywhere is None or (here is not None and len(self._by_scope) > 1)
        if alone and here is not None:
            self._trusted[scope] = here
            # The first time its answers may have changed, and what disagreed says nothing of later ones. Again, it is the scope's nature.
            kept = [e for e in self._lessons if e.scope != scope or e.at_ms < here or self._fell[scope]]
            self._resting[scope] = self.settings.rest << min(10, self._fell[scope])
            self._fell[scope] += 1
            fallback = Fallback(scope, here, at_ms)
        else:
            assert everywhere is not None
            # As with a scope: again and soon, it is the answers' nature that contradicts the prediction; to forget it were to repeat it.
            again = self._fell_all > 0 and self._since_start < self.settings.lessons
            kept = list(self._lessons) if again else []
            self._resting_all = self.settings.rest << min(10, self._fell_all) if again else 0
            self._fell_all = self._fell_all + 1 if again else 1
            self._trusted_all, fallback = everywhere, Fallback(None, everywhere, at_ms)
            self.policy = LearnedPolicy()
            self._seen.clear()
            self._since_start = self._since_fit = 0
        self._lessons.clear()
        self._lessons.extend(kept)
        self._all.reset()
        self._by_scope.clear()
        self.fallbacks.append(fallback)
        return fallback

    def _monitor(self, scope: str) -> DriftMonitor:
        monitor = self._by_scope.setdefault(scope, DriftMonitor())
        self._by_scope.move_to_end(scope)
        if len(self._by_scope) > _WATCHED:
            self._by_scope.popitem(last=False)
        return monitor

    def _refit(self) -> None:
        if len(self._lessons) < self.settings.first_lessons:
            return
        rows = _with_bias([lesson.row for lesson in self._lessons])
        labels = np.array([lesson.agrees for lesson in self._lessons], dtype=np.float64)
        row_weights = np.array([lesson.weight for lesson in self._lessons], dtype=np.float64)
        scopes = [lesson.scope for lesson in self._lessons]
        base = np.array([self.policy.offsets.get(scope, 0.0) for scope in scopes])
        weights = fit(rows, labels, row_weights, np.array(self.policy.weights), self.settings.penalty, base)
        offsets = self._offsets(rows @ weights, labels, row_weights, scopes)
        seen = [entry for entry in self._seen if entry is not None]
        log_odds = _with_bias([row for _, row in seen]) @ weights + np.array([offsets.get(scope, 0.0) for scope, _ in seen])
        chances = np.sort(sigmoid(log_odds))[::-1]
        told = sigmoid(rows @ weights + np.array([offsets.get(scope, 0.0) for scope in scopes]))
        shown = wrong_at_most(chances, told, labels, row_weights, self.settings.doubted)
        shared = may_share(chances, shown, self.settings, len(self._lessons), len(self._seen))
        threshold = float(chances[shared - 1]) if shared else _NEVER
        if shared:
            self._audit_scale = 1.0 / float(self._unsure(chances[:shared]).mean())
        self.policy = LearnedPolicy(tuple(weights.tolist()), threshold, _floor(weights, threshold), offsets)

    def _unsure(self, chances: Floats) -> Floats:
        """The deviation of the outcomes. A tail below the bound is not believed: what is wrong there is found by audits alone."""
        p = np.minimum(chances, 1.0 - self.settings.bound)
        found: Floats = np.sqrt(p * (1.0 - p))
        return found

    def _offsets(self, log_odds: Floats, labels: Floats, row_weights: Floats, scopes: Sequence[str]) -> dict[str, float]:
        names: dict[str, int] = {}
        group_of = np.array([names.setdefault(scope, len(names)) for scope in scopes], dtype=np.int64)
        if len(names) == 1:  # the bias says it
            return {}
        found = shrunk_offsets(log_odds, labels, row_weights, group_of, self.settings.scope_ridge)
        return dict(zip(names, found.tolist(), strict=True))


def _with_bias(rows: Sequence[Row]) -> Floats:
    array = np.array(rows, dtype=np.float64).reshape(len(rows), 4)
    return np.column_stack([np.ones(len(rows)), array])


def _floor(weights: Floats, threshold: float) -> float:
    """The lowest cosine, to a hundredth, at which a pair without any answered neighbour could reach the threshold."""
    steps = np.arange(0, 101) / 100.0
    rows = _with_bias([row_of(float(s), float(s), 1.0 / NEIGHBOURS) for s in steps])
    enough = np.flatnonzero(sigmoid(rows @ weights) >= threshold)
    return max(0.01, float(steps[enough[0]]) - 0.01) if len(enough) else _NEVER

"""The keys of shared prefixes: which call goes with which key, and who is held back so that fewer keys have to be written.

OpenAI sends calls with one prefix and key beyond some 15 a minute to another machine, which has another cache. So each 15 calls that a
group sends within a minute cost one writing of its prefix, and a group sent in one stretch costs the most. Here the calls of a group that
find no key with room are held back while other calls are there to be sent, so that many groups are sent side by side, each as fast as
its keys take. Nothing is to be sent later for it than it could be: a new key is begun before the calls that may go run short.
"""

from collections import Counter, deque
from dataclasses import dataclass, field

KEY_MS = 61_000
"""So long a call counts against its key: a minute, and what it may take longer to its provider than the next ones."""
AHEAD_MS = 1_000
"""Calls that have a key should last for this and for as long as a new key takes to be written."""
MOST_LATE_MS = (0, 10_000, 600_000)
"""By urgency: nobody waits longer than this and one and a half times as long as in the order in which the calls came."""
_RATE_MS = 10_000
_LEAST_RATE_MS = 2_000
"""A rate is that of the last ten seconds, and of two at least."""
_MOST_EXPECTED_PER_S = 100.0
"""A job that could go faster is so fast after some seconds; a few keys too many at the start of a slow one cost next to nothing."""
_WRITTEN_MS = 2_000.0
"""After it was begun a key can be read, as long as that is not known better."""
_SMOOTH = 0.2


@dataclass(slots=True, eq=False)
class Claim:
    """One call's claim to a key of its group."""

    urgency: int
    """0 is the most urgent, and is never held."""
    share: str
    """Whose call it is: it is held for calls of the same one only."""
    group: "Group | None" = None
    number: int | None = None
    """Of its key, once it has one: it stays what it is."""
    place: int = -1
    """Calls that were or will be sent before it, by the order in which they came,"""
    ahead: int = 0
    """and those of them that were not sent when it came."""
    began_ms: int = -1
    """When it got a new key, if it did."""
    sent: bool = False


@dataclass(slots=True)
class _Key:
    unsent: int = 0
    sent: deque[int] = field(default_factory=deque)


@dataclass(slots=True, eq=False)
class Group:
    """The calls that share a prefix, and its keys."""

    name: str
    keys: list[_Key] = field(default_factory=list)
    held: dict[Claim, None] = field(default_factory=dict)
    """In the order in which they came."""
    full_until_ms: int = 0
    """No key has room before, unless a call gives its place back."""

    @property
    def first(self) -> Claim:
        """Of those that are held."""
        return next(iter(self.held))

    def room(self, now_ms: int, per_key: int) -> int | None:
        """Number of the first key that takes one more call now; None where none does."""
        if now_ms < self.full_until_ms:
            return None
        for number, key in enumerate(self.keys):
            while key.sent and key.sent[0] <= now_ms - KEY_MS:
                key.sent.popleft()
            if key.unsent + len(key.sent) < per_key:
                return number
        self.full_until_ms = min((key.sent[0] for key in self.keys if key.sent), default=now_ms) + KEY_MS
        return None


class KeyRing:
    """The keys of all groups of one model. Not thread-safe; times in epoch ms are given."""

    def __init__(self, per_key: int, *, calls_per_s: float) -> None:
        """`per_key`: calls a minute. `calls_per_s`: what can be sent, as far as that is known."""
        self._per_key = self._share = per_key
        self._expected_per_s = min(_MOST_EXPECTED_PER_S, calls_per_s)
        self._sends: deque[int] = deque()
        self._written_ms = _WRITTEN_MS
        self._sent = self._unsent = 0
        """Calls so far, and calls that are known."""
        self._ready: Counter[tuple[str, int]] = Counter()
        """Calls with a key that are not sent, by share and urgency."""
        self._holding: dict[Group, None] = {}

    def set_share(self, share: float) -> None:
        """This worker's part of what a key takes: the others call with the same keys."""
        self._share = max(1, int(self._per_key * share))

    @property
    def holds(self) -> bool:
        """Is anybody held?"""
        return bool(self._holding)

    def ask(self, claim: Claim, group: Group, now_ms: int, *, insist: bool = False) -> bool:
        """True: the call has a key. False: it is held until `release` names it, or it insists."""
        if claim.number is not None:
            return True
        if claim.group is None:
            claim.group, claim.place, claim.ahead = group, self._sent + self._unsent, self._unsent
            self._unsent += 1
        insist = insist or claim.urgency == 0
        number = None
        if insist or not group.held:  # else who came before it and is held goes first
            number = group.room(now_ms, self._share)
        if number is None and (insist or not group.keys):
            number = len(group.keys)
        if number is None:
            group.held[claim] = None
            self._holding[group] = None
            return False
        self._grant(claim, group, number, now_ms)
        return True

    def release(self, now_ms: int) -> list[Claim]:
        """Those that were held and have a key now."""
        granted: list[Claim] = []
        for group in list(self._holding):
            while group.held and (number := group.room(now_ms, self._share)) is not None:
                granted.append(self._grant(group.first, group, number, now_ms))
        while wanting := [group for group in self._holding if self._may_begin(group.first, now_ms)]:
            group = max(wanting, key=lambda one: len(one.held) / len(one.keys))
            number = len(group.keys)
            granted += [self._grant(claim, group, number, now_ms) for claim in list(group.held)[: self._share]]
        return granted

    def send(self, claim: Claim, now_ms: int) -> None:
        """It is sent now, with a key or without."""
        self._sends.append(now_ms)
        key = self._gone(claim)
        if key is not None:
            key.sent.append(now_ms)
            self._sent += 1
        claim.sent = True

    def over(self, claim: Claim, now_ms: int) -> None:
        """It is answered, or will never be sent."""
        if not claim.sent:
            self._gone(claim)
        elif claim.began_ms >= 0:
            self._written_ms += _SMOOTH * (now_ms - claim.began_ms - self._written_ms)

    def _gone(self, claim: Claim) -> _Key | None:
        """It is not among the unsent any more. Returns its key."""
        group, claim.group = claim.group, None
        if group is None:
            return None
        self._unsent -= 1
        if claim.number is None:
            self._let_go(claim, group)
            return None
        key = group.keys[claim.number]
        key.unsent -= 1
        self._ready[claim.share, claim.urgency] -= 1
        group.full_until_ms = 0
        return key

    def _grant(self, claim: Claim, group: Group, number: int, now_ms: int) -> Claim:
        if number == len(group.keys):
            claim.began_ms = now_ms
            group.keys.append(_Key())
            group.full_until_ms = 0
        group.keys[number].unsent += 1
        claim.number = number
        self._ready[claim.share, claim.urgency] += 1
        self._let_go(claim, group)
        return claim

    def _let_go(self, claim: Claim, group: Group) -> None:
        group.held.pop(claim, None)
        if not group.held:
            self._holding.pop(group, None)

    def _may_begin(self, claim: Claim, now_ms: int) -> bool:
        """May a new key be begun for it?"""
        ready = sum(self._ready[claim.share, urgency] for urgency in range(claim.urgency + 1))
        return ready < max(1.0, self._per_ms(now_ms) * (self._written_ms + AHEAD_MS)) or self._is_late(claim, now_ms)

    def _is_late(self, claim: Claim, now_ms: int) -> bool:
        most = claim.ahead / 2 + self._per_ms(now_ms) * MOST_LATE_MS[min(claim.urgency, 2)]
        return self._sent - claim.place >= most

    def _per_ms(self, now_ms: int) -> float:
        """What is sent, or could be sent: after a pause a job is not to begin at the pace of the pause."""
        while self._sends and self._sends[0] <= now_ms - _RATE_MS:
            self._sends.popleft()
        seen = len(self._sends) / max(_LEAST_RATE_MS, now_ms - self._sends[0]) if self._sends else 0.0
        return max(self._expected_per_s / 1000, seen)

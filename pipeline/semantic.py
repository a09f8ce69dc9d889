"""The semantic tier's decision: may this prompt take the answer of a near one?

    text, neighbours of its scope -> Hit(neighbour) | Miss(reason)

Every check that can only refuse (number veto, expiry) stands here; how similar is similar enough is a `SharingPolicy`.
The coalescer asks the same policy about prompts that have no answer yet.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from ..schemas.record import JsonObject
from .numbers import numbers
from .ports import Neighbour
from .text import last_user_text

_NO_GROUPS: Mapping[str, str] = {}
_NO_COUNTS: Mapping[str, int] = {}


@dataclass(frozen=True, slots=True)
class Features:
    """What a policy may judge a candidate by."""

    similarity: float
    """Cosine, -1 to 1."""
    identical: bool = False
    """The texts are the same, character by character."""
    margin: float = 1.0
    """Similarity minus that of the nearest neighbour of another answer group; 1 where there is none."""
    same_group: int = 1
    """How many of the neighbours found are of the candidate's answer group, itself included."""
    age_ms: int = 0
    access_count: int = 0
    """How often this answer has been served."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """A policy's word on one candidate. `probability`: that the answers agree, where the policy estimates it."""

    accepted: bool
    reason: str
    probability: float | None = None


class SharingPolicy(Protocol):
    """Decides which prompts may share an answer. Deterministic; state is learned elsewhere and handed in."""

    @property
    def floor(self) -> float:
        """No candidate below this cosine is ever accepted: what searching and clustering may leave out."""
        ...

    def accept(self, features: Features) -> Verdict: ...


@dataclass(frozen=True, slots=True)
class StaticPolicy:
    """A fixed threshold with quality gates: simple, and with an error that depends on the data (17 % wrong hits at 0.92 were seen)."""

    threshold: float = 0.92
    max_age_hours: float = 24.0
    min_access_count: int = 0
    """How often an answer must have been served before it is shared by similarity; the design document's gate is 4."""

    def __post_init__(self) -> None:
        if not 0.0 < self.threshold <= 1.0:
            raise ValueError(
                f"CACHE_SIMILARITY_THRESHOLD is {self.threshold}, but a cosine that may share an answer is above 0 and at most 1"
            )

    @property
    def floor(self) -> float:
        return self.threshold

    def accept(self, features: Features) -> Verdict:
        if features.age_ms > self.max_age_hours * 3_600_000:
            return Verdict(False, f"older than {self.max_age_hours:g} h")
        if features.identical:
            return Verdict(True, "the same text")
        if features.similarity < self.threshold:
            return Verdict(False, f"similarity {features.similarity:.3f} is below {self.threshold:g}")
        if features.access_count < self.min_access_count:
            return Verdict(False, f"served {features.access_count} times, fewer than {self.min_access_count}")
        return Verdict(True, f"similarity {features.similarity:.3f}")


@dataclass(frozen=True, slots=True)
class Hit:
    """Take the neighbour's answer."""

    neighbour: Neighbour
    verdict: Verdict
    features: Features


@dataclass(frozen=True, slots=True)
class Miss:
    """Ask a model. `nearest` is the best candidate that was refused, where there was one."""

    reason: str
    nearest: Neighbour | None = None


Decision = Hit | Miss


def decide(
    text: str,
    neighbours: Sequence[Neighbour],
    policy: SharingPolicy,
    now_ms: int,
    *,
    groups: Mapping[str, str] = _NO_GROUPS,
    access_counts: Mapping[str, int] = _NO_COUNTS,
) -> Decision:
    """The most similar neighbour that nothing speaks against, or why there is none.

    `neighbours` are of the text's own tenant and scope, in any order. `groups` maps a point's id to the group of points whose
    answers are known to be equal (a point that is not in it is a group of its own); `access_counts` says how often each was served.
    """
    alive = sorted((n for n in neighbours if n.point.expires_ms > now_ms), key=lambda n: (-n.similarity, n.point.id))
    alive.sort(key=lambda n: n.point.text != text)
    if not alive:
        return Miss("nothing similar was answered yet in this scope")
    first_refusal = ""
    for candidate in alive:
        refusal: str | None
        if candidate.similarity < policy.floor and candidate.point.text != text:
            refusal = f"similarity {candidate.similarity:.3f} is below {policy.floor:g}"
        else:
            features = features_of(text, candidate, alive, now_ms, groups, access_counts)
            verdict = policy.accept(features)
            # The veto reads both texts, so it comes last: most candidates never get here.
            refusal = veto(text, candidate.point.text) if verdict.accepted else verdict.reason
            if refusal is None:
                return Hit(candidate, verdict, features)
        first_refusal = first_refusal or refusal
    return Miss(first_refusal, alive[0])


def veto(text: str, other: str) -> str | None:
    """Why two texts must not share an answer whatever their similarity, or None."""
    own, theirs = numbers(text), numbers(other)
    if own == theirs:
        return None
    return f"its numbers differ: {' '.join(own) or 'none'} against {' '.join(theirs) or 'none'}"


def features_of(
    text: str,
    candidate: Neighbour,
    neighbours: Sequence[Neighbour],
    now_ms: int,
    groups: Mapping[str, str] = _NO_GROUPS,
    access_counts: Mapping[str, int] = _NO_COUNTS,
) -> Features:
    """Features of a candidate among all neighbours that were found."""
    point = candidate.point
    group = groups.get(point.id, point.id)
    others = [n.similarity for n in neighbours if groups.get(n.point.id, n.point.id) != group]
    return Features(
        similarity=candidate.similarity,
        identical=point.text == text,
        margin=candidate.similarity - max(others) if others else 1.0,
        same_group=len(neighbours) - len(others),
        age_ms=max(0, now_ms - point.created_ms),
        access_count=access_counts.get(point.id, 0),
    )


def comparable_text(body: JsonObject) -> str | None:
    """The text by which this request may be compared to others of its scope, or None where it must not be.

    The scope holds the conversation up to the last turn, so only that turn is compared. None: images, tool results or an assistant's turn
    at the end, no text, or a turn that repeats an earlier one of the user (an agent's loop that says "continue" wants something new).
    """
    text = last_user_text(body)
    if text is None:
        return None
    for message in body["messages"][:-1]:
        role = message.get("role") if isinstance(message, dict) else None
        if role in ("tool", "function") or (role == "user" and last_user_text({"messages": [message]}) == text):
            return None
    return text

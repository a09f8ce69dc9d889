"""Coalescing: which of the pending prompts of one scope share a call, and which are sent together.

    pending, in flight -> Plan: joins   (follow a leader that is in flight already)
                                groups  (merges, leader first; each merge is one call with its followers)

Windowed DBSCAN (Ester et al. 1996; scikit-learn) over cosine distance, min_samples 2, eps from the sharing policy. DBSCAN's clusters are
chains: their ends may have nothing in common. So a cluster is cut into stars, in which the policy accepts every follower as a follower of
its leader itself. Leaders that are merely similar are put side by side, so that the provider meets their shared prefix in one stretch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .numbers import numbers
from .ports import Vectors
from .semantic import Features, SharingPolicy

if TYPE_CHECKING:
    from sklearn.cluster import DBSCAN

Matrix = NDArray[np.float32]
Mask = NDArray[np.bool_]

_ROUNDING = 1e-5
"""What float32 may add to or take from the cosine of two unit vectors."""


@dataclass(frozen=True, slots=True)
class Pending:
    """A prompt without an answer. Its vector travels beside it, in the row of the same number."""

    key: str
    """Fingerprint of the request."""
    text: str
    arrived_ms: int
    nearest: float = 0.0
    """Cosine to the nearest prompt that is answered already; it was not near enough."""
    fallen: tuple[str, ...] = ()
    """Keys that it followed before, and that gave it nothing: it follows none of them."""


@dataclass(frozen=True, slots=True)
class Follower:
    """A prompt that takes the answer of another one."""

    key: str
    similarity: float


@dataclass(frozen=True, slots=True)
class Join:
    """A prompt that waits for a leader that was sent before this window."""

    key: str
    leader: str
    similarity: float


@dataclass(frozen=True, slots=True)
class Merge:
    """One call: the leader is sent, the followers get its answer."""

    leader: str
    followers: tuple[Follower, ...] = ()


@dataclass(frozen=True, slots=True)
class Group:
    """Calls to be sent one after the other, the first one before the rest."""

    merges: tuple[Merge, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """Every pending prompt is exactly one of: a join, a leader, a follower."""

    joins: tuple[Join, ...]
    groups: tuple[Group, ...]


def plan(
    pending: Sequence[Pending],
    vectors: Vectors,
    policy: SharingPolicy,
    *,
    in_flight: Sequence[Pending] = (),
    in_flight_vectors: Vectors | None = None,
    group_similarity: float = 0.85,
    max_group: int = 64,
) -> Plan:
    """Plans one window of one scope. The same prompts in any order give the same plan.

    `vectors` has shape (len(pending), d), `in_flight_vectors` (len(in_flight), d), rows of unit length. Rows of zeros (prompts that the
    embedder could not see in full) are alone. `max_group` bounds the calls of a group; followers are not counted.
    Raises ValueError where a key is pending twice: the caller has single flight for that.
    """
    if len({p.key for p in pending}) != len(pending):
        raise ValueError("a fingerprint is pending twice in one window: single flight comes before coalescing")
    order = sorted(range(len(pending)), key=lambda i: (pending[i].arrived_ms, pending[i].key))
    window = [pending[i] for i in order]
    rows = np.ascontiguousarray(vectors[order], dtype=np.float32)
    signatures = _Signatures()
    joins = _join_flights(window, rows, in_flight, in_flight_vectors, policy, signatures) if in_flight else {}
    rest = [i for i in range(len(window)) if i not in joins]
    window_left, rows_left = [window[i] for i in rest], rows[rest]
    merges = _merge(window_left, rows_left, policy, signatures)
    groups = _group(window_left, rows_left, merges, group_similarity, max_group)
    return Plan(joins=tuple(joins[i] for i in sorted(joins)), groups=tuple(groups))


class _Signatures:
    """Numbers of texts as integers, equal where no number differs."""

    def __init__(self) -> None:
        self._ids: dict[tuple[str, ...], int] = {}

    def of(self, prompts: Sequence[Pending]) -> NDArray[np.int64]:
        return np.array([self._ids.setdefault(numbers(p.text), len(self._ids)) for p in prompts], dtype=np.int64)


def _accepts(policy: SharingPolicy, similarity: float, follower: Pending, leader: Pending) -> bool:
    """The leader has no answer yet: it is a group of its own, and what is answered is of another group."""
    identical = follower.text == leader.text
    return policy.accept(Features(similarity=similarity, identical=identical, margin=similarity - follower.nearest)).accepted


def _join_flights(
    window: list[Pending],
    rows: Vectors,
    in_flight: Sequence[Pending],
    leaders: Vectors | None,
    policy: SharingPolicy,
    signatures: _Signatures,
) -> dict[int, Join]:
    """By row of the window: the most similar leader in flight that the policy accepts."""
    if leaders is None or len(leaders) != len(in_flight):
        raise ValueError(f"{len(in_flight)} leaders are in flight, but there are {0 if leaders is None else len(leaders)} vectors of them")
    similar = rows @ np.asarray(leaders, dtype=np.float32).T
    near = (similar >= policy.floor - _ROUNDING) & (signatures.of(window)[:, None] == signatures.of(in_flight)[None, :])
    joins: dict[int, Join] = {}
    for i in np.flatnonzero(near.any(axis=1)):
        row = int(i)
        candidates = [int(j) for j in np.flatnonzero(near[row])]
        candidates.sort(key=lambda j: (-float(similar[row, j]), in_flight[j].arrived_ms, in_flight[j].key))
        for j in candidates:
            if in_flight[j].key not in window[row].fallen and _accepts(policy, float(similar[row, j]), window[row], in_flight[j]):
                joins[row] = Join(window[row].key, in_flight[j].key, float(similar[row, j]))
                break
    return joins


def _merge(window: list[Pending], rows: Vectors, policy: SharingPolicy, signatures: _Signatures) -> dict[int, list[tuple[int, float]]]:
    """Leader's row -> its followers' rows and similarities. Every row is once in it."""
    similar = rows @ rows.T
    marks = signatures.of(window)
    near = (similar >= policy.floor - _ROUNDING) & (marks[:, None] == marks[None, :])
    np.fill_diagonal(near, False)
    _part(near, window)
    merges: dict[int, list[tuple[int, float]]] = {}
    for cluster in _clusters(similar, near, 1.0 - policy.floor + _ROUNDING):
        merges.update(_stars(cluster, window, similar, near, policy))
    followers = {row for members in merges.values() for row, _ in members}
    for row in range(len(window)):
        if row not in followers:
            merges.setdefault(row, [])
    return merges


def _part(near: Mask, window: list[Pending]) -> None:
    """Takes apart who followed whom in vain, both ways: a pair needs no leader that only one of them could be."""
    rows = {prompt.key: row for row, prompt in enumerate(window)}
    for row, prompt in enumerate(window):
        for other in (rows[key] for key in prompt.fallen if key in rows):
            near[row, other] = near[other, row] = False


def load_clustering() -> "type[DBSCAN]":
    """Imported here: it takes a second, and only workers coalesce. They call it before they are ready, not in their first window."""
    from sklearn.cluster import DBSCAN

    found: type[DBSCAN] = DBSCAN
    return found


def _clusters(similar: Matrix, near: Mask, eps: float) -> list[list[int]]:
    """DBSCAN's clusters as ascending rows; pairs that are not `near` are at the greatest distance. Noise is in none."""
    linked = np.flatnonzero(near.any(axis=1))
    if len(linked) == 0:
        return []
    # Only rows with a neighbour at all: in a window of strangers, the usual case, there is nothing to cluster.
    part = np.ix_(linked, linked)
    distance = np.where(near[part], np.clip(1.0 - similar[part], 0.0, 2.0), 2.0)
    np.fill_diagonal(distance, 0.0)
    labels = load_clustering()(eps=eps, min_samples=2, metric="precomputed").fit(distance).labels_
    clusters: dict[int, list[int]] = {}
    for row, label in zip(linked.tolist(), labels.tolist(), strict=True):
        if label >= 0:
            clusters.setdefault(label, []).append(row)
    return sorted(clusters.values())


def _stars(
    cluster: list[int], window: list[Pending], similar: Matrix, near: Mask, policy: SharingPolicy
) -> dict[int, list[tuple[int, float]]]:
    """Cuts a cluster into leaders and followers: again and again the prompt with the most neighbours leads, the earliest among equals."""
    free = np.zeros(len(window), dtype=np.bool_)
    free[cluster] = True
    degree = near[cluster].sum(axis=1)
    left = dict(zip(cluster, degree.tolist(), strict=True))
    stars: dict[int, list[tuple[int, float]]] = {}
    while left:
        leader = max(left, key=lambda row: (left[row], -row))
        free[leader] = False
        del left[leader]
        members: list[tuple[int, float]] = []
        for row in np.flatnonzero(near[leader] & free).tolist():
            if _accepts(policy, float(similar[leader, row]), window[row], window[leader]):
                members.append((row, float(similar[leader, row])))
                free[row] = False
                del left[row]
        stars[leader] = members
        gone = [leader, *(row for row, _ in members)]
        for row in left:
            left[row] -= int(near[row, gone].sum())
    return stars


def _group(
    window: list[Pending], rows: Vectors, merges: dict[int, list[tuple[int, float]]], group_similarity: float, max_group: int
) -> list[Group]:
    """Puts similar leaders side by side. Chains do no harm here: nothing but the order of sending depends on it."""
    leaders = sorted(merges)
    similar = rows[leaders] @ rows[leaders].T
    near = similar >= group_similarity - _ROUNDING
    np.fill_diagonal(near, False)
    alone = set(range(len(leaders)))
    clusters: list[list[int]] = []
    for cluster in _clusters(similar, near, 1.0 - group_similarity + _ROUNDING):
        alone.difference_update(cluster)
        # The most central one first: its prefix is what the others find in the provider's cache.
        first = max(cluster, key=lambda i: (int(near[i].sum()), -i))
        ordered = sorted(cluster, key=lambda i: (i != first, -round(float(similar[first, i]), 4), i))
        clusters.extend(ordered[i : i + max_group] for i in range(0, len(ordered), max_group))
    clusters.extend([i] for i in alone)
    clusters.sort(key=min)
    return [Group(tuple(_as_merge(leaders[i], window, merges) for i in cluster)) for cluster in clusters]


def _as_merge(leader: int, window: list[Pending], merges: dict[int, list[tuple[int, float]]]) -> Merge:
    return Merge(window[leader].key, tuple(Follower(window[row].key, similarity) for row, similarity in merges[leader]))

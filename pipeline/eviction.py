"""Which cached answers go first when a tier is full: lru, lfu or cost_aware, by count and by bytes.

    index.put(key, size, saved_pico) -> keys to delete from the store
    index.touch(key)                    a hit
    index.revalue(key, saved_pico)      what a hit saves is known now

Only keys and counters are held here; the answers are in the tier's own store. Every operation costs O(log n) amortised, for lru O(1).
"""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from typing import Generic, Literal, TypeVar

PolicyName = Literal["lru", "lfu", "cost_aware"]
K = TypeVar("K", bound=Hashable)


@dataclass(frozen=True, slots=True)
class Limits:
    """`max_entries` answers and `max_bytes` of them; None: no limit."""

    max_entries: int | None = None
    max_bytes: int | None = None


@dataclass(slots=True)
class _Fame:
    """What an entry has earned. `rank`: the lowest goes first, among equals the one whose last access, `turn`, is the oldest."""

    size: int
    saved_pico: int
    hits: int = 0
    rank: int = 0
    turn: int = 0


def _lfu(fame: _Fame, _evicted: int) -> int:
    return fame.hits


def _cost_aware(fame: _Fame, evicted: int) -> int:
    """GreedyDual-Size-Frequency (Cherkasova 1998): dollars saved per byte, plus the worth of what was last evicted.

    That addend is the ageing: an answer that was popular long ago is overtaken by what is asked for now.
    """
    return evicted + (fame.hits + 1) * fame.saved_pico * (1 << 20) // max(1, fame.size)


_RANKINGS: dict[PolicyName, Callable[[_Fame, int], int]] = {"lfu": _lfu, "cost_aware": _cost_aware}


class _Ranked(Generic[K]):
    """Entries by what they are worth. Not needed for lru, where the order says it, and it is most of the memory."""

    def __init__(self, rank: Callable[[_Fame, int], int]) -> None:
        self._rank = rank
        self._fames: dict[K, _Fame] = {}
        self._heap: list[tuple[int, int, K]] = []
        self._turn = 0
        self._evicted = 0

    def put(self, key: K, size: int, saved_pico: int, hits: int) -> None:
        self._fames[key] = _Fame(size, saved_pico, hits)
        self._renew(key)

    def touch(self, key: K) -> None:
        self._fames[key].hits += 1
        self._renew(key)

    def revalue(self, key: K, saved_pico: int) -> None:
        self._fames[key].saved_pico = saved_pico
        self._renew(key)

    def remove(self, key: K) -> int:
        """Returns its hits, 0 where it was not here."""
        fame = self._fames.pop(key, None)
        return fame.hits if fame is not None else 0

    def worst(self) -> K:
        while True:
            rank, turn, key = heappop(self._heap)
            fame = self._fames.get(key)
            if fame is not None and fame.turn == turn:
                self._evicted = max(self._evicted, rank)
                return key

    def _renew(self, key: K) -> None:
        fame = self._fames[key]
        self._turn += 1
        fame.turn, fame.rank = self._turn, self._rank(fame, self._evicted)
        heappush(self._heap, (fame.rank, fame.turn, key))
        # Every touch leaves a stale row in the heap: rebuilt before they are the most of it.
        if len(self._heap) > 2 * len(self._fames) + 64:
            self._heap = [(f.rank, f.turn, k) for k, f in self._fames.items()]
            heapify(self._heap)


class EvictionIndex(Generic[K]):
    """Keeps count of one tier's entries and says which must go. Not safe for threads."""

    def __init__(self, policy: PolicyName, limits: Limits) -> None:
        self._limits = limits
        self._sizes: OrderedDict[K, int] = OrderedDict()
        """In the order of the last access."""
        self._ranked: _Ranked[K] | None = None if policy == "lru" else _Ranked(_RANKINGS[policy])
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._sizes)

    def __contains__(self, key: K) -> bool:
        return key in self._sizes

    @property
    def bytes(self) -> int:
        return self._bytes

    def put(self, key: K, size: int, saved_pico: int = 0) -> list[K]:
        """Adds or replaces an entry; returns the keys that must go for it, worst first.

        `size` in bytes; `saved_pico` is what one hit saves, in 10^-12 USD. An entry that is larger than the whole tier goes itself.
        A replaced entry keeps its hits.
        """
        if size < 0 or saved_pico < 0:
            raise ValueError(f"an entry of {size} bytes that saves {saved_pico} can't be: both are 0 or more")
        hits = self.remove(key)
        if not self._room(size, alone=True):
            return [key]
        gone = self._make_room(size)
        self._sizes[key] = size
        self._bytes += size
        if self._ranked is not None:
            self._ranked.put(key, size, saved_pico, hits)
        return gone

    def touch(self, key: K) -> None:
        """Counts a hit. A key that is not here (evicted meanwhile) is no error."""
        if key in self._sizes:
            self._sizes.move_to_end(key)
            if self._ranked is not None:
                self._ranked.touch(key)

    def revalue(self, key: K, saved_pico: int) -> None:
        """What one hit saves, of an entry that came in before that was known; it is no hit. A key that is not here is no error."""
        if self._ranked is not None and key in self._sizes:
            self._ranked.revalue(key, saved_pico)

    def remove(self, key: K) -> int:
        """Forgets an entry that expired or was revoked, and returns its hits; a key that is not here is no error."""
        self._bytes -= self._sizes.pop(key, 0)
        return self._ranked.remove(key) if self._ranked is not None else 0

    def _room(self, size: int, *, alone: bool = False) -> bool:
        """Whether one more entry of this size fits, or would fit if it were the only one."""
        count, used = (0, 0) if alone else (len(self._sizes), self._bytes)
        entries, most = self._limits.max_entries, self._limits.max_bytes
        return (entries is None or count < entries) and (most is None or used + size <= most)

    def _make_room(self, size: int) -> list[K]:
        """Evicts before the new entry comes in, which is so never its own victim: it has had no chance to be asked for."""
        gone: list[K] = []
        while not self._room(size):
            key = self._ranked.worst() if self._ranked is not None else next(iter(self._sizes))
            self.remove(key)
            gone.append(key)
        return gone

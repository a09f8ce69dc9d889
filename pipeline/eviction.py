"""Which cached answers go first when a tier is full: lru, lfu or cost_aware, by count and by bytes.

    index.put(key, size, saved_pico) -> keys to delete from the store
    index.touch(key)                    a hit

Only keys and counters are held here; the answers are in the tier's own store. Every operation costs O(log n) amortised, for lru O(1).
"""

from collections import OrderedDict
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from typing import Literal, Protocol

PolicyName = Literal["lru", "lfu", "cost_aware"]


@dataclass(frozen=True, slots=True)
class Limits:
    """`max_entries` answers and `max_bytes` of them; None: no limit."""

    max_entries: int | None = None
    max_bytes: int | None = None


@dataclass(slots=True)
class _Entry:
    size: int
    saved_pico: int
    hits: int = 0
    rank: tuple[int, int] = (0, 0)
    """Lowest goes first. The second figure is the order of the last access."""


class Ranking(Protocol):
    """Ranks an entry by what it is worth; `evicted` is the rank of the last entry that went."""

    def rank(self, entry: _Entry, turn: int, evicted: int) -> tuple[int, int]: ...


class _Lru:
    def rank(self, entry: _Entry, turn: int, evicted: int) -> tuple[int, int]:
        return (0, turn)


class _Lfu:
    def rank(self, entry: _Entry, turn: int, evicted: int) -> tuple[int, int]:
        return (entry.hits, turn)


class _CostAware:
    """GreedyDual-Size-Frequency (Cherkasova 1998): dollars saved per byte, plus the worth of what was last evicted.

    That addend is the ageing: an answer that was popular long ago is overtaken by what is asked for now.
    """

    _SCALE = 1 << 20

    def rank(self, entry: _Entry, turn: int, evicted: int) -> tuple[int, int]:
        return (evicted + (entry.hits + 1) * entry.saved_pico * self._SCALE // max(1, entry.size), turn)


_RANKINGS: dict[PolicyName, type[Ranking]] = {"lru": _Lru, "lfu": _Lfu, "cost_aware": _CostAware}


class EvictionIndex:
    """Keeps count of one tier's entries and says which must go. Not safe for threads."""

    def __init__(self, policy: PolicyName, limits: Limits) -> None:
        self._ranking = _RANKINGS[policy]()
        self._fifo = policy == "lru"
        self._limits = limits
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        self._heap: list[tuple[tuple[int, int], str]] = []
        self._turn = 0
        self._evicted = 0
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, key: str) -> bool:
        return key in self._entries

    @property
    def bytes(self) -> int:
        return self._bytes

    def put(self, key: str, size: int, saved_pico: int = 0) -> list[str]:
        """Adds or replaces an entry; returns the keys that must go for it, worst first.

        `size` in bytes; `saved_pico` is what one hit saves, in 10^-12 USD. An entry that is larger than the whole tier goes itself.
        A replaced entry keeps its hits.
        """
        if size < 0 or saved_pico < 0:
            raise ValueError(f"an entry of {size} bytes that saves {saved_pico} can't be: both are 0 or more")
        known = self._entries.get(key)
        self.remove(key)
        if not self._room(size, alone=True):
            return [key]
        gone = self._make_room(size)
        entry = _Entry(size, saved_pico, known.hits if known else 0)
        self._entries[key] = entry
        self._bytes += size
        self._renew(key, entry)
        return gone

    def touch(self, key: str) -> None:
        """Counts a hit. A key that is not here (evicted meanwhile) is no error."""
        entry = self._entries.get(key)
        if entry is not None:
            entry.hits += 1
            self._renew(key, entry)

    def remove(self, key: str) -> None:
        """Forgets an entry that expired or was revoked; a key that is not here is no error."""
        entry = self._entries.pop(key, None)
        if entry is not None:
            self._bytes -= entry.size

    def _renew(self, key: str, entry: _Entry) -> None:
        self._turn += 1
        entry.rank = self._ranking.rank(entry, self._turn, self._evicted)
        self._entries.move_to_end(key)
        if self._fifo:
            return
        heappush(self._heap, (entry.rank, key))
        # Every touch leaves a stale row in the heap: rebuilt before they are the most of it.
        if len(self._heap) > 2 * len(self._entries) + 64:
            self._heap = [(e.rank, k) for k, e in self._entries.items()]
            heapify(self._heap)

    def _room(self, size: int, *, alone: bool = False) -> bool:
        """Whether one more entry of this size fits, or would fit if it were the only one."""
        count, used = (0, 0) if alone else (len(self._entries), self._bytes)
        entries, most = self._limits.max_entries, self._limits.max_bytes
        return (entries is None or count < entries) and (most is None or used + size <= most)

    def _make_room(self, size: int) -> list[str]:
        """Evicts before the new entry comes in, which is so never its own victim: it has had no chance to be asked for."""
        gone: list[str] = []
        while not self._room(size):
            key = self._worst()
            self._evicted = max(self._evicted, self._entries[key].rank[0])
            self.remove(key)
            gone.append(key)
        return gone

    def _worst(self) -> str:
        if self._fifo:
            return next(iter(self._entries))
        while True:
            rank, key = heappop(self._heap)
            entry = self._entries.get(key)
            if entry is not None and entry.rank == rank:
                return key

"""Provider batches: which requests go into one, when a file is closed, and when it is too late for its rows.

A batch costs half of a call and takes up to a day; flex costs the same half, is answered at once or turned away free of
charge, and takes minutes. What is chosen depends on the time that is left, the prices, and how long batches take just now.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from ..schemas.record import Lane
from .flights import Held

Way = Literal["sync", "flex", "batch"]

FLEX_S = 900.0
"""So much time must be left for a flex call: they are slow, and turned away while the provider is busy."""
MOST_TRIES = 3
"""A request whose attempts all cost nothing goes into so many batches; then it is called for."""
ROWS_OF_A_RECORD = 50_000
"""More members would not fit into one record of the ledger."""


@dataclass(frozen=True, slots=True)
class BatchTraits:
    """What is known of a provider's batches. Times in seconds."""

    rows: int
    """In one file at most."""
    file_bytes: int
    window_s: float = 86_400.0
    """What is not done by then expires."""
    turnaround_s: float = 3_600.0
    """How long a batch is expected to take, until some were seen."""
    gather_s: float = 15.0
    """A file is closed when no request came for so long,"""
    longest_gather_s: float = 300.0
    """or when its first request has waited so long."""
    poll_s: float = 30.0
    """Between the first looks; it doubles"""
    longest_poll_s: float = 600.0
    cancel_s: float = 600.0
    """How long a batch may go on after it was cancelled."""
    fallback_s: float = 300.0
    """For asking its rows one by one after that."""
    settle_s: float = 60.0
    """After this a batch that was begun is certainly listed."""

    @property
    def reserve_s(self) -> float:
        """So long before a deadline a batch is given up."""
        return self.cancel_s + self.fallback_s


@dataclass(frozen=True, slots=True)
class WayPrices:
    """What the request costs each way, in pico-dollars, roughly; None: it can't be had that way."""

    sync: int
    flex: int | None = None
    batch: int | None = None


def choose(
    *, left_s: float | None, lane: Lane, prices: WayPrices, traits: BatchTraits | None, turnaround_s: float = 0.0, tries: int | None = 0
) -> Way:
    """The cheapest way that the deadline leaves time for.

    `left_s`: until the deadline; None: there is none, and nobody said that the answer may take long. `turnaround_s`: of the
    last batches. `tries`: attempts so far, all of them free of charge; None: others were made, so that the request is late already.
    """
    if lane is Lane.EXPRESS or left_s is None:
        return "sync"
    takes_batch = traits is not None and prices.batch is not None and tries is not None and tries < MOST_TRIES
    if takes_batch and traits is not None and prices.batch is not None and prices.batch < prices.sync:
        needed = max(traits.turnaround_s, turnaround_s) + traits.longest_gather_s + traits.reserve_s
        if left_s >= needed:
            return "batch"
    if prices.flex is not None and prices.flex < prices.sync and left_s >= FLEX_S:
        return "flex"
    return "sync"


def horizon(left_s: float) -> int:
    """Requests of one file have about the same time left: up to twice as much, so that a hurried one does not end a patient one's batch."""
    return int(math.log2(max(left_s, 1.0)))


def closes(waiting: Iterable[Held], now_ms: int, traits: BatchTraits) -> bool:
    """Is the file of these requests closed now?"""
    rows = size = 0
    newest, oldest = 0, now_ms
    for held in waiting:
        rows, size = rows + 1, size + held.size
        newest, oldest = max(newest, held.at_ms), min(oldest, held.at_ms)
    if not rows:
        return False
    full = rows >= min(traits.rows, ROWS_OF_A_RECORD) or size >= traits.file_bytes
    return full or now_ms - newest >= traits.gather_s * 1000 or now_ms - oldest >= traits.longest_gather_s * 1000


def grouped(waiting: Mapping[str, Held], now_ms: int) -> dict[tuple[str, int], dict[str, Held]]:
    """By (model, horizon): what may go into one file."""
    groups: dict[tuple[str, int], dict[str, Held]] = {}
    for flight, held in waiting.items():
        left_s = math.inf if held.deadline_ms is None else (held.deadline_ms - now_ms) / 1000
        groups.setdefault((held.model, horizon(min(left_s, 1e9))), {})[flight] = held
    return groups


def split(sizes: Sequence[int], traits: BatchTraits) -> Iterator[range]:
    """Cuts lines of these sizes (bytes, line end included) into files at the provider's limits. A longer line is a file of its own."""
    begin = room = 0
    most = min(traits.rows, ROWS_OF_A_RECORD)
    for place, size in enumerate(sizes):
        if place > begin and (place - begin >= most or size > room):
            yield range(begin, place)
            begin = place
        if place == begin:
            room = traits.file_bytes
        room -= size
    if begin < len(sizes):
        yield range(begin, len(sizes))


def give_up_ms(deadlines: Iterable[int | None], traits: BatchTraits) -> int | None:
    """When a batch is cancelled, so that the row with the least time is still answered by its deadline; None: never."""
    known = [deadline for deadline in deadlines if deadline is not None]
    return min(known) - int(traits.reserve_s * 1000) if known else None


def next_poll_s(polls: int, traits: BatchTraits) -> float:
    """Seconds until the next look, after so many."""
    return min(traits.longest_poll_s, traits.poll_s * 2.0 ** min(polls // 4, 10))

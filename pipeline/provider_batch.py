"""Provider batches: which requests go into one, when a file is closed, and when it is too late for its rows.

A batch costs half of a call and takes up to a day; flex costs the same half, is answered at once or turned away free of
charge, and takes minutes. What is chosen depends on the time that is left, the prices, and how long batches take just now.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from typing import Any, Literal

import orjson

from ..schemas.record import JsonObject, Lane
from .errors import Unpriced
from .flights import Held
from .models import Model
from .prefix import Marks, Path, Terms, send_order
from .prefix_tree import marks_of_job
from .prices import rates

Way = Literal["sync", "flex", "batch"]

FLEX_TIMEOUT_S = 600.0
"""Of a flex call: they are slow."""
FLEX_S = 2 * FLEX_TIMEOUT_S
"""So much time must be left for one, so that a plain call can still follow."""
FLEX_TRIES = 5
"""They are turned away, free of charge, while the provider is busy; after so many times a plain call is made."""
FLEX_PROVIDERS = frozenset({"openai", "simulated"})
"""Those that can be asked for the tier at all."""
MOST_TRIES = 3
"""A request whose attempts all cost nothing goes into so many batches; then it is called for."""
USUAL_OUTPUT_TOKENS = 300
"""Expected length of an answer where the request says nothing; only the order of prices depends on it."""
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

    def adjusted(
        self,
        *,
        gather_s: float | None = None,
        poll_s: float | None = None,
        turnaround_s: float | None = None,
        reserve_s: float | None = None,
        rows: int | None = None,
    ) -> "BatchTraits":
        """With what people have set; None leaves a trait as it is. Of the reserve two thirds are for the end of a cancelled batch."""
        wanted: dict[str, Any] = {"gather_s": gather_s, "poll_s": poll_s, "turnaround_s": turnaround_s}
        if gather_s is not None:
            wanted["longest_gather_s"] = 20 * gather_s
        if poll_s is not None:
            wanted["longest_poll_s"] = 20 * poll_s
        if reserve_s is not None:
            wanted |= {"cancel_s": reserve_s * 2 / 3, "fallback_s": reserve_s / 3}
        if rows is not None:
            wanted["rows"] = min(rows, self.rows)
        return replace(self, **{name: value for name, value in wanted.items() if value is not None})

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


def needed_s(traits: BatchTraits, took_s: float) -> float:
    """So much time a request must have left for a batch that is submitted now. `took_s`: what the last batches took; 0: not known."""
    return max(traits.turnaround_s, took_s) + traits.reserve_s


def has_time(lane: Lane, deadline_ms: int | None) -> bool:
    """May a request be answered later for less? Without a deadline nobody said that the answer may take long."""
    return lane is not Lane.EXPRESS and deadline_ms is not None


def choose(
    *,
    left_s: float | None,
    lane: Lane,
    prices: WayPrices,
    traits: BatchTraits | None,
    took_s: float = 0.0,
    tries: int | None = 0,
    parked: bool = False,
) -> Way:
    """The cheapest way that the deadline leaves time for.

    `left_s`: until the deadline; None: there is none (see `has_time`). `traits`: None where no
    batch can be had. `took_s`: of the last batches. `tries`: attempts so far, all of them free of charge; None: others were
    made, so that the request is late already. `parked`: it has waited for company before.
    """
    if lane is Lane.EXPRESS or left_s is None:
        return "sync"
    if traits is not None and prices.batch is not None and prices.batch < prices.sync and tries is not None and tries < MOST_TRIES:
        gathering = 0.0 if parked else traits.longest_gather_s
        if left_s >= needed_s(traits, took_s) + gathering:
            return "batch"
    if prices.flex is not None and prices.flex < prices.sync and left_s >= FLEX_S:
        return "flex"
    return "sync"


def late(held: Held, now_ms: int, traits: BatchTraits, took_s: float) -> bool:
    """Is there no time for a batch any more?"""
    return held.deadline_ms is not None and (held.deadline_ms - now_ms) / 1000 < needed_s(traits, took_s)


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


def fits(rows: int, size: int, line: int, traits: BatchTraits) -> bool:
    """Does a line of so many bytes, its end included, fit into a file that holds `rows` lines of `size` bytes? An empty file takes any."""
    return not rows or (rows < min(traits.rows, ROWS_OF_A_RECORD) and size + line <= traits.file_bytes)


def give_up_ms(deadlines: Iterable[int | None], traits: BatchTraits) -> int | None:
    """When a batch is cancelled, so that the row with the least time is still answered by its deadline; None: never."""
    known = [deadline for deadline in deadlines if deadline is not None]
    return min(known) - int(traits.reserve_s * 1000) if known else None


def way_prices(model: Model, body: JsonObject, day: date) -> WayPrices:
    """What the body would cost each way; only their order counts. Raises `Unpriced`."""
    tokens_in = len(orjson.dumps(body.get("messages"))) // 4
    tokens_out = body.get("max_completion_tokens") or body.get("max_tokens") or USUAL_OUTPUT_TOKENS

    def at(tier: str) -> int | None:
        try:
            rate = rates(model, tier, day).at(tokens_in)
        except Unpriced:
            return None
        return tokens_in * rate.input + tokens_out * rate.output

    sync = at("standard")
    if sync is None:
        raise Unpriced(f"no price is known for model {model.name!r}")
    if body.get("service_tier") not in (None, "auto", "default"):
        return WayPrices(sync)  # the caller has chosen
    return WayPrices(sync, at("flex") if model.provider in FLEX_PROVIDERS else None, at("batch"))


def next_poll_s(polls: int, traits: BatchTraits) -> float:
    """Seconds until the next look, after so many."""
    return min(traits.longest_poll_s, traits.poll_s * 2.0 ** min(polls // 4, 10))


def prefix_plan(
    terms: Terms, paths: Sequence[Path], turnaround_s: float, groups: Sequence[str | None] = ()
) -> tuple[list[int], list[Marks]]:
    """Indexes of the rows of a file in the order in which they are sent, and the marks of each row in the order of `paths`.

    Rows are expected to be worked on one after the other, evenly. How fast they really go nobody knows: a group has one key, and what is
    too much for one machine goes on to the next by itself.
    """
    if terms.per_key_per_minute is not None:
        terms = replace(terms, per_key_per_minute=len(paths) + 1)
    return send_order(paths, groups), marks_of_job(terms, paths, calls_per_s=max(1, len(paths)) / turnaround_s)

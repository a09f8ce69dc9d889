"""What a run shows while it works: live on a terminal, a plain line every few seconds when piped."""

import sys
import time
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Protocol, TextIO

from ..schemas.record import PICO_PER_USD
from .display import dollars
from .when import short_span

PLAIN_EVERY_S = 5.0


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Rows and pico-dollars at one moment."""

    job: str
    total: int
    answered: int
    failed: int
    merged: int
    held: int
    in_flight: int
    cached: dict[str, int]
    cost_pico: int
    saved_pico: int
    done_before: int
    """Rows that an earlier run had finished: they don't count for the rate."""
    seconds: float
    """Since this run began."""
    trouble: str = ""
    """What keeps it from going on, where something does."""
    batches: str = ""
    """How far the provider batches are."""

    @property
    def done(self) -> int:
        return self.answered + self.failed + self.merged

    @property
    def rate(self) -> float:
        """Rows a second, in this run."""
        return (self.done - self.done_before) / self.seconds if self.seconds > 0 else 0.0

    @property
    def eta_s(self) -> float | None:
        left = self.total - self.done - self.held
        return left / self.rate if self.rate > 0 and left > 0 else None

    @property
    def projected_pico(self) -> int:
        """The whole job's cost if it goes on as so far."""
        return self.cost_pico * self.total // self.done if self.done else 0


def money(pico: int) -> str:
    return dollars(Decimal(pico) / PICO_PER_USD)


def plain_line(s: Snapshot) -> str:
    """One line that says it all."""
    cached = ", ".join(f"{name} {count:,}" for name, count in s.cached.items())
    parts = [
        f"{s.done:,} of {s.total:,}",
        f"answered {s.answered + s.merged:,}",
        f"cached: {cached}",
        f"in flight {s.in_flight:,}",
        f"failed {s.failed:,}",
        f"{s.rate:,.0f} requests/s",
        f"{money(s.cost_pico)} so far, {money(s.projected_pico)} projected, {money(s.saved_pico)} saved",
        f"ETA {short_span(s.eta_s) if s.eta_s is not None else '–'}",
    ]
    if s.held:
        parts.insert(4, f"held back {s.held:,}")
    parts += [text for text in (s.batches, s.trouble) if text]
    return " | ".join(parts)


class Progress(Protocol):
    """Told of every change, decides itself how often to show it."""

    def update(self, snapshot: Snapshot, *, last: bool = False) -> None: ...

    def note(self, text: str) -> None: ...

    def close(self) -> None: ...


@dataclass(slots=True)
class PlainProgress:
    """For pipes and logs: a line at most every few seconds, on standard error."""

    out: TextIO = field(default_factory=lambda: sys.stderr)
    every: float = PLAIN_EVERY_S
    quiet: bool = False
    """Only notes."""
    _shown: float = field(default_factory=time.monotonic)

    def update(self, snapshot: Snapshot, *, last: bool = False) -> None:
        now = time.monotonic()
        if self.quiet or (not last and now - self._shown < self.every):
            return
        self._shown = now
        print(plain_line(snapshot), file=self.out, flush=True)

    def note(self, text: str) -> None:
        print(text, file=self.out, flush=True)

    def close(self) -> None:
        self.out.flush()


class LiveProgress:
    """For terminals: a bar and a small table that stay in place."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.live import Live

        self._console = Console(stderr=True)
        self._live = Live(console=self._console, refresh_per_second=8, transient=True)
        self._live.start()
        self._shown = 0.0

    def update(self, snapshot: Snapshot, *, last: bool = False) -> None:
        now = time.monotonic()
        if last or now - self._shown >= 0.125:
            self._shown = now
            self._live.update(_panel(snapshot))

    def note(self, text: str) -> None:
        self._console.print(text, style="yellow", markup=False, highlight=False)

    def close(self) -> None:
        self._live.stop()


def _panel(s: Snapshot) -> Any:
    from rich.console import Group
    from rich.progress_bar import ProgressBar
    from rich.table import Table

    bar = Table.grid(padding=(0, 1), expand=True)
    bar.add_column(no_wrap=True)
    bar.add_column(ratio=1)
    bar.add_column(no_wrap=True)
    bar.add_row(s.job, ProgressBar(total=max(s.total, 1), completed=s.done), f"{s.done:,} of {s.total:,}")
    table = Table.grid(padding=(0, 2))
    cached = "  ".join(f"{name} {count:,}" for name, count in s.cached.items())
    eta = short_span(s.eta_s) if s.eta_s is not None else "–"
    table.add_row("answered", f"{s.answered + s.merged:,}", "cached", cached)
    table.add_row("in flight", f"{s.in_flight:,}", "failed", f"{s.failed:,}" + (f"  held back {s.held:,}" if s.held else ""))
    table.add_row("so far", money(s.cost_pico), "projected", money(s.projected_pico))
    table.add_row("saved", money(s.saved_pico), "pace", f"{s.rate:,.0f} requests/s, {eta} left")
    return Group(bar, table, *(text for text in (s.batches, s.trouble) if text))


def progress_for(*, quiet: bool) -> Progress:
    """Live where standard error is a terminal."""
    if not quiet and sys.stderr.isatty():
        return LiveProgress()
    return PlainProgress(quiet=quiet)

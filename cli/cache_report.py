"""What `evaluate cache` says: an object for programs, tables for people."""

from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

from rich.table import Column, Table

from ..connectors.vector_index import BruteForceIndex
from ..pipeline.replay import Decided, Outcome, ReplayOptions, wilson
from .display import console_of_output

RATIOS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)


def as_json(outcome: Outcome, index: BruteForceIndex) -> dict[str, Any]:
    """Rates are shares, 0 to 1; an error per hit is null where there was no hit."""
    requests, hits, wrong = len(outcome.decided), outcome.hits, outcome.wrong
    return {
        "requests": requests,
        "hits": hits,
        "wrong": wrong,
        "hit_rate": hits / requests,
        "error_per_request": wrong / requests,
        "error_per_hit": wrong / hits if hits else None,
        "intervals": {
            "hit_rate": wilson(hits, requests),
            "error_per_request": wilson(wrong, requests),
            "error_per_hit": wilson(wrong, hits) if hits else None,
        },
        "coalesced": outcome.coalesced,
        "wrong_merges": outcome.wrong_merges,
        "decision_us": median(outcome.decision_ns) / 1000 if outcome.decision_ns else None,
        "bytes_per_entry": index.memory() / outcome.entries if outcome.entries else None,
    }


def print_outcome(outcome: Outcome, index: BruteForceIndex, options: ReplayOptions) -> None:
    console = console_of_output()
    console.print(_summary(as_json(outcome, index), outcome, options))
    for at, fallback in outcome.fallbacks:
        scope = "every scope" if fallback.scope is None else f"the scope {fallback.scope!r}"
        console.print(
            f"At request {at + 1:,} {scope} fell back to exact: answers kept before request {fallback.since_ms + 1:,} no longer agreed "
            "with new ones, and are not shared any more.",
            markup=False,
        )
    console.print(_curve(outcome))


def _summary(found: dict[str, Any], outcome: Outcome, options: ReplayOptions) -> Table:
    table = Table("", Column(justify="right"), "95 %", title="Shared answers", title_justify="left")
    intervals = found["intervals"]
    table.add_row("requests", f"{found['requests']:,}", "")
    table.add_row("hits", f"{found['hits']:,}", "")
    table.add_row("  share of requests", f"{found['hit_rate']:.1%}", _interval(intervals["hit_rate"], 1))
    table.add_row("wrong", f"{found['wrong']:,}", "")
    table.add_row("  per request", f"{found['error_per_request']:.2%}", _interval(intervals["error_per_request"], 2))
    if found["hits"]:
        table.add_row("  per hit", f"{found['error_per_hit']:.2%}", _interval(intervals["error_per_hit"], 2))
    if options.policy == "learned":
        bound, what = (options.learned.bound, f"per {options.learned.per}") if options.share else (0.0, "nothing is shared")
        table.add_row("bound", f"{bound:.2%}", what)
        table.add_row("audited hits", f"{outcome.audits:,}", "sent to the model all the same; counted as hits")
        if outcome.judge_noise is not None:
            table.add_row("judge's noise", f"{outcome.judge_noise:.1%}", "as far as the comparisons contradict each other")
    if options.coalesce:
        table.add_row("coalesced", f"{found['coalesced']:,}", "of the hits")
        table.add_row("  wrong merges", f"{found['wrong_merges']:,}", "")
    if found["decision_us"] is not None:
        table.add_row("decision", f"{found['decision_us']:.0f} µs", "median, after the search")
    if found["bytes_per_entry"] is not None:
        table.add_row("memory", f"{found['bytes_per_entry']:,.0f} bytes", f"per entry, of {outcome.entries:,}")
    return table


def _interval(ends: Sequence[float], digits: int) -> str:
    return f"{ends[0]:.{digits}%} to {ends[1]:.{digits}%}"


def curve(decided: Sequence[Decided], by: Callable[[Decided], float]) -> list[tuple[float, float]]:
    """(hit ratio, precision) at every threshold on what `by` says of the best candidates of this one pass, in hindsight."""
    ranked = sorted((d for d in decided if d.right is not None), key=by, reverse=True)
    points: list[tuple[float, float]] = []
    right = 0
    for n, d in enumerate(ranked, start=1):
        right += bool(d.right)
        if n == len(ranked) or by(ranked[n]) != by(d):
            points.append((n / len(decided), right / n))
    return points


def curves(outcome: Outcome) -> dict[str, list[tuple[float, float]]]:
    """By what was learned (where something was) and by cosine alone."""
    found = {"cosine": curve(outcome.decided, lambda d: d.similarity)}
    if any(d.probability for d in outcome.decided):
        found = {"learned probability": curve(outcome.decided, lambda d: d.probability), **found}
    return found


def played(outcome: Outcome) -> tuple[float, float] | None:
    """(hit ratio, precision) of the pass itself."""
    return (outcome.hits / len(outcome.decided), 1 - outcome.wrong / outcome.hits) if outcome.hits else None


def _curve(outcome: Outcome) -> Table:
    found = curves(outcome)
    headings = [Column(f"precision by {name}", justify="right") for name in found]
    title = "Precision against hit ratio, at other thresholds on the same pass, in hindsight"
    table = Table(Column("hit ratio", justify="right"), *headings, title=title, title_justify="left")
    for ratio in RATIOS:
        cells = [next((p for r, p in points if r >= ratio), None) for points in found.values()]
        if any(cell is not None for cell in cells):
            table.add_row(f"{ratio:.0%}", *("–" if cell is None else f"{cell:.2%}" for cell in cells))
    return table

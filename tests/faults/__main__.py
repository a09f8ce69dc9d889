"""Runs the matrix and prints one table.

    python -m tests.faults [--only WORDS] [--except WORDS] [--seeds N] [--first-seed S] [--keep FOLDER] [--list]

`--only` picks the fault of this name, else those whose names contain the words (dashes stand for spaces; repeat it for more); `--except`
leaves out in the same way; `--seeds` is how often faults that are random run, each with a seed of its own. Ends with 1 where something
was lost, paid and not explained, or any invariant was broken.
"""

import argparse
import sys
import time
import traceback
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from .broker import Broker
from .invariants import Violation
from .matrix import MATRIX
from .play import Fault, Outcome, run

err = Console(stderr=True)


def parsed(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description="Breaks everything, and looks what is lost.")
    parser.add_argument("--only", action="append", default=[], help="faults whose names contain these words")
    parser.add_argument("--except", action="append", default=[], dest="but", help="leave these out")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each random fault")
    parser.add_argument("--first-seed", type=int, default=1)
    parser.add_argument("--keep", type=Path, help="keep logs, bills and data under this folder")
    parser.add_argument("--minutes", type=float, help="begin no further run after so many")
    parser.add_argument("--list", action="store_true", help="name the faults and end")
    return parser.parse_args(arguments)


def chosen(only: Sequence[str], but: Sequence[str] = ()) -> list[Fault]:
    left_out = named(but)
    return [fault for fault in (named(only) if only else MATRIX) if fault not in left_out]


def named(given: Sequence[str]) -> list[Fault]:
    """The faults of these names; where words are no name, all faults whose names contain them."""
    wanted = [_plain(words) for words in given]
    whole = {words for words in wanted if any(_plain(f.name) == words for f in MATRIX)}
    parts = [words for words in wanted if words not in whole]
    return [f for f in MATRIX if _plain(f.name) in whole or any(words in _plain(f.name) for words in parts)]


def _plain(words: str) -> str:
    return words.replace("-", " ").replace("_", " ").lower()


def run_all(faults: Sequence[Fault], given: argparse.Namespace) -> list[Outcome]:
    outcomes: list[Outcome] = []
    until = time.monotonic() + given.minutes * 60 if given.minutes else float("inf")
    with Broker() as broker:
        for fault in faults:
            for seed in range(given.first_seed, given.first_seed + (given.seeds if fault.seeded else 1)):
                if time.monotonic() > until:
                    err.print(f"[yellow]not run, the time is over: {fault.name}, seed {seed}")
                    continue
                outcomes.append(told(fault, seed, broker, given.keep))
    return outcomes


def told(fault: Fault, seed: int, broker: Broker, keep: Path | None) -> Outcome:
    begin = time.monotonic()
    try:
        outcome = run(fault, seed, broker.bootstrap, broker, keep)
    except Exception as error:
        # One fault that could not be played must not hide what the others show.
        err.print(traceback.format_exc(), highlight=False)
        outcome = Outcome(fault.name, seed, 0, 0, 0, 0, 0, 0, 0.0, (Violation("played", f"it could not be played: {error!r}"[:300]),))
    took = time.monotonic() - begin
    err.print(
        f"{fault.name}, seed {seed}: {outcome.requests} requests, {outcome.lost} lost, drained in {outcome.drain_s:.1f} s ({took:.0f} s)",
        highlight=False,
    )
    for violation in outcome.violations:
        err.print(f"  [red]{violation.invariant}[/]: {violation.what}", highlight=False)
    return outcome


def table_of(outcomes: Sequence[Outcome]) -> Table:
    table = Table(title="What was lost, and what was paid twice")
    for name in ("fault", "runs", "requests", "lost", "duplicated\nresponses", "calls paid\ntwice", "in the ledger\nas ambiguous",
                 "dollars\nunexplained", "drained in,\nat most (s)", "broken\ninvariants"):  # fmt: skip
        table.add_column(name, justify="left" if name == "fault" else "right")
    by_fault: dict[str, list[Outcome]] = defaultdict(list)
    for outcome in outcomes:
        by_fault[outcome.fault].append(outcome)
    for name, runs in [*by_fault.items(), ("all", list(outcomes))]:
        if name == "all":
            table.add_section()
        table.add_row(name, str(len(runs)), *numbers(runs))
    return table


def numbers(runs: Sequence[Outcome]) -> list[str]:
    return [
        str(sum(r.requests for r in runs)),
        str(sum(r.lost for r in runs)),
        str(sum(r.duplicated for r in runs)),
        str(sum(r.twice for r in runs)),
        str(sum(r.ambiguous for r in runs)),
        f"{sum(r.unexplained_pico for r in runs) / 10**12:.12f}".rstrip("0").rstrip("."),
        f"{max((r.drain_s for r in runs), default=0):.1f}",
        str(sum(len(r.violations) for r in runs)),
    ]


def main(arguments: Sequence[str]) -> int:
    given = parsed(arguments)
    faults = chosen(given.only, given.but)
    if given.list or not faults:
        for fault in MATRIX:
            print(f"{fault.name}{' (seeded)' if fault.seeded else ''}")
        return 0 if given.list else 2
    outcomes = run_all(faults, given)
    Console(width=160).print(table_of(outcomes))
    return 1 if any(o.violations for o in outcomes) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""The table that `evaluate routing` prints."""

from collections.abc import Mapping

from rich.console import Console
from rich.markup import escape
from rich.table import Column
from rich.table import Table as Grid

from ..pipeline.routing_curve import Ends
from ..pipeline.routing_evaluation import Result
from ..pipeline.routing_table import Table

_COLUMNS = {
    "apgr": "APGR",
    "cpt50": "CPT50",
    "cpt80": "CPT80",
    "saved_at_95": "saved at 95 %",
    "saved_at_99": "saved at 99 %",
    "saved_at_95_validated": "validated 95 %",
    "quality_vs_best": "its quality",
    "saved_at_99_validated": "validated 99 %",
    "quality_vs_best_at_99": "its quality",
}


def print_results(table: Table, train: Table | None, results: Mapping[str, Result], *, by_group: bool, margin: float) -> None:
    console = Console(soft_wrap=True)
    if not console.is_terminal:
        console = Console(width=240, soft_wrap=True)  # a file or a pipe has no width of its own
    console.print(_models(table))
    known = int(table.complete.sum())
    where = "groups" if by_group else "prompts"
    how = f"learned from {len(train):,} other prompts" if train is not None else f"5 folds of {where}"
    grid = Grid("policy", *(Column(name, justify="right") for name in _COLUMNS.values()), title=f"{known:,} prompts, {how}",
                title_justify="left")  # fmt: skip
    for name, result in results.items():
        grid.add_row(name, *(_cell(result, key) for key in _COLUMNS))
        if name == "oracle":
            grid.add_section()
    console.print(grid)
    console.print(
        "Shares of the best single model's dollars; in brackets 95 % bootstrap intervals. In hindsight: the policy's best threshold on all "
        f"test parts. Validated: chosen on the training part, {margin:g} standard errors above the target. "
        "APGR, CPT50 and CPT80 as in RouteLLM; with more than two models on the axis of cost (docs/routing.md)."
    )
    for name, result in results.items():
        if result.note:
            console.print(f"{name}: {escape(result.note)}")
    if all(result.apgr is None for result in results.values()):
        console.print("APGR is not defined here: the best single model costs no more than the cheapest, so there is nothing to trade.")


def _models(table: Table) -> Grid:
    known = table.rows(table.complete)
    ends = Ends.of(known.scores, known.costs)
    quality, cost = known.scores.mean(axis=0), known.costs.mean(axis=0)
    grid = Grid("model", Column("mean score", justify="right"), Column("USD per 1,000 prompts", justify="right"), "")
    for i in sorted(range(len(table.models)), key=lambda i: (cost[i], -quality[i])):
        better = [table.models[o] for o in range(len(cost)) if o != i and cost[o] <= cost[i] and quality[o] > quality[i]]
        note = "best" if i == ends.best else f"{better[0]} is better and costs no more" if better else ""
        grid.add_row(escape(table.models[i]), f"{quality[i]:.3f}", f"{1000 * cost[i]:.4g}", escape(note))
    return grid


def _cell(result: Result, key: str) -> str:
    value = getattr(result, key)
    if value is None:
        return "–"
    interval = result.intervals.get(key)
    if key == "apgr":
        return f"{value:.3f}" + (f" [{interval[0]:.2f}, {interval[1]:.2f}]" if interval else "")
    shown = f"{100 * value:.1f} %"
    if interval is None or key in ("cpt50", "cpt80"):
        return shown
    return f"{shown} [{100 * interval[0]:.0f}, {100 * interval[1]:.0f}]"

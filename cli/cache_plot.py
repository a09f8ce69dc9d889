"""A PNG of precision against hit ratio, for `evaluate cache --plot`."""

from pathlib import Path

from ..pipeline.errors import ConfigError
from ..pipeline.replay import Outcome
from .cache_report import curves, played

_LEAST = 0.005
"""Of the hit ratio: precision over a handful of hits is noise."""


def draw(path: Path, outcome: Outcome) -> None:
    """Raises `ConfigError` where the file can't be written."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 6), dpi=120, layout="constrained")
    axes = figure.subplots()
    for name, points in curves(outcome).items():
        shown = [(100 * ratio, 100 * precision) for ratio, precision in points if ratio >= _LEAST]
        axes.plot([x for x, _ in shown], [y for _, y in shown], label=f"threshold on {name}, in hindsight")
    pass_itself = played(outcome)
    if pass_itself is not None:
        axes.plot(100 * pass_itself[0], 100 * pass_itself[1], "o", color="black", label="this pass")
    axes.set_xlabel("requests that share an answer, %")
    axes.set_ylabel("shared answers that are right, %")
    axes.set_title(f"Precision against hit ratio, {len(outcome.decided):,} requests")
    axes.grid(color="lightgray", linewidth=0.6)
    axes.legend(loc="lower left")
    try:
        FigureCanvasAgg(figure).print_figure(str(path), format="png")
    except OSError as error:
        raise ConfigError(f"the plot could not be written to {path}: {error.strerror or error}; name another file") from error

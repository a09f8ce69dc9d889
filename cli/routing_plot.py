"""A PNG of cost against quality, for `evaluate routing --plot`."""

from collections.abc import Mapping
from pathlib import Path

from ..pipeline.errors import ConfigError
from ..pipeline.routing_evaluation import Result

_STYLES = {
    "learned": ("tab:blue", "-"),
    "quantile": ("tab:orange", "-"),
    "heuristic": ("tab:red", "-"),
    "prompt_length": ("tab:gray", "--"),
    "static_mix": ("black", "--"),
    "random": ("black", ":"),
    "oracle": ("tab:green", ":"),
}


def draw(path: Path, models: Mapping[str, tuple[float, float]], results: Mapping[str, Result]) -> None:
    """`models`: (cost, quality) of each single one; all relative to the best single model. Raises `ConfigError`."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 6), dpi=120, layout="constrained")
    axes = figure.subplots()
    for name, (colour, line) in _STYLES.items():
        if name in results and results[name].curve:
            costs, qualities = zip(*results[name].curve, strict=True)
            axes.plot([100 * c for c in costs], [100 * q for q in qualities], line, color=colour, label=name.replace("_", " "))
    for name, (cost, quality) in models.items():
        axes.plot(100 * cost, 100 * quality, "o", color="black", markersize=4)
        axes.annotate(name, (100 * cost, 100 * quality), textcoords="offset points", xytext=(5, -9), fontsize=7)
    for target in (95, 99):
        axes.axhline(target, color="lightgray", linewidth=0.8, zorder=0)
    axes.set_xlabel("cost, % of the best single model's")
    axes.set_ylabel("quality, % of the best single model's")
    axes.set_title("Cost against quality, each prompt routed by a policy that had not seen it")
    axes.legend(loc="lower right", fontsize=8)
    try:
        FigureCanvasAgg(figure).print_figure(str(path), format="png")
    except OSError as error:
        why = error.strerror or error
        raise ConfigError(f"the plot could not be written to {path}: {why}; leave out --plot, or name another file") from error

"""Imports every module of every room from a wheel that was unpacked into the folder given, and from nowhere else."""

import importlib
import pkgutil
import sys
from importlib.resources import files
from pathlib import Path

ROOMS = ("schemas", "pipeline", "connectors", "agents", "gateway", "cli")


def main(folder: Path) -> None:
    sys.path.insert(0, str(folder))
    package = importlib.import_module("inference_engine")
    names = [m.name for m in pkgutil.walk_packages(package.__path__, "inference_engine.")]
    for name in names:
        origin = importlib.import_module(name).__file__ or ""
        if not Path(origin).is_relative_to(folder):
            sys.exit(f"{name} came from {origin}, not from the wheel in {folder}")
    if missing := {f"inference_engine.{room}" for room in ROOMS} - set(names):
        sys.exit(f"the wheel lacks {', '.join(sorted(missing))}")
    for room, name in (("connectors", "models.toml"), ("cli", "report.html.jinja")):
        if not files(f"inference_engine.{room}").joinpath(name).is_file():
            sys.exit(f"the wheel lacks {room}/{name}")
    if not (folder / "inference_engine" / "py.typed").is_file():
        sys.exit("the wheel lacks py.typed: its types would not be seen")
    print(f"the wheel is whole: {len(names)} modules")


main(Path(sys.argv[1]).resolve())

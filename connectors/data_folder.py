"""Where everything of one embedded stack lies on disk."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import platformdirs

HOME_SETTING = "INFERENCE_ENGINE_HOME"


@dataclass(frozen=True, slots=True)
class DataFolder:
    """The layout of one data folder; nothing is created by asking."""

    root: Path
    """Resolved: processes are recognised by it, so it must have one spelling."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "root", self.root.expanduser().resolve())

    @property
    def kafka(self) -> Path:
        return self.root / "kafka"

    @property
    def costs(self) -> Path:
        """The embedded ClickHouse; owned by the sink while that runs."""
        return self.root / "costs"

    @property
    def lock(self) -> Path:
        return self.root / "stack.lock"

    @property
    def stack_state(self) -> Path:
        return self.root / "stack.json"

    def state_file(self, child: str) -> Path:
        """What a child (`sink`, `worker-0`, ...) writes when it is ready."""
        return self.root / f"{child}.json"

    def log_file(self, child: str) -> Path:
        return self.root / "logs" / f"{child}.log"

    def child_data(self, child: str) -> Path:
        """A child's own folder: tables and checkpoints of one worker are never shared."""
        return self.root / "data" / child


def data_folder(environ: Mapping[str, str] | None = None) -> DataFolder:
    """INFERENCE_ENGINE_HOME, else the user's data folder of this platform."""
    environ = os.environ if environ is None else environ
    home = environ.get(HOME_SETTING)
    return DataFolder(Path(home or platformdirs.user_data_dir("inference-engine")))


def of_state_file(path: Path) -> tuple[DataFolder, str]:
    """The folder and the child's name that a `--state-file` argument stands for."""
    return DataFolder(path.parent), path.stem

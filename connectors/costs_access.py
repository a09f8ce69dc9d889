"""Which door the costs are asked through: a server, the running sink, or the folder itself where nothing runs."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ..pipeline.errors import Rejected, Unavailable
from .clickhouse import open_embedded, open_server
from .process import created_at
from .sink_http import SinkClient
from .state_file import ChildState, read_state


class CostReader(Protocol):
    """Anything that answers SQL about costs: a store of our own, or the sink's client."""

    def query(self, sql: str, parameters: Mapping[str, Any] | None = None) -> tuple[list[str], list[tuple[Any, ...]]]: ...

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class CostsLocation:
    """Where costs are kept on this machine."""

    clickhouse_url: str | None
    """A server; it then replaces the other two."""
    sink_state: Path
    """The running sink says here where it listens."""
    folder: Path
    """The embedded store; one process at a time."""


@contextmanager
def open_costs(location: CostsLocation) -> Iterator[CostReader]:
    """Raises `Rejected` where no cost was ever recorded here, `Unavailable` or `ConfigError` where the door is shut."""
    costs = _reader(location)
    try:
        yield costs
    finally:
        costs.close()


@contextmanager
def open_running(location: CostsLocation) -> Iterator[CostReader]:
    """For a program that serves others: it leaves the folder to the sink. Raises `Unavailable` where no sink runs."""
    if not location.clickhouse_url and running_sink(location.sink_state) is None:
        raise Unavailable(
            "the costs can't be asked: no sink runs on this machine and CLICKHOUSE_URL is not set; start it with `inference-engine up`",
            code="sink_down",
        )
    with open_costs(location) as costs:
        yield costs


def running_sink(sink_state: Path) -> ChildState | None:
    """What the sink wrote, if that process still lives and is the one that wrote it."""
    state = read_state(sink_state)
    if state is None:
        return None
    started = created_at(state.pid)
    # A pid that was given to another program began after the file was written.
    return state if started is not None and started * 1000 <= state.ready_ms + 2000 else None


def _reader(location: CostsLocation) -> CostReader:
    if location.clickhouse_url:
        return open_server(location.clickhouse_url)
    sink = running_sink(location.sink_state)
    if sink is not None:
        return SinkClient(f"http://127.0.0.1:{sink.port}")
    if not location.folder.exists():
        raise Rejected(
            f"No costs are recorded yet ({location.folder} does not exist): run a job first, e.g. "
            "`inference-engine run prompts.jsonl -o answers.jsonl`.",
            code="no_costs",
        )
    return open_embedded(location.folder)

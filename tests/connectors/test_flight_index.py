"""The checkpoint on disk and its fake keep rows alike; the one on disk keeps them over a restart."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from inference_engine.connectors.flight_index import RocksFlightIndex
from inference_engine.pipeline.errors import ConfigError
from inference_engine.pipeline.flights import FlightIndex, MemoryFlightIndex


@pytest.fixture(params=["rocksdb", "memory"])
def index(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[FlightIndex]:
    make: dict[str, Callable[[], FlightIndex]] = {"rocksdb": lambda: RocksFlightIndex(tmp_path / "i"), "memory": MemoryFlightIndex}
    one = make[request.param]()
    yield one
    one.close()


def test_what_was_committed_is_read_and_the_last_commit_wins(index: FlightIndex) -> None:
    assert (index.get("a"), index.meta()) == (None, None)
    index.commit({"a": (1, b"1"), "b": (2, b"2")}, b"x")
    index.commit({"a": (3, b"3")}, b"y")
    assert (index.get("a"), index.get("b"), index.meta()) == (b"3", b"2", b"y")


def test_only_rows_older_than_asked_are_dropped_whatever_the_number_looked_at_per_call(index: FlightIndex) -> None:
    index.commit({f"f{i:03}": (i, b"%d" % i) for i in range(100)}, b"x")
    assert sum(index.expire(before_ms=60, limit=7) for _ in range(40)) == 60
    assert (index.get("f059"), index.get("f060"), index.meta()) == (None, b"60", b"x")


def test_after_clearing_nothing_is_left(index: FlightIndex) -> None:
    index.commit({"a": (1, b"1")}, b"x")
    index.clear()
    assert (index.get("a"), index.meta()) == (None, None)


def test_rows_survive_a_restart(tmp_path: Path) -> None:
    first = RocksFlightIndex(tmp_path)
    first.commit({"a": (1, b"1")}, b"x")
    first.close()
    second = RocksFlightIndex(tmp_path)
    assert (second.get("a"), second.meta()) == (b"1", b"x")
    second.close()


def test_a_folder_that_another_worker_holds_is_refused_with_what_to_do(tmp_path: Path) -> None:
    first = RocksFlightIndex(tmp_path)
    with pytest.raises(ConfigError, match="another worker"):
        RocksFlightIndex(tmp_path)
    first.close()


def test_a_damaged_checkpoint_is_emptied_to_be_rebuilt_from_the_ledger(tmp_path: Path) -> None:
    first = RocksFlightIndex(tmp_path)
    first.commit({"a": (1, b"1")}, b"x")
    first.close()
    for manifest in tmp_path.glob("MANIFEST-*"):
        manifest.write_bytes(b"not a manifest")
    second = RocksFlightIndex(tmp_path)
    assert (second.get("a"), second.meta()) == (None, None)
    second.commit({"a": (1, b"1")}, b"x")
    second.close()

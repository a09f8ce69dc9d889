"""One conformance suite over every vector index: in memory, Qdrant in process, its client, and a server where QDRANT_URL is set."""

import os
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from qdrant_client import QdrantClient

from inference_engine.connectors import qdrant
from inference_engine.connectors.qdrant import QdrantEdgeIndex, QdrantServerIndex, neighbour_of, payload_of
from inference_engine.connectors.vector_index import BruteForceIndex
from inference_engine.pipeline.embed import unit_rows
from inference_engine.pipeline.errors import Unavailable
from inference_engine.pipeline.ports import Point, VectorIndex, Vectors

DIMENSION = 16
pytestmark = pytest.mark.filterwarnings("ignore:Payload indexes have no effect")  # of the client's local mode
KINDS = ["memory", "edge", "client", *(["server"] if os.environ.get("QDRANT_URL") else [])]


class Time:
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 1_000_000

    def __call__(self) -> int:
        return self.now


@pytest.fixture
def clock() -> Time:
    return Time()


@pytest.fixture(params=KINDS)
def make(request: pytest.FixtureRequest, tmp_path: Path, clock: Time) -> Iterator[Callable[[int], VectorIndex]]:
    """Opens the same index again and again, by its dimension."""
    kind = request.param
    opened: list[VectorIndex] = []
    shared = QdrantClient(location=":memory:")
    memory: dict[int, BruteForceIndex] = {}
    collection = f"t-{uuid.uuid4().hex[:12]}"

    def build(dimension: int) -> VectorIndex:
        index: VectorIndex
        if kind == "memory":
            index = memory.setdefault(dimension, BruteForceIndex(dimension, clock=clock))
        elif kind == "edge":
            index = QdrantEdgeIndex(tmp_path / "shard", dimension, clock=clock)
        elif kind == "client":
            index = QdrantServerIndex(shared, collection, dimension, clock=clock)
        else:
            index = QdrantServerIndex.connect(os.environ["QDRANT_URL"], collection, dimension, clock=clock)
        opened.append(index)
        return index

    yield build
    for index in opened:
        index.close()
    if kind == "server":
        QdrantClient(url=os.environ["QDRANT_URL"]).delete_collection(collection)


@pytest.fixture
def index(make: Callable[[int], VectorIndex]) -> VectorIndex:
    return make(DIMENSION)


def vectors(n: int, seed: int = 0) -> Vectors:
    return unit_rows(np.random.default_rng(seed).standard_normal((n, DIMENSION)))


def point(name: str, vector: np.ndarray, *, tenant: str = "acme", scope: str = "s", expires_ms: int = 2_000_000) -> Point:
    return Point(name, vector, tenant, scope, f"text of {name}", 999_000, expires_ms)


def ids(index: VectorIndex, query: Vectors, *, tenant: str = "acme", scope: str = "s", limit: int = 10) -> list[str]:
    return [n.point.id for n in index.search(tenant, scope, query, limit)[0]]


def test_an_empty_index_finds_nothing(index: VectorIndex) -> None:
    assert index.search("acme", "s", vectors(3), 5) == [[], [], []]
    assert index.count() == 0


def test_a_stored_point_comes_back_as_it_was_with_cosine_one(index: VectorIndex) -> None:
    stored = point("a" * 64, vectors(1)[0])
    index.upsert([stored])
    (found,) = index.search("acme", "s", vectors(1), 1)[0]
    assert found.similarity == pytest.approx(1.0, abs=1e-5)
    assert np.allclose(found.point.vector, stored.vector, atol=1e-6)
    fields = ("id", "tenant", "scope", "text", "created_ms", "expires_ms")
    assert [getattr(found.point, f) for f in fields] == [getattr(stored, f) for f in fields]


def test_neighbours_are_the_nearest_ones_in_order(index: VectorIndex) -> None:
    """Against an exact sort, for several queries in one call."""
    rows, queries = vectors(300), vectors(7, seed=1)
    index.upsert([point(f"p{i}", row) for i, row in enumerate(rows)])
    for query, found in zip(queries, index.search("acme", "s", queries, 6), strict=True):
        best = np.argsort(-(rows @ query))[:6]
        assert [n.point.id for n in found] == [f"p{i}" for i in best]
        assert [n.similarity for n in found] == pytest.approx((rows @ query)[best].tolist(), abs=1e-5)


def test_no_other_tenant_or_scope_is_found_at_cosine_one(index: VectorIndex) -> None:
    same = vectors(1)
    index.upsert([point("mine", same[0]), point("theirs", same[0], tenant="other"), point("else", same[0], scope="s2")])
    assert ids(index, same) == ["mine"]
    assert ids(index, same, tenant="other") == ["theirs"]
    assert ids(index, same, scope="s2") == ["else"]
    assert ids(index, same, tenant="other", scope="s2") == []
    assert index.count() == 3


def test_nearer_points_of_others_and_expired_ones_take_no_place_among_the_few_returned(index: VectorIndex, clock: Time) -> None:
    """The engine itself filters: checking its few hits afterwards would leave none."""
    query, own = vectors(1), vectors(1, seed=5)
    others = [point(f"t{i}", query[0], tenant="other") for i in range(20)] + [point(f"s{i}", query[0], scope="s2") for i in range(20)]
    index.upsert([*others, *(point(f"e{i}", query[0], expires_ms=clock.now) for i in range(20)), point("own", own[0])])
    assert ids(index, query, limit=1) == ["own"]


def test_an_expired_point_is_never_returned(index: VectorIndex, clock: Time) -> None:
    same = vectors(1)
    index.upsert([point("short", same[0], expires_ms=clock.now + 1), point("long", same[0], expires_ms=clock.now + 100)])
    assert sorted(ids(index, same)) == ["long", "short"]
    clock.now += 1
    assert ids(index, same) == ["long"]
    clock.now += 99
    assert ids(index, same) == []


def test_purging_drops_only_what_is_expired(index: VectorIndex, clock: Time) -> None:
    assert isinstance(index, BruteForceIndex | QdrantEdgeIndex | QdrantServerIndex)
    rows = vectors(4)
    index.upsert([point(f"p{i}", row, expires_ms=clock.now + 10 * i) for i, row in enumerate(rows)])
    clock.now += 15
    assert index.purge() == 2
    assert index.count() == 2
    assert sorted(ids(index, rows[:1])) == ["p2", "p3"]
    assert index.purge() == 0


def test_the_same_id_again_replaces_the_point_even_in_another_scope(index: VectorIndex) -> None:
    a, b = vectors(2)
    index.upsert([point("p", a)])
    index.upsert([point("p", b, scope="s2")])
    assert index.count() == 1
    assert ids(index, a[None]) == []
    (found,) = index.search("acme", "s2", b[None], 1)[0]
    assert found.similarity == pytest.approx(1.0, abs=1e-5)


def test_the_same_point_twice_counts_once(index: VectorIndex) -> None:
    same = point("p", vectors(1)[0])
    index.upsert([same])
    index.upsert([same])
    assert index.count() == 1


def test_deleted_points_are_gone_and_unknown_ids_do_no_harm(index: VectorIndex) -> None:
    rows = vectors(5)
    index.upsert([point(f"p{i}", row) for i, row in enumerate(rows)])
    index.delete(["p0", "p3", "never"])
    index.delete([])
    assert sorted(ids(index, rows[:1])) == ["p1", "p2", "p4"]
    assert index.search("acme", "s", rows[4:], 1)[0][0].point.id == "p4"


def test_writing_nothing_and_asking_for_nothing_is_fine(index: VectorIndex) -> None:
    index.upsert([])
    assert index.search("acme", "s", vectors(0), 3) == []
    assert index.search("acme", "s", vectors(2), 0) == [[], []]


def test_points_and_queries_of_another_dimension_are_unavailable_and_change_nothing(index: VectorIndex) -> None:
    wrong = np.ones((1, DIMENSION + 1), dtype=np.float32)
    good = vectors(1)
    index.upsert([point("p", good[0])])
    with pytest.raises(Unavailable, match="EMBEDDING_DIMENSION has changed"):
        index.upsert([point("q", good[0]), point("r", wrong[0])])
    with pytest.raises(Unavailable, match="EMBEDDING_DIMENSION has changed"):
        index.search("acme", "s", wrong, 1)
    assert ids(index, good) == ["p"]


def test_an_opened_index_still_has_its_points(make: Callable[[int], VectorIndex]) -> None:
    first = make(DIMENSION)
    first.upsert([point("p", vectors(1)[0])])
    if isinstance(first, QdrantEdgeIndex):
        first.flush()
        first.close()
    assert ids(make(DIMENSION), vectors(1)) == ["p"]


@pytest.mark.parametrize("make", [k for k in KINDS if k != "memory"], indirect=True)
def test_a_stored_index_of_another_dimension_is_refused(make: Callable[[int], VectorIndex]) -> None:
    first = make(DIMENSION)
    if isinstance(first, QdrantEdgeIndex):
        first.close()
    with pytest.raises(Unavailable):
        make(DIMENSION * 2)


def test_a_corrupt_folder_is_unavailable_and_recreating_it_helps(tmp_path: Path) -> None:
    folder = tmp_path / "shard"
    first = QdrantEdgeIndex(folder, DIMENSION)
    first.upsert([point("p", vectors(1)[0])])
    first.close()
    for file in [f for f in folder.rglob("*") if f.is_file()]:
        file.write_bytes(b"garbage")
    with pytest.raises(Unavailable, match="filled again from the vectors topic"):
        QdrantEdgeIndex(folder, DIMENSION)
    fresh = QdrantEdgeIndex.recreate(folder, DIMENSION)
    assert fresh.count() == 0
    fresh.close()


def test_a_folder_in_use_is_unavailable(tmp_path: Path) -> None:
    first = QdrantEdgeIndex(tmp_path / "shard", DIMENSION)
    with pytest.raises(Unavailable, match="another process may hold it"):
        QdrantEdgeIndex(tmp_path / "shard", DIMENSION)
    first.close()


def test_a_closed_shard_is_unavailable(tmp_path: Path) -> None:
    index = QdrantEdgeIndex(tmp_path / "shard", DIMENSION)
    index.close()
    with pytest.raises(Unavailable, match="without the semantic cache"):
        index.search("acme", "s", vectors(1), 1)


def test_searches_stay_right_after_optimizing(tmp_path: Path) -> None:
    index = QdrantEdgeIndex(tmp_path / "shard", DIMENSION, clock=Time())
    rows = vectors(300)
    index.upsert([point(f"p{i}", row) for i, row in enumerate(rows)])
    index.optimize()
    found = index.search("acme", "s", rows[:20], 1)
    assert [row[0].point.id for row in found] == [f"p{i}" for i in range(20)]
    index.close()


def test_an_index_that_was_written_anew_holds_what_was_left_and_not_its_garbage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qdrant, "_GARBAGE", 1_000)
    rows = vectors(400)
    index = QdrantEdgeIndex(tmp_path / "shard", DIMENSION, clock=Time())
    for i in range(4_000):
        index.upsert([point(f"p{i}", rows[i % 400])])
        index.delete([f"p{i - 300}"])
    assert index.count() == 300
    assert {row[0].point.id for row in index.search("acme", "s", rows[100:], 1)} == {f"p{i}" for i in range(3_700, 4_000)}
    assert index._written < 2_000
    index.close()
    assert [path.name for path in tmp_path.iterdir()] == ["shard"]


def test_an_unreachable_server_is_unavailable() -> None:
    with pytest.raises(Unavailable, match="QDRANT_URL"):
        QdrantServerIndex.connect("http://127.0.0.1:9", "c", DIMENSION, timeout_s=1)


def test_a_payload_that_the_filter_should_have_stopped_is_stopped_here() -> None:
    """Were an engine to ignore the filter, no other tenant's, other scope's, expired or foreign payload would pass."""
    stored = point("p", vectors(1)[0])
    payload = payload_of(stored)
    assert neighbour_of(payload, stored.vector, 1.0, "acme", "s", 0) is not None
    assert neighbour_of(payload, stored.vector, 1.0, "other", "s", 0) is None
    assert neighbour_of(payload, stored.vector, 1.0, "acme", "s2", 0) is None
    assert neighbour_of(payload, stored.vector, 1.0, "acme", "s", 2_000_000) is None
    assert neighbour_of({**payload, "text": None}, stored.vector, 1.0, "acme", "s", 0) is None
    assert neighbour_of(None, stored.vector, 1.0, "acme", "s", 0) is None

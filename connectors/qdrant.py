"""Qdrant: its engine inside this process, one shard per partition folder, and a server by URL. Both behind the `VectorIndex` port.

Tenant and scope are a filter of the query, and checked again on the payload of every hit: a filter that an engine ignores (an old index,
an unknown field) must not hand one tenant's answers to another.
"""

import shutil
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..pipeline.errors import EngineError, Unavailable
from ..pipeline.ports import Neighbour, Point, Vectors
from .vector_index import Clock, check_dimension, check_points, check_queries, system_clock

if TYPE_CHECKING:
    from qdrant_client import QdrantClient, models
    from qdrant_edge import EdgeConfig, EdgeShard

_BATCH = 256
"""Points in one write."""
_GARBAGE = 40_000
"""Points that were overwritten or deleted stay on disk and in memory: an index that may hold more of them than so many, and than three
times as many as it has left, is written anew. `EdgeShard.optimize` is no help: of 64,000 points of which 12,500 were left it made 350 MB
in place of 240, in 19 s."""


def point_key(point_id: str) -> str:
    """Qdrant's ids are UUIDs or integers: the UUID is made of the hash of ours, which the payload keeps in full."""
    return str(uuid.UUID(bytes=sha256(point_id.encode()).digest()[:16]))


def payload_of(point: Point) -> dict[str, Any]:
    return {
        "id": point.id,
        "tenant": point.tenant,
        "scope": point.scope,
        "text": point.text,
        "created_ms": point.created_ms,
        "expires_ms": point.expires_ms,
    }


def neighbour_of(payload: Mapping[str, Any] | None, vector: Any, score: float, tenant: str, scope: str, now_ms: int) -> Neighbour | None:
    """A hit, or None where the payload is not of this tenant and scope, is expired, or is not one of ours."""
    if payload is None or payload.get("tenant") != tenant or payload.get("scope") != scope:
        return None
    point_id, text, created, expires = (payload.get(k) for k in ("id", "text", "created_ms", "expires_ms"))
    if not isinstance(point_id, str) or not isinstance(text, str) or not isinstance(created, int) or not isinstance(expires, int):
        return None
    if expires <= now_ms:
        return None
    point = Point(point_id, np.asarray(vector, dtype=np.float32), tenant, scope, text, created, expires)
    return Neighbour(point, float(score))


class QdrantEdgeIndex:
    """Qdrant's engine in this process: one shard in one folder. Safe to search from several threads while none writes.

    A folder belongs to one process at a time. Its content is a copy of the `vectors` topic: where it is broken, `recreate` it.
    """

    def __init__(self, folder: str | Path, dimension: int, *, clock: Clock = system_clock, search_threads: int | None = None) -> None:
        """Opens the shard of `folder`, or creates it. Raises `Unavailable` where it is corrupt, in use, or of another dimension."""
        self._where = f"the vector index in {folder}"
        self._dimension = dimension
        self._clock = clock
        self._path = Path(folder)
        self._config = _edge_config(dimension, search_threads)
        self._written = 0
        """Points, since the folder was opened or written anew."""
        self._counted_at = 0
        """How many had been written when the index was last counted, which takes as long as a search."""
        with _named(
            self._where, "another process may hold it; or it is broken: delete the folder, it is filled again from the vectors topic"
        ):
            self._shard = _open_shard(self._path, self._config)

    @classmethod
    def recreate(
        cls, folder: str | Path, dimension: int, *, clock: Clock = system_clock, search_threads: int | None = None
    ) -> "QdrantEdgeIndex":
        """Deletes what is in `folder` and creates an empty shard there."""
        path = Path(folder)
        if path.exists():
            shutil.rmtree(path)
        return cls(path, dimension, clock=clock, search_threads=search_threads)

    def upsert(self, points: Sequence[Point]) -> None:
        from qdrant_edge import Point as EdgePoint
        from qdrant_edge import UpdateOperation

        check_points(self._where, self._dimension, points)
        with _named(self._where, "these answers are not found by similarity until they are sent again"):
            for start in range(0, len(points), _BATCH):
                part = points[start : start + _BATCH]
                made = [EdgePoint(point_key(p.id), p.vector.tolist(), payload_of(p)) for p in part]
                self._shard.update(UpdateOperation.upsert_points(made))
        self._written += len(points)
        if self._written > _GARBAGE and self._written - self._counted_at >= _BATCH:
            self._counted_at = self._written
            if self._written > 4 * self.count():
                self._write_anew()

    def _write_anew(self) -> None:
        """Takes a second for 25,000 points that are left, in which nothing is found."""
        from qdrant_edge import Point as EdgePoint
        from qdrant_edge import ScrollRequest, UpdateOperation

        beside = self._path.with_name(f"{self._path.name}.anew")
        with _named(self._where, "it grows until the partition is assigned anew"):
            shutil.rmtree(beside, ignore_errors=True)
            fresh, offset, kept = _open_shard(beside, self._config), None, 0
            while True:
                page, offset = self._shard.scroll(ScrollRequest(offset=offset, limit=_BATCH, with_payload=True, with_vector=True))
                if page:
                    fresh.update(UpdateOperation.upsert_points([EdgePoint(p.id, p.vector or {}, p.payload) for p in page]))
                kept += len(page)
                if offset is None:
                    break
            self._shard.close()
            fresh.close()
            shutil.rmtree(self._path)
            beside.rename(self._path)
            self._shard = _open_shard(self._path, self._config)
        self._written = self._counted_at = kept

    def delete(self, ids: Sequence[str]) -> None:
        from qdrant_edge import UpdateOperation

        if ids:
            with _named(self._where, "these answers may still be found by similarity: delete them again"):
                self._shard.update(UpdateOperation.delete_points([point_key(i) for i in ids]))

    def search(self, tenant: str, scope: str, vectors: Vectors, limit: int) -> list[list[Neighbour]]:
        from qdrant_edge import FieldCondition, Filter, MatchValue, Query, QueryBatchRequest, QueryRequest, RangeFloat

        check_queries(self._where, self._dimension, vectors)
        if limit < 1 or not len(vectors):
            return [[] for _ in vectors]
        now = self._clock()
        wanted = Filter(
            must=[
                FieldCondition("scope", match=MatchValue(scope)),
                FieldCondition("tenant", match=MatchValue(tenant)),
                FieldCondition("expires_ms", range=RangeFloat(gt=float(now))),
            ]
        )
        requests = [
            QueryRequest(limit=limit, query=Query.Nearest(v.tolist()), filter=wanted, with_payload=True, with_vector=True) for v in vectors
        ]
        with _named(self._where, "these prompts go on without the semantic cache"):
            found = self._shard.query_batch(QueryBatchRequest(requests))
        rows = ([neighbour_of(hit.payload, hit.vector, hit.score, tenant, scope, now) for hit in row] for row in found)
        return [[n for n in row if n is not None] for row in rows]

    def purge(self) -> int:
        """Deletes all expired points, and says how many."""
        from qdrant_edge import CountRequest, FieldCondition, Filter, RangeFloat, UpdateOperation

        expired = Filter(must=[FieldCondition("expires_ms", range=RangeFloat(lte=float(self._clock())))])
        with _named(self._where, "expired points stay on disk, and are not returned"):
            before = self._shard.count(CountRequest(exact=True, filter=expired))
            if before:
                self._shard.update(UpdateOperation.delete_points_by_filter(expired))
        return int(before)

    def optimize(self) -> None:
        """Builds the graph index of large segments. Takes seconds (7 s for 20,000 points); searches of small scopes gain nothing."""
        with _named(self._where, "searches go on without the graph index, more slowly"):
            self._shard.optimize()

    def flush(self) -> None:
        """Writes all changes to disk."""
        with _named(self._where, "changes since the last flush may be lost at a crash; they are filled again from the vectors topic"):
            self._shard.flush()

    def count(self) -> int:
        """Points stored, expired ones included until they are purged."""
        from qdrant_edge import CountRequest

        with _named(self._where, "its size is not known"):
            return int(self._shard.count(CountRequest(exact=True)))

    def close(self) -> None:
        self._shard.close()


def _edge_config(dimension: int, search_threads: int | None) -> "EdgeConfig":
    from qdrant_edge import Distance, EdgeConfig, EdgeVectorParams

    # Vectors are of unit length already, so that the dot product is the cosine.
    return EdgeConfig(vectors=EdgeVectorParams(size=dimension, distance=Distance.Dot), max_search_threads=search_threads)


def _open_shard(path: Path, config: "EdgeConfig") -> "EdgeShard":
    from qdrant_edge import EdgeShard, KeywordIndexParams, PayloadSchemaType, UpdateOperation

    if path.is_dir() and any(path.iterdir()):
        shard = EdgeShard.load(str(path), config)
    else:
        path.parent.mkdir(parents=True, exist_ok=True)
        shard = EdgeShard.create(str(path), config)
    known = shard.info().payload_schema
    if "scope" not in known:
        shard.update(UpdateOperation.create_field_index("scope", KeywordIndexParams(is_tenant=True)))
    if "tenant" not in known:
        shard.update(UpdateOperation.create_field_index("tenant", PayloadSchemaType.Keyword))
    if "expires_ms" not in known:
        shard.update(UpdateOperation.create_field_index("expires_ms", PayloadSchemaType.Integer))
    return shard


@contextmanager
def _named(where: str, meaning: str) -> Iterator[None]:
    """Names an engine's or client's error `Unavailable`, with what it means."""
    try:
        yield
    except EngineError:
        raise
    except Exception as error:
        raise Unavailable(f"{where} failed ({_first_line(error)}); {meaning}", code="vector_index") from error
    except BaseException as error:
        # A panic of the Rust engine is not an `Exception` in Python; it must not end the worker as an interrupt does.
        if type(error).__name__ != "PanicException":
            raise
        raise Unavailable(f"{where} failed ({_first_line(error)}); {meaning}", code="vector_index") from error


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).replace("\n", " ")[:300]


class QdrantServerIndex:
    """A collection of a Qdrant server. Blocking; safe to call from several threads."""

    def __init__(
        self, client: "QdrantClient", collection: str, dimension: int, *, clock: Clock = system_clock, where: str = "Qdrant"
    ) -> None:
        """Opens the collection, or creates it with its indexes. Raises `Unavailable` where that fails or its dimension is another."""
        self._client = client
        self._collection = collection
        self._dimension = dimension
        self._clock = clock
        self._where = f"the collection {collection!r} of {where}"
        with _named(self._where, "check QDRANT_URL and that the server is up; until then prompts go on without the semantic cache"):
            self._open()

    @classmethod
    def connect(
        cls, url: str, collection: str, dimension: int, *, api_key: str | None = None, timeout_s: int = 5, clock: Clock = system_clock
    ) -> "QdrantServerIndex":
        """Connects by URL. `timeout_s` bounds each call."""
        from qdrant_client import QdrantClient

        where = f"Qdrant at {url}"
        with _named(where, "check QDRANT_URL"):
            client = QdrantClient(url=url, api_key=api_key, timeout=timeout_s, check_compatibility=False)
        return cls(client, collection, dimension, clock=clock, where=where)

    def _open(self) -> None:
        from qdrant_client import models

        if not self._client.collection_exists(self._collection):
            params = models.VectorParams(size=self._dimension, distance=models.Distance.DOT)
            try:
                self._client.create_collection(self._collection, vectors_config=params)
            except Exception:
                # Another worker may have created it a moment ago; any other reason stands.
                if not self._client.collection_exists(self._collection):
                    raise
        held = self._client.get_collection(self._collection).config.params.vectors
        if not isinstance(held, models.VectorParams):
            raise Unavailable(f"{self._where} has named vectors, so it is not ours; choose another QDRANT_COLLECTION_NAME")
        if held.distance not in (models.Distance.DOT, models.Distance.COSINE):
            raise Unavailable(f"{self._where} measures by {held.distance}, not by cosine; choose another QDRANT_COLLECTION_NAME")
        check_dimension(self._where, held.size, self._dimension)
        indexes: dict[str, Any] = {
            "scope": models.KeywordIndexParams(type=models.KeywordIndexType.KEYWORD, is_tenant=True),
            "tenant": models.PayloadSchemaType.KEYWORD,
            "expires_ms": models.PayloadSchemaType.INTEGER,
        }
        for name, schema in indexes.items():
            self._client.create_payload_index(self._collection, name, field_schema=schema)

    def upsert(self, points: Sequence[Point]) -> None:
        from qdrant_client import models

        check_points(self._where, self._dimension, points)
        with _named(self._where, "these answers are not found by similarity until they are sent again"):
            for start in range(0, len(points), _BATCH):
                part = points[start : start + _BATCH]
                made = [models.PointStruct(id=point_key(p.id), vector=p.vector.tolist(), payload=payload_of(p)) for p in part]
                self._client.upsert(self._collection, made, wait=True)

    def delete(self, ids: Sequence[str]) -> None:
        from qdrant_client import models

        if ids:
            keys: list[models.ExtendedPointId] = [point_key(i) for i in ids]
            with _named(self._where, "these answers may still be found by similarity: delete them again"):
                self._client.delete(self._collection, models.PointIdsList(points=keys), wait=True)

    def search(self, tenant: str, scope: str, vectors: Vectors, limit: int) -> list[list[Neighbour]]:
        from qdrant_client import models

        check_queries(self._where, self._dimension, vectors)
        if limit < 1 or not len(vectors):
            return [[] for _ in vectors]
        now = self._clock()
        wanted = models.Filter(
            must=[_is("scope", scope), _is("tenant", tenant), models.FieldCondition(key="expires_ms", range=models.Range(gt=now))]
        )
        requests = [models.QueryRequest(query=v.tolist(), filter=wanted, limit=limit, with_payload=True, with_vector=True) for v in vectors]
        with _named(self._where, "these prompts go on without the semantic cache"):
            found = self._client.query_batch_points(self._collection, requests)
        rows = ([neighbour_of(hit.payload, hit.vector, hit.score, tenant, scope, now) for hit in row.points] for row in found)
        return [[n for n in row if n is not None] for row in rows]

    def purge(self) -> int:
        """Deletes all expired points, and says how many."""
        from qdrant_client import models

        expired = models.Filter(must=[models.FieldCondition(key="expires_ms", range=models.Range(lte=self._clock()))])
        with _named(self._where, "expired points stay stored, and are not returned"):
            before = self._client.count(self._collection, count_filter=expired, exact=True).count
            if before:
                self._client.delete(self._collection, models.FilterSelector(filter=expired), wait=True)
        return before

    def count(self) -> int:
        """Points stored, expired ones included until they are purged."""
        with _named(self._where, "its size is not known"):
            return self._client.count(self._collection, exact=True).count

    def close(self) -> None:
        self._client.close()


def _is(field: str, value: str) -> "models.FieldCondition":
    from qdrant_client import models

    return models.FieldCondition(key=field, match=models.MatchValue(value=value))

"""What the pipeline asks of the world. Real parts and their fakes live side by side in `connectors/`."""

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from ..schemas.answers import Told, Usage
from ..schemas.costs import CostEvent
from ..schemas.record import JsonObject
from ..schemas.requests import Waiter
from .errors import EngineError
from .models import Model
from .provider_batch import BatchTraits
from .rates import RateSeen

Vector = NDArray[np.float32]
"""Shape (dimension,), unit length."""
Vectors = NDArray[np.float32]
"""Shape (n, dimension), rows of unit length."""


Begun = Callable[[], None]
"""Called when a provider's answer has begun to come, which only a stream can tell: what the call writes to a prompt cache can be read."""


@dataclass(frozen=True, slots=True)
class ProviderReply:
    """A complete answer of a provider, in the form of an OpenAI chat completion."""

    body: JsonObject
    usage: Usage
    finish_reason: str
    request_id: str
    service_tier: str = "standard"
    """As the response says: standard | flex | priority; what the call is billed by."""
    rates: Sequence[RateSeen] = ()
    """What the reply says about the limits of its model and key."""


class Provider(Protocol):
    """One provider's hot path: one chat completion, no retries of its own.

    Raises `Rejected`, `Unavailable(retry_after)`, `Ambiguous`, `Charged`; nothing else.
    """

    async def complete(
        self, model: Model, body: JsonObject, *, timeout: float, metadata: Mapping[str, str], begun: Begun | None = None
    ) -> ProviderReply:
        """Sends `body` (an OpenAI chat completion request; `model` in it is replaced by the provider's name of the model).

        Where it says `stream: true` the answer is taken as a stream, which changes neither the reply nor its bill; one that breaks off is
        `Ambiguous`. `timeout` in seconds bounds the whole call. `metadata` travels as headers where the provider takes them.
        """
        ...

    async def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class BatchStatus:
    """How far a provider is with a batch."""

    state: Literal["working", "ended", "failed"]
    """failed: refused as a whole before any row was worked on, so that nothing was billed."""
    done: int = 0
    """Rows that have a result."""
    failed: int = 0
    """Rows that have an error; of `done` not a part."""
    message: str = ""
    full: bool = False
    """It failed because the provider's queue has no room for it: a smaller one, or a later one, may fit."""


@dataclass(frozen=True, slots=True)
class RowResult:
    """What became of one row: an answer, or the error that a call would have ended with."""

    custom_id: str
    result: ProviderReply | EngineError


class BatchProvider(Protocol):
    """One provider's batches: half the price, an answer within a day. No retries of its own.

    Every method raises `Rejected` or `Unavailable`, and `create` also `Ambiguous`; nothing else.
    """

    traits: BatchTraits

    def line(self, model: Model, custom_id: str, body: Mapping[str, Any]) -> bytes:
        """One row of the file, without its line end. `custom_id`: letters, digits, `_` and `-`, 64 at most.

        Raises `Rejected` for what the provider can't be asked.
        """
        ...

    async def upload(self, key: str, path: Path) -> str:
        """Hands the file over; free of charge and without effect until `create`. The id of the file, or an empty text."""
        ...

    async def create(self, key: str, file_id: str, path: Path, *, timeout: float) -> str:
        """Begins the batch; its id. From here on it costs money."""
        ...

    async def find(self, key: str, file_id: str, prepared_ms: int, rows: int) -> str | None:
        """The id of the batch whose submission nobody saw the end of; None where it certainly was not begun.

        Raises `Unavailable` where that can't be told yet.
        """
        ...

    async def status(self, batch_id: str) -> BatchStatus: ...

    def results(self, model: Model, batch_id: str) -> AsyncIterator[RowResult]:
        """All rows of a batch that has ended, in any order. Rows that were not worked on come as `Unavailable`, or not at all."""
        ...

    async def cancel(self, batch_id: str) -> None:
        """Asks for an early end; rows that are done stay done, and are billed."""
        ...

    async def forget(self, batch_id: str, file_id: str) -> None:
        """Deletes what the provider keeps of it. Either id may be empty; what is gone already is fine."""
        ...

    async def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Embedded:
    """Vectors of texts, and which of them the model saw as they are."""

    vectors: Vectors
    """Shape (n, dimension); rows that are not whole are zero."""
    whole: NDArray[np.bool_]
    """Shape (n,). False: longer than `max_tokens`, or with words that the model has no token for. Never compare such a row."""
    billed_tokens: int = 0
    """Tokens that somebody is paid for; 0 where the model runs here."""


class Embedder(Protocol):
    """Turns texts into unit vectors. Blocking and CPU-bound: call it in a thread."""

    @property
    def dimension(self) -> int: ...

    @property
    def max_tokens(self) -> int:
        """Longer texts are truncated by the model: two texts equal up to here look the same to it."""
        ...

    @property
    def parallel(self) -> int:
        """From how many threads it may be called, and gains by it."""
        ...

    def count_tokens(self, texts: Sequence[str]) -> list[int]: ...

    def embed(self, texts: Sequence[str]) -> Vectors:
        """Shape (n, dimension). Texts longer than `max_tokens` are truncated, so check `count_tokens` or use `embed_whole`."""
        ...

    def embed_whole(self, texts: Sequence[str]) -> Embedded:
        """Embeds only what may be compared: no time is spent on texts that the model can't see in full."""
        ...


@dataclass(frozen=True, slots=True)
class Point:
    """A stored vector with what is needed to check a hit."""

    id: str
    """Hex fingerprint of the answered request."""
    vector: Vector
    tenant: str
    scope: str
    text: str
    created_ms: int
    expires_ms: int


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A stored point and its cosine similarity to the query."""

    point: Point
    similarity: float


class VectorIndex(Protocol):
    """Nearest neighbours within a tenant and scope. Blocking: call it in a thread where it is remote.

    Raises `Unavailable` where the index can't be reached or answers in another dimension.
    """

    def upsert(self, points: Sequence[Point]) -> None: ...

    def delete(self, ids: Sequence[str]) -> None: ...

    def search(self, tenant: str, scope: str, vectors: Vectors, limit: int) -> list[list[Neighbour]]:
        """For each row of `vectors` up to `limit` neighbours of this tenant and scope, most similar first."""
        ...

    def purge(self) -> int:
        """Deletes all expired points, and says how many."""
        ...

    def count(self) -> int: ...

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Case:
    """Why answers are compared: a judge that costs money books it to the request whose answer is the new one."""

    partition: int
    """Of the scope."""
    scope: str
    whose: Waiter


class Judge(Protocol):
    """Compares answers whose values don't tell whether they say the same. Works beside the requests, never before one."""

    at_once: int
    """Comparisons that it makes side by side."""

    async def agree(self, own: Told, others: Sequence[Told], case: Case) -> list[bool | None]:
        """For each of the others whether it says the same as `own`; None where that can't be told. Raises `EngineError`."""
        ...


class CostStore(Protocol):
    """Where cost events are kept and asked for in SQL. Blocking."""

    def insert(self, events: Sequence[CostEvent]) -> None:
        """Durable when it returns; the same event twice counts once."""
        ...

    def query(self, sql: str, parameters: Mapping[str, Any] | None = None) -> tuple[list[str], list[tuple[Any, ...]]]:
        """Column names and rows. Read only."""
        ...

    def close(self) -> None: ...

"""All that a run left behind, as plain values: what was asked, answered, written down, billed and stored."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from inference_engine.schemas.answers import AnswerRecord, VectorRecord
from inference_engine.schemas.costs import CostEvent
from inference_engine.schemas.ledger import LedgerRecord
from inference_engine.schemas.requests import Call, Identity, Lookup, Miss
from inference_engine.schemas.responses import ResponseLine

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Asked:
    """A request that was accepted on the `requests` topic."""

    tenant: str
    job: str
    custom_id: str
    model: str
    text: str
    """The last user message: the simulated answer is a function of model and text."""

    @property
    def key(self) -> tuple[str, str, str]:
        return (self.tenant, self.job, self.custom_id)


@dataclass(frozen=True, slots=True)
class Placed(Generic[T]):
    """A record, or a member of a packet, and where it lies."""

    topic: str
    partition: int
    offset: int
    member: T


@dataclass(frozen=True, slots=True)
class Billed:
    """A line of the provider's own bill."""

    prompt: str
    """Hex digest of model and last user message."""
    model: str
    request_id: str
    attempt: str
    """What the engine called itself in the header of the call."""
    pico: int


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Committed offsets, of the workers' topics and of the sink's, read before the ends of the topics that they promise something about."""

    committed: Mapping[tuple[str, int], int]
    ends: Mapping[tuple[str, int], int]


@dataclass(frozen=True, slots=True)
class Stored:
    """A row of the cost store, each event once."""

    event_id: str
    kind: str
    attempt: str
    base_pico: int
    cap_pico: int
    request: tuple[str, str, str] = ("", "", "")
    """Tenant, job, custom_id."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """Topics in the order of their offsets, each partition by itself."""

    asked: tuple[Asked, ...] = ()
    responses: tuple[ResponseLine, ...] = ()
    ledger: tuple[Placed[LedgerRecord], ...] = ()
    bill: tuple[Billed, ...] = ()
    stored: tuple[Stored, ...] | None = None
    """None where no sink ran."""
    requests: tuple[Placed[Identity], ...] = ()
    lookups: tuple[Placed[Lookup], ...] = ()
    rows: tuple[Placed[bytes], ...] = ()
    """Keys of the rows of waiters, on the changelog of the exact tier."""
    truncated: bool = False
    """Some of that changelog was deleted by a fault."""
    misses: tuple[Placed[Miss], ...] = ()
    calls: tuple[Placed[Call], ...] = ()
    answers: tuple[Placed[AnswerRecord], ...] = ()
    replies: tuple[Placed[Identity], ...] = ()
    """Whose response lies where."""
    costs: tuple[Placed[CostEvent], ...] = ()
    snapshots: tuple[Snapshot, ...] = ()
    words: Mapping[str, bytes] = field(default_factory=dict)
    """Logs, metrics and headers of dead letters, by where they were said."""
    vectors: tuple[Placed[VectorRecord], ...] = ()
    most_open: int = 0
    """Calls of one worker whose connections the provider saw open at once."""
    permits: int = 0
    """Of one worker."""
    memory_mb: Mapping[str, float] = field(default_factory=dict)
    """The most that each process that was alive at the end has held."""
    secrets: tuple[str, ...] = ()
    canaries: Mapping[str, str] = field(default_factory=dict)
    """Tenant -> the word that stands in each of its prompts, and nowhere else."""
    max_attempts: int = 3
    files: tuple[str, ...] = ()
    """Of batches, that the provider still has."""

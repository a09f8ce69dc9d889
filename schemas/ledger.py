"""The truth about money: what was intended, what came back, what may have been paid.

All records of a flight are on one partition of `ledger`, the same number as its partition of `calls`.
"""

from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from .answers import Answer, ErrorInfo, Usage
from .record import SCHEMA_VERSION, Record
from .requests import Call, Chosen, Request

Purpose = Literal["answer", "hedge", "audit", "judge", "grade", "cascade", "priming", "exploration"]
"""`audit`: of the answer too, where a known one would have been shared.
`judge`, `grade`, `cascade`: a model is asked about answers, see `Call.asks`.
`hedge`: of the answer too, while an earlier call for it is under way, for a tenant that allows to pay twice."""

ASKING = frozenset({"judge", "grade", "cascade"})
"""Purposes of questions about answers: nobody is answered by them."""


class Intent(Record):
    """Written, fenced and awaited, before anything is sent to a provider."""

    type: Literal["intent"] = "intent"
    v: int = SCHEMA_VERSION
    flight: str
    attempt: str
    """Unique id of this attempt."""
    number: int
    """1 for the first attempt of the flight."""
    purpose: Purpose = "answer"
    model: str
    cap_pico: int
    """The most that this attempt can cost."""
    epoch: str
    """Of the worker's ownership of the partition."""
    at_ms: int
    timeout_ms: int
    """After `at_ms + timeout_ms` no answer can come any more."""


class Completion(Record):
    """A paid answer. Never fenced: accepted from any epoch by its attempt id, so that a paid answer survives a rebalance."""

    type: Literal["completion"] = "completion"
    v: int = SCHEMA_VERSION
    flight: str
    attempt: str
    number: int
    purpose: Purpose = "answer"
    request: Request
    answer: Answer
    cap_pico: int
    group: str | None = None
    embedding: str | None = None
    chosen: Chosen | None = None
    """Where a router that learns chose the model."""
    attempts: int
    spent_pico: int
    """Certain costs of this flight, this attempt included."""
    discarded_pico: int = 0
    """Of them, those of answers that were held back for this one; as far as they are still in the ledger."""
    kept: bool = False
    """It was held back, booked as charged, and is given after all: nothing better came."""
    ambiguous_pico: int = 0
    """The caps of the flight's other attempts whose bill is not known: possibly spent on top."""
    judged: float | None = None
    """What the check of a cascade found it to be worth, 0 to 1."""
    at_ms: int


class Ambiguous(Record):
    """Sent, and nobody knows whether it was billed: priced at its cap."""

    type: Literal["ambiguous"] = "ambiguous"
    v: int = SCHEMA_VERSION
    flight: str
    attempt: str
    number: int
    model: str
    cap_pico: int
    reason: str
    request: Request
    at_ms: int


class Unpaid(Record):
    """An attempt that certainly cost nothing: refused by the provider, or never sent."""

    type: Literal["unpaid"] = "unpaid"
    v: int = SCHEMA_VERSION
    flight: str
    attempt: str
    number: int
    reason: str
    at_ms: int


class Failure(Record):
    """The end of a flight without an answer."""

    type: Literal["failure"] = "failure"
    v: int = SCHEMA_VERSION
    flight: str
    purpose: Purpose = "answer"
    """Of a question about answers: nobody was to be answered."""
    request: Request
    error: ErrorInfo
    attempts: int
    spent_pico: int = 0
    """Certain costs of attempts that gave no usable answer."""
    ambiguous_pico: int = 0
    """The caps of attempts whose bill is not known: possibly spent on top."""
    at_ms: int


class Charged(Record):
    """An attempt that was billed and gave nothing usable (e.g. an answer that could not be read)."""

    type: Literal["charged"] = "charged"
    v: int = SCHEMA_VERSION
    flight: str
    attempt: str
    number: int
    model: str
    paid_pico: int
    usage: Usage
    reason: str
    request: Request
    at_ms: int
    discarded: str = ""
    """Why a readable answer was held back and another model asked, see pipeline/unwanted.py; empty: it was not readable."""
    answer: Answer | None = None
    """The one that was held back: given after all where nothing better comes, by whoever owns the flight then. None: it can't be."""
    purpose: Purpose = "answer"
    cap_pico: int = 0
    chosen: Chosen | None = None
    embedding: str | None = None
    judged: float | None = None
    """What the check of a cascade found it to be worth, 0 to 1."""


class Parked(Record):
    """A call that waits for a provider batch. From here on the ledger owns it, and the packet that brought it is acknowledged."""

    type: Literal["parked"] = "parked"
    v: int = SCHEMA_VERSION
    flight: str
    call: Call
    model: str
    """The model whose batch it waits for."""
    size: int
    """Bytes of its body."""
    at_ms: int


class BatchPrepared(Record):
    """Written, fenced and awaited, before a batch is submitted: the intent of each of its rows."""

    type: Literal["batch_prepared"] = "batch_prepared"
    v: int = SCHEMA_VERSION
    batch: str
    """Key of the batch. The id of a row's attempt, and its custom_id at the provider, is this, a dash, and its place in `members`."""
    provider: str
    model: str
    members: tuple[tuple[str, int, int], ...]
    """(flight, number of the attempt, cap in pico-dollars)."""
    file_sha256: str
    file_bytes: int
    file_id: str = ""
    """Of the file at the provider, where it was handed over before."""
    reserved_pico: int
    """The caps of all members together."""
    epoch: str
    at_ms: int
    submit_ms: int
    """After `at_ms + submit_ms` no submission of it can reach the provider any more."""
    timeout_ms: int
    """After `at_ms + timeout_ms` no row of it can be answered any more."""


class BatchSubmitted(Record):
    """The provider has the batch. Never fenced: the money is as good as spent."""

    type: Literal["batch_submitted"] = "batch_submitted"
    v: int = SCHEMA_VERSION
    batch: str
    provider_id: str
    at_ms: int


class BatchVoid(Record):
    """The provider certainly does not work on the batch: none of its rows costs anything."""

    type: Literal["batch_void"] = "batch_void"
    v: int = SCHEMA_VERSION
    batch: str
    reason: str
    at_ms: int


class BatchClosed(Record):
    """Every row has its outcome, and the provider's files are deleted."""

    type: Literal["batch_closed"] = "batch_closed"
    v: int = SCHEMA_VERSION
    batch: str
    at_ms: int


FlightRecord = Intent | Completion | Ambiguous | Unpaid | Failure | Charged | Parked
"""Records of one flight."""
BatchRecord = BatchPrepared | BatchSubmitted | BatchVoid | BatchClosed
"""Records of a provider batch."""
LedgerRecord = Annotated[FlightRecord | BatchRecord, Field(discriminator="type")]
ledger_adapter: TypeAdapter[LedgerRecord] = TypeAdapter(LedgerRecord)

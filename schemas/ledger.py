"""The truth about money: what was intended, what came back, what may have been paid.

All records of a flight are on one partition of `ledger`, the same number as its partition of `calls`.
"""

from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from .answers import Answer, ErrorInfo, Usage
from .record import SCHEMA_VERSION, Record
from .requests import Request

Purpose = Literal["answer", "hedge", "audit", "judge", "priming", "exploration"]
"""`hedge`: of the answer too, while an earlier call for it is under way, for a tenant that allows to pay twice."""


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
    attempts: int
    spent_pico: int
    """Certain costs of this flight, this attempt included."""
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
    request: Request
    error: ErrorInfo
    attempts: int
    spent_pico: int = 0
    """Certain costs of attempts that gave no usable answer."""
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


LedgerRecord = Annotated[Intent | Completion | Ambiguous | Unpaid | Failure | Charged, Field(discriminator="type")]
ledger_adapter: TypeAdapter[LedgerRecord] = TypeAdapter(LedgerRecord)

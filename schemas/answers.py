"""Answers, as they travel back."""

from typing import Literal

from .record import SCHEMA_VERSION, JsonObject, Record
from .requests import Identity, Request, Waiter


class Usage(Record):
    """Tokens of one provider call, in the engine's own terms: every count of the input is part of `input_tokens`."""

    input_tokens: int
    """All input tokens, cached ones included."""
    output_tokens: int
    cache_read_tokens: int = 0
    cache_write_tokens: int = 0
    """Written to the provider's cache at its short time to live."""
    cache_write_1h_tokens: int = 0
    """Written at the longer time to live of Anthropic."""
    cache_write_12h_tokens: int = 0
    """Written at the longer time to live of OpenAI."""


class ErrorInfo(Record):
    """Why a request has no answer."""

    code: str
    """Stable and machine-readable, e.g. `invalid_request`, `over_budget`, `provider_rejected`."""
    message: str
    """What happened, what it means for the data, what to do next."""


class Answer(Record):
    """The body of a chat completion, and what it cost where it was made."""

    body: JsonObject
    model_used: str
    """The name in `models.toml`."""
    usage: Usage
    paid_pico: int
    """What the call cost, in 10^-12 USD."""
    finish_reason: str
    request_id: str = ""
    """The provider's id of the call."""


class Source(Record):
    """Where an answer comes from."""

    tier: Literal["provider", "exact", "semantic", "coalesced"]
    fingerprint: str
    """Of the request whose call made the answer: revoking works along this."""
    flight: str
    similarity: float | None = None
    attempt: str = ""
    """Id of the ledger's attempt that was paid."""


class AnswerRecord(Record):
    """A packet member on `answers`: the outcome of every request after ingest, errors too."""

    v: int = SCHEMA_VERSION
    fingerprint: str
    flight: str
    owner: Identity
    """Of the request that the answer was made for; it has its cost row already, where the source is the provider."""
    answer: Answer | None = None
    error: ErrorInfo | None = None
    source: Source
    cacheable: bool = False
    created_ms: int
    ttl_s: int = 0
    attempts: int = 0
    spent_pico: int = 0
    """All that was paid for this flight, failed attempts included."""
    ambiguous_pico: int = 0
    """At most this much may have been paid for it on top: the caps of attempts whose bill is not known."""
    discarded_pico: int = 0
    """Of what was spent, for answers that were held back for this one."""
    scope: str = ""
    request: Request | None = None
    """Set where the outcome is the owner's alone (see pipeline/exact.py): the next waiter takes the flight over."""
    asker: Waiter | None = None
    """The owner as it was told another one's answer, or an error. Should its own call be answered after another's, it answered nobody."""


class Told(Record):
    """What an answer says, as far as comparing it with others needs it; see pipeline/judge.py."""

    kind: Literal["value", "text"]
    digest: str
    """Equal where the answers are, by value or letter by letter."""
    text: str = ""
    """How free text begins."""
    whole: bool = True
    """It is no longer than that."""


class VectorRecord(Record):
    """A packet member on `vectors`: an answered prompt, to be found by similarity."""

    v: int = SCHEMA_VERSION
    tenant: str
    scope: str
    fingerprint: str
    text: str
    vector: str
    """base64 of float16, see pipeline/vectors.py."""
    created_ms: int
    expires_ms: int
    answer: Told | None = None
    """None in records of earlier versions, and where there is nothing to compare."""
    paid_pico: int = 0
    """What a hit saves: the price of the call that made the answer, in 10^-12 USD. 0 in records of earlier versions."""
    revoked: bool = False
    served: bool = False
    """Only this: the answer was given once more. Written where a policy asks how often it was; text and vector are empty."""

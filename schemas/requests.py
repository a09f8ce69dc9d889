"""What users write to `requests`, and what it becomes behind the door.

A line has the form of an OpenAI batch input line, so that existing files work as they are, plus an optional `engine` object.
"""

from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from .record import SCHEMA_VERSION, JsonObject, Lane, Record

MAX_NAME = 256
Name = Annotated[str, Field(min_length=1, max_length=MAX_NAME)]


Cascade = Literal["off", "structure", "agreement", "judge"]
"""How a cheaper answer is checked: by the form that the request asks for, by another cheap model's answer that says the same, or by a
model that grades it."""


Asks = Literal["judge", "grade", "cascade"]
"""What a model is asked about answers: whether known ones agree; what one is worth, for the router to learn from; what a cheap one is
worth, before it is given."""


class EngineOptions(Record):
    """What this engine understands beyond the OpenAI form."""

    job: Name | None = None
    user_id: str = Field(default="", max_length=256)
    feature_name: str = Field(default="", max_length=256)
    experiment_id: str = Field(default="", max_length=256)
    experiment_variant: str = Field(default="", max_length=256)
    priority: Lane | None = None
    deadline: str | float | None = None
    """RFC 3339, or seconds from the moment of ingestion."""
    use_cache: bool = True
    cache_ttl_seconds: int | None = Field(default=None, ge=0, le=1_000_000_000)
    sample_index: int | None = Field(default=None, ge=0)
    """Repeats of one prompt that want different answers number themselves."""
    preferred_model: str | None = None
    cascade: Cascade | None = None
    """A cheaper answer first, given where a check accepts it; None: as the operator says."""
    language: Annotated[str | None, Field(pattern=r"^[a-z]{2,3}([-_][A-Za-z0-9_-]{1,20})?$")] = None
    """Of the answer, as `de` or `pt-BR`: only models that know it are chosen. None: told from the prompt where that is plain."""
    max_cost_usd: Annotated[str | float | int | None, Field(description="hard cap on all attempts for this request")] = None


class RequestLine(Record):
    """One line of a requests file, one record of the `requests` topic."""

    # Lines written for other programs may carry fields that we don't know: they are theirs to keep.
    model_config = ConfigDict(frozen=True, extra="ignore")

    custom_id: Name
    method: Literal["POST"] = "POST"
    url: Literal["/v1/chat/completions"] = "/v1/chat/completions"
    body: JsonObject
    engine: EngineOptions = EngineOptions()


class Dimensions(Record):
    """Whom and what a cost is attributed to."""

    user_id: str = ""
    feature_name: str = ""
    experiment_id: str = ""
    experiment_variant: str = ""


class Identity(Record):
    """Which request this is: the same identity is the same request, however often it arrives."""

    tenant: Name
    job: Name
    custom_id: Name

    @property
    def key(self) -> bytes:
        """The key on `responses`; length-prefixed, so that no two identities share one."""
        return b"".join(b"%d:%s" % (len(p), p) for p in (s.encode() for s in (self.tenant, self.job, self.custom_id)))


class Request(Record):
    """A request that passed the door (`ingest`): valid, normalised, fingerprinted."""

    v: int = SCHEMA_VERSION
    identity: Identity
    body: JsonObject
    model: str
    """As resolved by `models.toml`, or `auto`."""
    fingerprint: str
    """Hex SHA-256: equal for requests whose answers may be exchanged exactly."""
    scope: str
    """Hex SHA-256: only requests of one scope may share an answer by similarity."""
    flight: str
    """Hex SHA-256 of fingerprint and identity: the id under which this request would be paid."""
    lane: Lane
    dimensions: Dimensions = Dimensions()
    accepted_ms: int
    deadline_ms: int | None = None
    use_cache: bool = True
    shareable: bool = True
    """False where an answer must not be shared by similarity: tools, images, several choices, no user text."""
    cache_ttl_s: int
    preferred_model: str | None = None
    cascade: Cascade | None = None
    language: str | None = None
    """As the request says; ISO 639-1."""
    max_cost_pico: int | None = None


class Waiter(Record):
    """One who waits for the answer of a flight: all that its response and its cost row need."""

    identity: Identity
    dimensions: Dimensions = Dimensions()
    lane: Lane
    model: str
    accepted_ms: int
    deadline_ms: int | None = None
    max_cost_pico: int | None = None


class Lookup(Record):
    """A packet member on `lookups`: find an answer for this request.

    `follow` is set when the request arrives by similarity at the flight of another one: it waits for the answer to that
    fingerprint, which is then given under the request's own.
    """

    request: Request
    follow: "Follow | None" = None


class Follow(Record):
    """Why a request may take the answer of another one."""

    fingerprint: str
    scope: str
    kind: Literal["semantic", "coalesced"]
    similarity: float
    since_ms: int | None = None
    """The flight of the source whose call is durable: only that one may be waited for, since another one may itself be waiting for
    this request. None: no call is known, so the answer is taken where it is there already."""
    called_ms: int | None = None
    """When that call was sent, where it leads a group: its flight may have taken off long before, to follow another one first."""
    own_ms: int | None = None
    """When the follower's own flight took off: where it leads the next time, this names its flight."""
    fallen: tuple[str, ...] = ()
    """Fingerprints that it followed before this one, and whose flights gave it nothing."""


class Miss(Record):
    """A packet member on `misses.LANE`: no exact answer is known."""

    request: Request
    skip_semantic: bool = False
    since_ms: int | None = None
    """When the flight took off that this is sent for."""
    fallen: tuple[str, ...] = ()
    """Fingerprints that it followed, and whose flights gave it nothing. It may lead now, or follow another one, but none of these."""


class Chosen(Record):
    """What a router that learns must know of its choice when it hears what the answer was worth."""

    model: str
    expected: float | None = None
    """Score that was foretold for it; None: nothing was learned yet."""
    chance: float = 1.0
    """How probable this choice was."""
    explored: bool = False
    """Not the best known choice: taken to learn."""
    costs: tuple[tuple[str, int], ...] = ()
    """(model, pico-dollars that it was expected to cost) of all that could have been chosen."""


class Route(Record):
    """Which models to try, best first, and why."""

    models: tuple[str, ...]
    reason: str
    complexity: float | None = None
    chosen: Chosen | None = None
    """None where nothing is to be learned from it."""
    cascade: Cascade = "off"
    """How the answers of the first models are checked before one is given."""
    cheap: int = 0
    """How many models these are."""


class Call(Record):
    """A packet member on `calls.LANE`: pay for this answer."""

    request: Request
    route: Route
    group: str | None = None
    """Fingerprint of the first of the similar requests that this one is sent beside: within a packet, and in a file for a batch."""
    embedding: str | None = None
    """base64 of float16, see pipeline/vectors.py."""
    audit: bool = False
    """A known answer would have been shared; the request is paid for all the same, so that the two can be compared."""
    judge: bool = False
    """It asks a model about answers. Nobody is answered by it: the request is the engine's own, under the identity of the one that it is
    booked to."""
    asks: Asks = "judge"
    """What it asks, where it is such a question."""


Lookup.model_rebuild()

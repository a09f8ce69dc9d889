"""What users say of answers, and what the router learns from it.

A record of `feedback` says what one answer was worth; on `lessons` it meets what was served, on the tenant's own partition.
"""

from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from .record import SCHEMA_VERSION, Record
from .requests import Chosen, Identity, Name

Score = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
"""0 useless, 1 as good as can be."""


class FeedbackLine(Record):
    """One record of `feedback`, one line of a feedback file. The tenant stands in the header `tenant`, as on `requests`."""

    # Lines written for other programs may carry fields that we don't know.
    model_config = ConfigDict(frozen=True, extra="ignore")

    custom_id: Name
    job: Name | None = None
    """None: the one that requests without a job get."""
    score: Score


Speaker = Literal["user", "judge"]


class Rated(Record):
    """A packet member on `lessons`: what somebody said of the answer."""

    type: Literal["rated"] = "rated"
    v: int = SCHEMA_VERSION
    identity: Identity
    score: Score
    source: Speaker = "user"
    """A judge is a model that was asked; what users say of the same answer counts, whichever came last."""
    at_ms: int


class Served(Record):
    """A packet member on `lessons`: an answer that the router chose the model of."""

    type: Literal["served"] = "served"
    v: int = SCHEMA_VERSION
    identity: Identity
    model: str
    """That answered; after a fallback another one than was chosen."""
    chosen: Chosen
    features: tuple[float, ...]
    """As pipeline/prompt_features.py names them."""
    embedding: str | None = None
    """base64 of float16, see pipeline/vectors.py."""
    refused: bool = False
    """The model gave no answer, or half of one: worth nothing, unless somebody says otherwise."""
    attempt: str = ""
    """Of an answer that was held back, and another model asked; empty: the one that was given."""
    judged: float | None = None
    """What a judge found it to be worth before it was given."""
    at_ms: int


class LessonRow(Record):
    """What is known of one answer, in the table of lessons."""

    served: Served | None = None
    score: float | None = None
    """As users say."""
    rated_ms: int = 0
    judged: float | None = None
    """As a judge says."""
    judged_ms: int = 0


class RouterRow(Record):
    """What outlives a router's learning, in the table of lessons: one row a tenant."""

    version: int = 0
    """Of the last state that was published."""
    since_ms: int = 0
    """Nothing older is learned from: the answers changed."""
    watched_ms: int = 0
    """Of the newest answer at the last alarm: the watch on drift began anew behind it."""
    drifts: int = 0


LessonRecord = Annotated[Rated | Served, Field(discriminator="type")]

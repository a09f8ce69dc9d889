"""What somebody found wrong: records on the compacted `corrections` topic."""

from typing import Literal

from .record import SCHEMA_VERSION, Record
from .requests import Identity


class Correction(Record):
    """An answer that was reported wrong: it is not given again, to nobody."""

    type: Literal["correction"] = "correction"
    v: int = SCHEMA_VERSION
    fingerprint: str
    """Of the request whose call made the answer."""
    reported: Identity
    """The request whose response was wrong; it may have had the answer by similarity."""
    by_similarity: bool = False
    """It had: whether the two may share an answer is what was decided wrongly."""
    reason: str = ""
    at_ms: int
    """Answers made until then are meant."""

    @property
    def key(self) -> bytes:
        """The key on `corrections`: the last word about an answer is kept."""
        return self.fingerprint.encode()

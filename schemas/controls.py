"""What operators tell a running engine: records on the compacted `controls` topic."""

from typing import Literal

from .record import SCHEMA_VERSION, Record
from .requests import Name


class Cancel(Record):
    """Every request of this job that has no answer yet is answered with the error `cancelled`."""

    type: Literal["cancel"] = "cancel"
    v: int = SCHEMA_VERSION
    tenant: Name
    job: Name
    at_ms: int

    @property
    def key(self) -> bytes:
        """The key on `controls`: the last word about a job is kept."""
        return b"".join(b"%d:%s" % (len(p), p) for p in (s.encode() for s in (self.tenant, self.job)))

"""What a handler may raise, named for what happens to the event.

Stale         the partition moved on: stop working on it, its next owner gets the event again
DeadLetter    no use retrying: written aside, then acknowledged
OversizedRow  a table row that the broker would refuse; nothing was written
anything else is retried for as long as the event is current
"""

from ...pipeline.errors import Stale

__all__ = ["DeadLetter", "OversizedRow", "Stale"]


class DeadLetter(Exception):
    """The event can never succeed as it is. `error_class` and the message travel with the dead letter."""

    def __init__(self, message: str, *, error_class: str = "rejected") -> None:
        super().__init__(message)
        self.error_class = error_class


class OversizedRow(ValueError):
    """A table row above the limit: refused before anything was written, so that local state and changelog agree."""

"""Server-sent events, as the WHATWG's HTML standard describes them: bytes in, whole events out."""

from collections.abc import Callable
from typing import NamedTuple

MOST_BYTES = 64_000_000
"""Of one event: no answer is longer, and a server that never ends a line must not fill the memory."""


class Event(NamedTuple):
    """One event; `name` is empty where the server gave none."""

    name: str
    data: bytes


Ends = Callable[[Event], bool]
"""Whether an event is the last one of its stream."""


class EventReader:
    """Takes a stream in pieces of any size. Fields other than `event` and `data`, and comments, are left out."""

    def __init__(self) -> None:
        self._rest = bytearray()
        self._name = ""
        self._data: list[bytes] = []

    def feed(self, piece: bytes) -> list[Event]:
        """The events that end within this piece. Raises ValueError where one is too long."""
        self._rest += piece
        if len(self._rest) > MOST_BYTES:
            raise ValueError(f"an event has more than {MOST_BYTES:,} bytes")
        found: list[Event] = []
        while (line := self._line()) is not None:
            if line:
                self._field(line)
                continue
            if self._data:
                found.append(Event(self._name, b"\n".join(self._data)))
            self._name, self._data = "", []
        return found

    def _line(self) -> bytes | None:
        """The next whole line, without its end: CR, LF or both. None where there is none yet."""
        lf = self._rest.find(b"\n")
        cr = self._rest.find(b"\r", 0, lf if lf >= 0 else len(self._rest))
        at = cr if cr >= 0 else lf
        if at < 0:
            return None
        after = at + 1
        if self._rest[at : at + 1] == b"\r":
            if after == len(self._rest):
                return None  # an LF may follow, and belongs to it
            after += self._rest[after : after + 1] == b"\n"
        line = bytes(self._rest[:at])
        del self._rest[:after]
        return line

    def _field(self, line: bytes) -> None:
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if name == b"data":
            self._data.append(value)
        elif name == b"event":
            self._name = value.decode("utf-8", "replace")

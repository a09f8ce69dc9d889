"""How far the calls of a worker are: what the watchdog looks at."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager


class Steps:
    """How far one call is: it must move on, unless it waits for its turn."""

    __slots__ = ("_moves", "count", "flight", "partition", "queued")

    def __init__(self, partition: int, flight: str, moves: Counter[int]) -> None:
        self.partition = partition
        self.flight = flight
        self.count = 0
        self.queued = False
        self._moves = moves

    def moved(self) -> None:
        """Something that the call has come to is durable: unlike a step, it is not made again after an error."""
        self.count += 1
        self._moves[self.partition] += 1

    @contextmanager
    def in_queue(self) -> Iterator[None]:
        """For a permit, or behind another call of the same flight: as long as it takes."""
        self.queued = True
        try:
            yield
        finally:
            self.queued = False
            self.count += 1

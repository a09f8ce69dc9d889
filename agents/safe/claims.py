"""A claim: this worker's hold on one topic partition, and how far its events are done.

Offsets are handed out in ascending order, so the first unfinished one is what a commit may reach: everything below it is
done, and everything from it on is delivered again after a crash.
"""

from collections.abc import Callable

from aiokafka import TopicPartition


class Claim:
    """One partition while it is ours. A lost claim is never revived: its late events can't touch its successor's progress."""

    __slots__ = ("_unfinished", "alive", "committed", "current", "next_offset", "ready", "sparse", "suspect", "tp")

    def __init__(self, tp: TopicPartition) -> None:
        self.tp = tp
        self.alive = True
        """False for ever once the partition may have another owner."""
        self.current = False
        """True while we certainly own it: false before recovery and while the group is rebalancing."""
        self.ready = False
        """Recovered and positioned at least once."""
        self.next_offset = -1
        """The offset to hand out next; -1 before it is positioned."""
        self.committed: int | None = None
        self.suspect: tuple[int, int] | None = None
        """A gap (wanted, got) that one seek back has already been spent on."""
        self.sparse = False
        """The broker itself has holes here, as after transactions and compaction."""
        self._unfinished: dict[int, int] = {}

    def hand_out(self, offset: int, readers: int = 1) -> None:
        """`readers` handlers have to finish this event."""
        self._unfinished[offset] = readers
        self.next_offset = offset + 1

    def finish(self, offset: int) -> None:
        """One reader is done with the event: the only way an offset gets released."""
        left = self._unfinished.get(offset, 0) - 1
        if left > 0:
            self._unfinished[offset] = left
        else:
            self._unfinished.pop(offset, None)

    def position(self, offset: int) -> None:
        """Hand out from `offset` on, forgetting what was handed out before."""
        self._unfinished.clear()
        self.next_offset = offset
        self.suspect = None

    @property
    def commit_point(self) -> int:
        """The lowest offset that has been handed out and is unfinished, else the next one to hand out."""
        return next(iter(self._unfinished), self.next_offset)

    @property
    def unfinished(self) -> int:
        """Number of events handed out and not done."""
        return len(self._unfinished)

    def lose(self) -> None:
        """The partition may have another owner from here on."""
        self.alive = self.current = False

    def check_gap(self, offset: int, seek: Callable[[TopicPartition, int], None]) -> bool:
        """True where `offset` may be handed out; otherwise the consumer was sent back to the first missing record.

        A gap is believed once the broker answered the same again: then the records are gone from the log (compaction,
        retention) or were never records (commit markers), which take one offset each.
        """
        wanted = self.next_offset
        if offset == wanted or (self.sparse and offset == wanted + 1):
            return True
        if self.suspect == (wanted, offset):
            self.sparse, self.suspect = True, None
            return True
        self.suspect = (wanted, offset)
        seek(self.tp, wanted)
        return False

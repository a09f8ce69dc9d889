"""A claim: this worker's hold on one topic partition, and how far its events are done.

Offsets are handed out in ascending order, so the first unfinished one is what a commit may reach: everything below it is
done, and everything from it on is delivered again after a crash.
"""

from collections.abc import Callable
from time import monotonic

from aiokafka import TopicPartition


class Lease:
    """Until when the group certainly still counts us in: one session timeout after our last answered heartbeat.

    A process that was stopped for longer wakes up with claims that look intact; the lease says that they are not.
    """

    __slots__ = ("_seconds", "_until")

    def __init__(self, session_timeout_s: float) -> None:
        self._seconds = session_timeout_s
        self._until = float("-inf")

    def extend(self, sent_at: float) -> None:
        """The group answered a heartbeat that was sent at `sent_at`, by the monotonic clock."""
        self._until = max(self._until, sent_at + self._seconds)

    @property
    def valid(self) -> bool:
        """Nobody else can own our partitions yet."""
        return monotonic() < self._until


class Claim:
    """One partition while it is ours. A lost claim is never revived: its late events can't touch its successor's progress."""

    __slots__ = ("_lease", "_unfinished", "alive", "committed", "next_offset", "ready", "settled", "sparse", "suspect", "tp")

    def __init__(self, tp: TopicPartition, lease: Lease) -> None:
        self.tp = tp
        self._lease = lease
        self.alive = True
        """False for ever once the partition may have another owner."""
        self.settled = False
        """False before recovery and while the group is rebalancing."""
        self.ready = False
        """Recovered and positioned at least once."""
        self.next_offset = -1
        """The offset to hand out next; -1 before it is positioned."""
        self.committed: int | None = None
        self.suspect: tuple[int, int] | None = None
        """A gap (wanted, got) that one seek back has already been spent on."""
        self.sparse = False
        """The broker itself has holes here, as after transactions and compaction."""
        self._unfinished: dict[int, tuple[int, int]] = {}
        """Offset to its readers that are not done, and when its record was appended."""

    def hand_out(self, offset: int, readers: int = 1, appended_ms: int = 0) -> None:
        """`readers` handlers have to finish this event."""
        self._unfinished[offset] = (readers, appended_ms)
        self.next_offset = offset + 1

    def finish(self, offset: int) -> None:
        """One reader is done with the event: the only way an offset gets released."""
        readers, appended_ms = self._unfinished.get(offset, (0, 0))
        if readers > 1:
            self._unfinished[offset] = (readers - 1, appended_ms)
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
    def oldest_ms(self) -> int | None:
        """When the lowest unfinished event was appended; None where there is none."""
        first = next(iter(self._unfinished.values()), None)
        return None if first is None else first[1]

    @property
    def unfinished(self) -> int:
        """Number of events handed out and not done."""
        return len(self._unfinished)

    @property
    def current(self) -> bool:
        """We certainly own the partition at this moment."""
        return self.settled and self._lease.valid

    def successor(self) -> "Claim":
        """A fresh claim on the same partition that hands out again what this one left unfinished; this one is lost."""
        fresh = Claim(self.tp, self._lease)
        fresh.position(self.commit_point)
        fresh.committed, fresh.sparse, fresh.settled, fresh.ready = self.committed, self.sparse, self.settled, self.ready
        self.lose()
        return fresh

    def lose(self) -> None:
        """The partition may have another owner from here on."""
        self.alive = self.settled = False

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

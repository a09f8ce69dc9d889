"""Gathers members of a partition into packets, within the time that the most urgent of them allows."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import Generic, Protocol, TypeVar

from ..schemas.packets import PacketCodec
from ..schemas.record import Lane, Record

R = TypeVar("R", bound=Record)

WAIT_S: dict[Lane, float] = {Lane.EXPRESS: 0.002, Lane.STANDARD: 0.015, Lane.BATCH: 0.1}
"""How long a member of a lane may wait for company at one hop while packets of its partition are flowing."""

MAX_PLACES = 1024
"""Whose last packets are remembered, at most."""

_Place = tuple[int, bytes | None]
"""Partition and key."""


MAX_MEMBERS = 256
"""Of a packet. Each costs the broker and every hop the same, whatever it holds: of 64, a job cost the broker twice as much CPU."""


class Append(Protocol):
    """Appends one record; returns its offset after the broker's acknowledgement."""

    def __call__(self, topic: str, key: bytes | None, value: bytes, *, partition: int | None = None) -> Awaitable[int]: ...


class _Open(Generic[R]):
    """The packet of one partition that is being filled."""

    __slots__ = ("done", "encoded", "members", "size", "timer", "when")

    def __init__(self, done: "asyncio.Future[int]") -> None:
        self.members: list[R] = []
        self.encoded: list[bytes] = []
        self.size = 0
        self.done = done
        self.when = float("inf")
        self.timer: asyncio.TimerHandle | None = None


class Packer(Generic[R]):
    """One topic's packets.

    The first member after a pause leaves at once; while packets flow, members wait up to their `wait_s` since the partition's last packet,
    so that a quiet pipeline is quick and a busy one efficient.
    """

    def __init__(
        self,
        append: Append,
        topic: str,
        codec: PacketCodec[R],
        *,
        max_members: Callable[[], int] = lambda: MAX_MEMBERS,
        max_bytes: int = 512 * 1024,
    ) -> None:
        """A packet is handled in one piece, and nobody else's turn comes meanwhile: `max_members` is asked for each."""
        self._append = append
        self._topic = topic
        self._codec = codec
        self._max_members = max_members
        self._max_bytes = max_bytes
        self._open: dict[_Place, _Open[R]] = {}
        self._last: dict[_Place, float] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def put(self, partition: int, member: R, wait_s: float, key: bytes | None = None) -> "asyncio.Future[int]":
        """Adds a member; the future is done when the broker has acknowledged its packet. Shield it: members share it.

        Only members of one `key` share a packet, which is its record's key.
        """
        return self.put_encoded(partition, member, self._codec.encode_one(member), wait_s, key)

    def put_encoded(self, partition: int, member: R, data: bytes, wait_s: float, key: bytes | None = None) -> "asyncio.Future[int]":
        """As `put`, with what the codec made of the member."""
        place = partition, key
        loop = asyncio.get_running_loop()
        packet = self._open.get(place)
        if packet is not None and packet.size + len(data) > self._max_bytes:
            self._flush(place)
            packet = None
        if packet is None:
            packet = self._open[place] = _Open(loop.create_future())
        packet.members.append(member)
        packet.encoded.append(data)
        packet.size += len(data)
        if len(packet.members) >= self._max_members() or packet.size >= self._max_bytes:
            self._flush(place)
        else:
            self._schedule(loop, place, packet, wait_s)
        return packet.done

    def _schedule(self, loop: asyncio.AbstractEventLoop, place: _Place, packet: _Open[R], wait_s: float) -> None:
        when = max(loop.time(), self._last.get(place, 0.0) + wait_s)
        if when >= packet.when:
            return
        if packet.timer is not None:
            packet.timer.cancel()
        packet.when = when
        packet.timer = loop.call_at(when, self._flush, place)

    def _flush(self, place: _Place) -> None:
        packet = self._open.pop(place, None)
        if packet is None:
            return
        if packet.timer is not None:
            packet.timer.cancel()
        self._remember(place)
        task = asyncio.ensure_future(self._send(place, packet))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _remember(self, place: _Place) -> None:
        now = self._last[place] = asyncio.get_running_loop().time()
        if len(self._last) > MAX_PLACES:
            self._last = {place: at for place, at in self._last.items() if now - at < max(WAIT_S.values())}

    async def _send(self, place: _Place, packet: _Open[R]) -> None:
        partition, key = place
        try:
            offset = await self._append(self._topic, key, self._codec.pack(packet.members, packet.encoded), partition=partition)
        except BaseException as error:
            if not packet.done.done():
                packet.done.set_exception(error if isinstance(error, Exception) else ConnectionAbortedError("the worker is stopping"))
                packet.done.exception()  # members that gave up waiting must not leave a warning behind
            if not isinstance(error, Exception):
                raise
        else:
            if not packet.done.done():
                packet.done.set_result(offset)


async def settle(futures: Iterable["asyncio.Future[int]"]) -> None:
    """Waits until every packet is durable. Raises the first error; the others are still waited for."""
    pending = list(futures)
    if not pending:
        return
    # Unlike `gather`, `wait` leaves the futures alone where the caller is cancelled: other members share them.
    await asyncio.wait(pending)
    for future in pending:
        future.result()


Now = Callable[[], int]
"""UTC epoch milliseconds."""

"""Lets calls go on to be sent, so few at a time that what is known of each still holds when it is sent."""

import asyncio
from collections import deque

from .packer import Now

MOST_READY = 128
"""Calls that may go and are not sent yet, at least: what the machine does between the two must not slow it down."""
AHEAD_S = 2
"""A job that sends faster has as many of them as it sends in so long."""


class Entrance:
    """Of one tenant and lane. In an event loop."""

    def __init__(self, now: Now) -> None:
        self._now = now
        self._inside = 0
        self._sent: deque[int] = deque()
        self._waiting: deque[asyncio.Future[None]] = deque()

    async def enter(self, *, first: bool = False) -> None:
        """Returns when there is room. `first`: before the others that wait for it."""
        if (first or not self._waiting) and self._inside < self._most():
            self._inside += 1
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        (self._waiting.appendleft if first else self._waiting.append)(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():
                self.leave()
            raise

    def leave(self, *, sent: bool = False) -> None:
        """Makes room: it was sent, or will not be."""
        self._inside -= 1
        if sent:
            self._sent.append(self._now())
        most = self._most()
        while self._waiting and self._inside < most:
            turn = self._waiting.popleft()
            if not turn.done():
                self._inside += 1
                turn.set_result(None)

    def _most(self) -> int:
        since = self._now() - 1000
        while self._sent and self._sent[0] <= since:
            self._sent.popleft()
        return max(MOST_READY, AHEAD_S * len(self._sent))

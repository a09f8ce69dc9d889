"""Edges within one worker: named agents pass plain objects over in-memory Faust channels.

    parsed = app.channel()

    @app.agent(requests_topic, name="ingest")
    async def ingest(stream):
        await consume(app, stream, lambda event: hand_over(parsed, parse(event)), ...)

    @app.agent(parsed, name="exact")
    async def exact(stream):
        await serve(stream, look_up, limit=64)

`hand_over` returns what `look_up` returned, or raises what it raised, so the source is acknowledged only after the last
stage's durable write. `send_through` only enqueues.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from functools import partial
from typing import Any, cast

from faust.channels import Channel


class LocalChannel(Channel[Any]):
    """Faust's channel with one queue for all that iterate over it.

    Faust gives every iterator its own queue: what is put before an agent started, or while it restarts, is lost without
    a word. Here it waits, and several actors of one agent share the work.
    """

    def _clone_args(self) -> Mapping[str, Any]:
        return {**super()._clone_args(), "queue": self.queue}

    async def put(self, value: Any) -> None:
        """Waits while the channel is full."""
        await send_through(self, value)


async def send_through(channel: Channel[Any], item: Any) -> None:
    """Enqueues `item` for the agent on `channel`; waits only while the channel holds `maxsize` items."""
    queue = channel.queue
    if queue.full():
        await queue.put(item)
    else:
        queue.put_nowait(item)


async def items(stream: Any) -> AsyncIterator[Any]:
    """What was sent through a stream's channel, at a third of the cost of iterating over the stream itself."""
    queue = stream.channel.queue
    while True:
        try:
            item = await queue.get() if queue.empty() else queue.get_nowait()
        except StopAsyncIteration:
            return
        yield item


class _Parcel:
    """An item and the place where its outcome is waited for."""

    __slots__ = ("item", "outcome")

    def __init__(self, item: Any) -> None:
        self.item = item
        self.outcome: asyncio.Future[Any] = asyncio.get_running_loop().create_future()


async def hand_over(channel: Channel[Any], item: Any) -> Any:
    """Sends `item` to the agent that runs `serve` on `channel`; returns its handler's result, raises its exception."""
    parcel = _Parcel(item)
    await send_through(channel, parcel)
    return await parcel.outcome


def _give_up(task: "asyncio.Task[None]", outcome: "asyncio.Future[Any]") -> None:
    if outcome.cancelled():
        task.cancel()


async def serve(stream: Any, handle: Callable[[Any], Awaitable[Any]], *, limit: int) -> None:
    """The body of an agent on a local channel fed by `hand_over`: at most `limit` items at once.

    Nothing is retried here: an exception goes back to the caller, whose own event is retried. A caller that gave up
    (cancelled) cancels the handler's work.
    """
    room = asyncio.Semaphore(limit)
    tasks: set[asyncio.Task[None]] = set()

    async def work(parcel: _Parcel) -> None:
        try:
            result = await handle(parcel.item)
        except asyncio.CancelledError:
            parcel.outcome.cancel()
            raise
        except Exception as exc:
            if not parcel.outcome.done():
                parcel.outcome.set_exception(exc)
        else:
            if not parcel.outcome.done():
                parcel.outcome.set_result(result)
        finally:
            room.release()

    try:
        async for item in items(stream):
            await room.acquire()
            parcel = cast(_Parcel, item)
            if parcel.outcome.done():
                room.release()
                continue
            task = asyncio.create_task(work(parcel))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
            parcel.outcome.add_done_callback(partial(_give_up, task))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

"""A TCP forwarder on loopback that does to its connections what networks do: swallow, reset, delay, throttle."""

import asyncio
import socket
import struct
import threading
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

T = TypeVar("T")
PIECE = 64 * 1024


@dataclass(frozen=True, slots=True)
class Weather:
    """How the network behaves now."""

    kind: Literal["fair", "blackhole", "reset"] = "fair"
    """`blackhole`: bytes are taken and go nowhere, new connections hang; `reset`: all connections end, new ones too."""
    delay_s: float = 0.0
    """Of every piece, each way."""
    bytes_per_s: float | None = None
    """Of each connection, each way."""


class Proxy:
    """`with Proxy() as proxy:` listens at `proxy.port`; `proxy.to(port)` says where to; `proxy.weather(...)` how."""

    def __init__(self) -> None:
        self.port = 0
        self.connections = 0
        """Made so far."""
        self._target = 0
        self._weather = Weather()
        self._changed = asyncio.Event()
        self._writers: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._server: asyncio.Server | None = None

    def __enter__(self) -> "Proxy":
        self._thread.start()
        self._do(self._listen())
        return self

    def __exit__(self, *_: object) -> None:
        self._do(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def to(self, port: int) -> None:
        """Where new connections go."""
        self._target = port

    def weather(self, weather: Weather) -> None:
        """From now on, for connections that are open too."""
        self._do(self._turn(weather))

    def cut(self) -> None:
        """Resets the connections that are open; new ones are served."""
        self._do(self._cut())

    # --- in its own loop ---------------------------------------------------------------------------------------------

    def _do(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(15)

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0, backlog=1024)
        self.port = int(self._server.sockets[0].getsockname()[1])

    async def _close(self) -> None:
        if self._server is not None:
            self._server.close()
        await self._cut()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def _turn(self, weather: Weather) -> None:
        self._weather = weather
        self._changed.set()
        self._changed = asyncio.Event()
        if weather.kind == "reset":
            await self._cut()

    async def _cut(self) -> None:
        for writer in list(self._writers):
            _reset(writer)

    async def _until(self, allowed: Callable[[Weather], bool]) -> None:
        while not allowed(self._weather):
            await self._changed.wait()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        if self._weather.kind == "reset":
            _reset(writer)
            return
        self._writers.add(writer)
        far: asyncio.StreamWriter | None = None
        try:
            await self._until(lambda w: w.kind != "blackhole")
            back, far = await asyncio.open_connection("127.0.0.1", self._target)
            self._writers.add(far)
            await asyncio.gather(self._pump(reader, far), self._pump(back, writer))
        except asyncio.CancelledError:
            _reset(writer)  # the forwarder ends; asyncio's server would log this as an error
        except OSError:
            _reset(writer)  # whoever is behind is away: the caller sees what it would see without us
        finally:
            for end in (writer, far):
                if end is not None:
                    self._writers.discard(end)
                    end.close()

    async def _pump(self, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        while data := await source.read(PIECE):
            await self._until(lambda w: w.kind != "blackhole")
            now = self._weather
            pause = now.delay_s + (len(data) / now.bytes_per_s if now.bytes_per_s else 0.0)
            if pause:
                await asyncio.sleep(pause)
            target.write(data)
            await target.drain()
        if target.can_write_eof():
            target.write_eof()


def _reset(writer: asyncio.StreamWriter) -> None:
    """Ends the connection with RST in place of FIN."""
    connection: socket.socket | None = writer.get_extra_info("socket")
    if connection is not None and connection.fileno() >= 0:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()

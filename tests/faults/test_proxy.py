"""The forwarder does to connections what it says."""

import socket
import threading
from collections.abc import Iterator

import pytest

from .proxy import Proxy, Weather


@pytest.fixture
def echo() -> Iterator[int]:
    """A server that sends back what it gets; its port."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                threading.Thread(target=back, args=(connection,), daemon=True).start()

        def back(connection: socket.socket) -> None:
            with connection:
                try:
                    while data := connection.recv(4096):
                        connection.sendall(data)
                except ConnectionError:
                    return

        threading.Thread(target=serve, daemon=True).start()
        yield int(server.getsockname()[1])
        server.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def proxy(echo: int) -> Iterator[Proxy]:
    with Proxy() as running:
        running.to(echo)
        yield running


def dial(proxy: Proxy) -> socket.socket:
    return socket.create_connection(("127.0.0.1", proxy.port), timeout=5)


def said(connection: socket.socket, words: bytes) -> bytes:
    connection.sendall(words)
    return connection.recv(4096)


def test_bytes_go_both_ways(proxy: Proxy) -> None:
    with dial(proxy) as connection:
        assert said(connection, b"hello") == b"hello"
        assert said(connection, b"again") == b"again"


def test_a_black_hole_swallows_and_what_was_swallowed_comes_when_it_ends(proxy: Proxy) -> None:
    with dial(proxy) as old:
        assert said(old, b"1") == b"1"
        proxy.weather(Weather("blackhole"))
        old.sendall(b"2")
        old.settimeout(0.3)
        with pytest.raises(TimeoutError):
            old.recv(10)
        with dial(proxy) as new:
            new.sendall(b"3")
            new.settimeout(0.3)
            with pytest.raises(TimeoutError):
                new.recv(10)
            proxy.weather(Weather())
            for connection, words in ((old, b"2"), (new, b"3")):
                connection.settimeout(5)
                assert connection.recv(10) == words


def test_a_reset_ends_open_connections_and_refuses_new_ones(proxy: Proxy) -> None:
    with dial(proxy) as connection:
        assert said(connection, b"1") == b"1"
        proxy.weather(Weather("reset"))
        with pytest.raises(ConnectionResetError):
            connection.recv(10)
    with pytest.raises(ConnectionResetError), dial(proxy) as connection:
        connection.recv(10)
    proxy.weather(Weather())
    with dial(proxy) as connection:
        assert said(connection, b"1") == b"1"


def test_whoever_is_away_behind_it_is_seen_as_a_reset(proxy: Proxy) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = int(closed.getsockname()[1])
    proxy.to(port)
    with pytest.raises(ConnectionResetError), dial(proxy) as connection:
        connection.recv(10)

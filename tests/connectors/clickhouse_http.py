"""ClickHouse's HTTP interface in front of the embedded engine: enough of it for the client library's requests.

The engine's answers and refusals are its own; only the transport is made here, so that the way over HTTP is tested where no
server is at hand.
"""

import re
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import chdb

_TRANSPORT = re.compile(
    "database|query|query_id|client_protocol_version|wait_end_of_query|send_progress.*|http_headers.*|cancel_http.*|param_.*"
)
"""Parameters of a request that are no settings of the engine."""


@contextmanager
def clickhouse_http(folder: Path) -> Iterator[str]:
    """Serves the engine in `folder` on loopback; yields the address for `open_server`."""
    keep_open = chdb.connect(str(folder))

    class Handler(_Handler):
        path_of_engine = str(folder)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/default?compress=false"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
        keep_open.close()


class _Handler(BaseHTTPRequestHandler):
    path_of_engine: str
    protocol_version = "HTTP/1.0"  # no connection outlives the server

    def do_GET(self) -> None:
        self._answer(200, b"Ok.\n", {})

    def do_POST(self) -> None:
        parameters = dict(parse_qsl(urlsplit(self.path).query, keep_blank_values=True))
        body = self._body()
        connection = chdb.connect(self.path_of_engine)
        try:
            if database := parameters.get("database"):
                connection.query(f"USE {database}")
            # As a server does: a request's settings hold for it, and `readonly` among them can't be left.
            settings = {name: value for name, value in parameters.items() if not _TRANSPORT.fullmatch(name)}
            for name in sorted(settings, key=lambda name: name == "readonly"):
                connection.query(f"SET {name} = '{settings[name]}'")
            answer = _run(connection, parameters, body)
        except RuntimeError as error:
            text = str(error)
            code = text.partition("Code: ")[2].partition(".")[0]
            self._answer(500, text.encode(), {"X-ClickHouse-Exception-Code": code})
        else:
            self._answer(200, answer, {"X-ClickHouse-Format": "TabSeparated", "X-ClickHouse-Timezone": "UTC"} if answer else {})
        finally:
            connection.close()

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        chunks = []
        while size := int(self.rfile.readline(), 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def _answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Silent: tests read the client's side."""


def _run(connection: Any, parameters: dict[str, str], body: bytes) -> bytes:
    bound = {name.removeprefix("param_"): value for name, value in parameters.items() if name.startswith("param_")}
    statement, _, data = (parameters.get("query", "").encode() + body).partition(b" FORMAT Native\n")
    if not data:
        text = (parameters.get("query", "") + "\n" + body.decode()).strip()
        # A FORMAT in the text goes before the one given here.
        return bytes(connection.query(text, "TabSeparated", params=bound).bytes() or b"")
    with tempfile.NamedTemporaryFile(suffix=".native") as file:
        file.write(data)
        file.flush()
        connection.query(f"{statement.decode()} FROM INFILE '{file.name}' FORMAT Native")
    return b""

"""Talks to the sink: the one process that owns the embedded cost store answers SQL for all others, on loopback."""

import http.client
import json
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from datetime import date, datetime
from decimal import Decimal
from typing import Any

import orjson

from ..pipeline.errors import Rejected, Unavailable

Rows = list[tuple[Any, ...]]


def encode_result(columns: Sequence[str], rows: Rows) -> bytes:
    """`{"columns", "types", "rows"}`; decimals, times and what JSON does not know travel as strings, exactly."""
    types = [_type_of(row[index] for row in rows) for index in range(len(columns))]
    return orjson.dumps({"columns": list(columns), "types": types, "rows": [[_plain(value) for value in row] for row in rows]})


def decode_result(raw: bytes) -> tuple[list[str], Rows]:
    """The inverse of `encode_result` for numbers, texts, decimals and times."""
    result = orjson.loads(raw)
    readers = [_READERS.get(name) for name in result["types"]]
    rows = [tuple(_read(read, value) for read, value in zip(readers, row, strict=True)) for row in result["rows"]]
    return result["columns"], rows


def plain_decimal(value: Decimal) -> str:
    """All digits, never an exponent."""
    return format(value, "f")


_READERS: Mapping[str, Callable[[Any], Any]] = {
    "decimal": Decimal,
    "datetime": datetime.fromisoformat,
    "date": date.fromisoformat,
    "bigint": int,
}


def _read(read: Callable[[Any], Any] | None, value: Any) -> Any:
    return value if read is None or value is None else read(value)


def _type_of(values: Any) -> str:
    kinds = {_kind(value) for value in values if value is not None}
    if kinds == {"int", "bigint"}:
        return "bigint"
    return kinds.pop() if len(kinds) == 1 else "any"


def _kind(value: Any) -> str:
    if isinstance(value, Decimal):
        return "decimal"
    if isinstance(value, datetime):
        return "datetime"
    if isinstance(value, date):
        return "date"
    if isinstance(value, int) and not isinstance(value, bool) and not -(2**63) <= value < 2**64:
        return "bigint"
    return type(value).__name__


def _plain(value: Any) -> Any:
    if isinstance(value, Decimal):
        return plain_decimal(value)
    if isinstance(value, (datetime, date)):
        return value.isoformat()
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if value is None or isinstance(value, (bool, float, str)):
        return value
    if isinstance(value, int) and -(2**63) <= value < 2**64:
        return value
    return str(value)


class SinkClient:
    """A blocking client of the sink's HTTP door. `query` is that of `pipeline.ports.CostStore`."""

    def __init__(self, url: str, *, timeout: float = 90.0) -> None:
        """`url` as the sink's state file says, e.g. `http://127.0.0.1:12345`; `timeout` in seconds bounds a query."""
        self.url = url.rstrip("/")
        self._timeout = timeout
        # The sink is on loopback: a proxy of the environment must not see it.
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def query(self, sql: str, parameters: Mapping[str, Any] | None = None) -> tuple[list[str], Rows]:
        """Raises `Rejected` for bad SQL, `Unavailable` where the sink does not answer."""
        return decode_result(self._post("/sql", {"sql": sql, "parameters": dict(parameters or {})}, self._timeout))

    def wait_until_caught_up(self, ends: Mapping[int, int], *, timeout: float) -> bool:
        """True once everything before the end offset `ends[partition]` of `costs` can be seen in SQL; False after `timeout` s."""
        body = {"offsets": {str(partition): end for partition, end in ends.items()}, "timeout_s": timeout}
        answer = json.loads(self._post("/caught_up", body, timeout + 10))
        return bool(answer["caught_up"])

    def close(self) -> None:
        """Nothing is held between calls."""

    def _post(self, path: str, body: Mapping[str, Any], timeout: float) -> bytes:
        request = urllib.request.Request(
            self.url + path, data=orjson.dumps(body), headers={"Content-Type": "application/json"}, method="POST"
        )
        try:
            with self._opener.open(request, timeout=timeout) as response:
                return bytes(response.read())
        except urllib.error.HTTPError as error:
            raise _engine_error(error) from error
        except (OSError, http.client.HTTPException) as error:
            raise Unavailable(
                f"The sink at {self.url} does not answer ({error}): costs wait on their topic, none is lost. "
                "Start it with `inference-engine up`, or look at its log.",
                code="sink_down",
            ) from error


def _engine_error(error: urllib.error.HTTPError) -> Rejected | Unavailable:
    raw = error.read()
    try:
        problem = orjson.loads(raw)["error"]
        message, code = str(problem["message"]), str(problem["code"])
    except (orjson.JSONDecodeError, KeyError, TypeError):
        message, code = f"The sink answered {error.code}: {raw[:200]!r}", "sink_error"
    return Rejected(message, code=code) if 400 <= error.code < 500 else Unavailable(message, code=code)

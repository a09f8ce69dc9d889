"""The cost store on ClickHouse: a server, or the same engine inside this process (chDB). One client API for both."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

import clickhouse_connect
from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import ClickHouseError, DataError, Error, OperationalError

from ..pipeline.errors import ConfigError, EngineError, Rejected, Unavailable
from ..schemas.costs import CostEvent
from .clickhouse_guard import check_read_only, with_nullable_division
from .clickhouse_schema import COLUMNS, MIGRATIONS, VERSION_TABLE, columns_of

_log = logging.getLogger(__name__)

_COLUMN_NAMES = [column.name for column in COLUMNS]
_DIVISION_BY_ZERO = 153
_BAD_ROW_CODES = frozenset({6, 27, 38, 41, 53, 69, 70, 321, 349, 407})
"""The engine's errors about the values of a row, not about its own state: the same row is refused next time too."""
_BUSY_CODES = frozenset({159, 160, 202, 203, 209, 210, 241, 242, 252, 319, 999})
"""Timeouts, memory, too many queries or parts, lost connections: the same query may run next time."""


class _Connect(Protocol):
    def __call__(self, settings: Mapping[str, Any]) -> Client: ...


class ClickHouseStore:
    """Implements `pipeline.ports.CostStore`. Blocking and thread-safe; open it with `open_server` or `open_embedded`.

    Writes and reads go through separate connections: the readers' is in the engine's `readonly` mode, which it can't leave.
    """

    def __init__(self, connect: _Connect, where: str, *, query_seconds: int = 60) -> None:
        """`where` names the store in messages; `query_seconds` bounds each query."""
        self._where = where
        # A redelivery may bring events of many months at once.
        self._writer = connect({"max_partitions_per_insert_block": 0})
        try:
            _migrate(self._writer, where)
            # The order matters: after `readonly` no setting can be changed.
            self._reader = connect({"max_execution_time": query_seconds, "max_memory_usage": 2 << 30, "readonly": 1})
        except BaseException:
            self._writer.close()
            raise

    def insert(self, events: Sequence[CostEvent]) -> None:
        """Durable (on disk) when it returns; the same event twice counts once.

        Raises `Unavailable` where the store can't take it now (insert all of it again), and
        `Rejected` where a value of an event can't be stored at all.
        """
        if not events:
            return
        try:
            self._writer.insert("cost_events_raw", columns_of(events), column_names=_COLUMN_NAMES, column_oriented=True)
        except (DataError, UnicodeEncodeError, OverflowError, TypeError, ValueError) as error:
            raise _bad_row(error) from error
        except ClickHouseError as error:
            if _code_of(error) in _BAD_ROW_CODES:
                raise _bad_row(error) from error
            raise self._unavailable("the costs could not be stored yet and stay on their topic", error) from error

    def query(self, sql: str, parameters: Mapping[str, Any] | None = None) -> tuple[list[str], list[tuple[Any, ...]]]:
        """Column names and rows; money comes as `Decimal`, times as naive UTC `datetime`. `parameters` fill `{name:Type}`.

        Raises `Rejected` for SQL that is wrong, too costly or more than reading; `Unavailable` where nobody answers.
        """
        canonical = self._canonical(sql)
        check_read_only(canonical)
        try:
            return self._read(canonical, parameters)
        except ClickHouseError as error:
            if _code_of(error) != _DIVISION_BY_ZERO:
                raise self._refused(error) from error
            return self._without_zero_divisors(canonical, parameters, error)

    def close(self) -> None:
        """Releases the embedded folder for other processes."""
        self._reader.close()
        self._writer.close()

    def _canonical(self, sql: str) -> str:
        """The one statement in `sql` as the engine's own parser understands it."""
        try:
            _, rows = self._read("SELECT formatQuerySingleLine({sql:String})", {"sql": sql})
        except ClickHouseError as error:
            raise self._refused(error) from error
        return str(rows[0][0])

    def _read(self, sql: str, parameters: Mapping[str, Any] | None) -> tuple[list[str], list[tuple[Any, ...]]]:
        result = self._reader.query(sql, parameters=dict(parameters) if parameters else None)
        names, rows = list(result.column_names), [tuple(row) for row in result.result_rows]
        if not names and sql.startswith(("SELECT", "WITH")):
            # The embedded engine sends nothing at all for a result without rows, not even its columns.
            described = self._reader.query(f"DESCRIBE TABLE ({sql})", parameters=dict(parameters) if parameters else None)
            names = [str(row[0]) for row in described.result_rows]
        return names, rows

    def _without_zero_divisors(
        self, canonical: str, parameters: Mapping[str, Any] | None, first: ClickHouseError
    ) -> tuple[list[str], list[tuple[Any, ...]]]:
        try:
            return self._read(with_nullable_division(canonical), parameters)
        except ClickHouseError as error:
            _log.debug("the rewritten query failed too: %s", error)
            raise Rejected(
                "The query divides by a sum of costs that is 0 (everything came from the cache): write `x / nullIf(y, 0)`.",
                code="division_by_zero",
            ) from first

    def _refused(self, error: ClickHouseError) -> EngineError:
        code = _code_of(error)
        if isinstance(error, OperationalError) and code is None:
            return self._unavailable("the query was not answered", error)
        if code in _BUSY_CODES:
            return Rejected(
                f"The query was stopped: {_reason(error)}. Nothing was changed; narrow it with WHERE or LIMIT, or try again.",
                code="query_too_costly",
            )
        return Rejected(
            f"The SQL was refused: {_reason(error)}. Nothing was changed; `DESCRIBE cost_events` lists the columns.",
            code="bad_sql",
        )

    def _unavailable(self, consequence: str, error: Exception) -> Unavailable:
        return Unavailable(f"{self._where} did not answer: {consequence}. Reason: {_reason(error)}.", code="cost_store_down")


def open_embedded(folder: Path, *, query_seconds: int = 60) -> ClickHouseStore:
    """The engine in this process, with its data in `folder` (made if missing). One process at a time, one folder a process.

    Raises `ConfigError` where another process owns the folder, or it can't be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"The costs folder {folder} can't be made: {error}. Set another data folder.") from error

    def connect(settings: Mapping[str, Any]) -> Client:
        return clickhouse_connect.get_client(interface="chdb", path=str(folder), settings=dict(settings))

    with _opening(
        f"The costs folder {folder} can't be opened, and no cost was lost. Most often another process owns it (the running "
        "sink: ask it with `inference-engine sql`, or stop it with `inference-engine down`)"
    ):
        return ClickHouseStore(connect, f"The embedded cost store in {folder}", query_seconds=query_seconds)


def open_server(url: str, *, query_seconds: int = 60) -> ClickHouseStore:
    """A ClickHouse server, as `http[s]://[user[:password]@]host[:port][/database]`; the database must exist.

    Raises `Unavailable` where it can't be reached, `ConfigError` where it refuses us.
    """

    def connect(settings: Mapping[str, Any]) -> Client:
        return clickhouse_connect.get_client(
            dsn=url,
            settings=dict(settings),
            autogenerate_session_id=False,  # a session allows one query at a time
            connect_timeout=10,
            send_receive_timeout=query_seconds + 10,
        )

    try:
        if urlsplit(url).scheme not in ("http", "https"):
            raise ValueError("no http:// or https:// before it")
        with _opening("CLICKHOUSE_URL names a server that refused the connection; no cost was lost. Check user and database"):
            return ClickHouseStore(connect, "The ClickHouse server of CLICKHOUSE_URL", query_seconds=query_seconds)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"CLICKHOUSE_URL is not understood ({_reason(error)}): write http[s]://[user[:password]@]host[:port][/database]."
        ) from error
    except OperationalError as error:
        raise Unavailable(
            f"The ClickHouse server of CLICKHOUSE_URL can't be reached ({_reason(error)}): costs wait on their topic. "
            "Start it, or unset CLICKHOUSE_URL to use the embedded engine.",
            code="cost_store_down",
        ) from error


@contextmanager
def _opening(message: str) -> Iterator[None]:
    try:
        yield
    except OperationalError as error:
        if _code_of(error) is None:
            raise
        raise ConfigError(f"{message}. Reason: {_reason(error)}.") from error
    except ClickHouseError as error:
        raise ConfigError(f"{message}. Reason: {_reason(error)}.") from error


def _migrate(client: Client, where: str) -> None:
    """Brings the tables to the newest version; each step may be repeated. Raises `ConfigError` where they are newer."""
    client.command(VERSION_TABLE)
    done = int(client.query("SELECT max(version) FROM schema_versions").result_rows[0][0])
    if done > len(MIGRATIONS):
        raise ConfigError(
            f"{where} has tables of version {done}, and this program knows versions up to {len(MIGRATIONS)}: it was "
            "written by a newer release. Nothing was changed; upgrade this one."
        )
    for version in range(done + 1, len(MIGRATIONS) + 1):
        for statement in MIGRATIONS[version - 1]:
            client.command(statement)
        client.insert("schema_versions", [[version]], column_names=["version"])


def _bad_row(error: Exception) -> Rejected:
    return Rejected(
        f"A cost event holds a value that can't be stored ({_reason(error)}): it goes to the dead letters.", code="bad_cost_event"
    )


def _code_of(error: Exception) -> int | None:
    """The engine's number of the error, or None where it did not come from the engine."""
    return error.code if isinstance(error, Error) else None


def _reason(error: Exception) -> str:
    """The engine's message in one line, without its own prefixes."""
    text = " ".join(str(error).split()).rsplit("DB::Exception: ", 1)[-1]
    return text.split(" (version ", 1)[0][:500].rstrip(". ")

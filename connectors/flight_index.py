"""The rows of one ledger partition on local disk (RocksDB): a checkpoint of the ledger, rebuilt from it where it is lost."""

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType

import structlog
from rocksdict import DBCompressionType, Options, Rdict, WriteBatch

from ..pipeline.errors import ConfigError
from .rocksdb_memory import share_memory

log = structlog.get_logger(__name__)

_META = b"m"
_ITEM = b"o"
_ROW = b"r"


class RocksFlightIndex:
    """One folder per partition; one process holds it."""

    def __init__(self, folder: Path) -> None:
        """Raises `ConfigError` where another process holds the folder. A damaged one is emptied."""
        folder.mkdir(parents=True, exist_ok=True)
        try:
            self._db = _open(folder)
        except Exception as error:  # rocksdict raises bare Exception
            if "lock" in str(error).lower():
                raise ConfigError(
                    f"the ledger's checkpoint {folder} is in use by another worker: give each worker a data folder of its own"
                ) from error
            # Nothing is lost with it: it is made of the ledger topic, which is read from the start now.
            log.warning("the ledger's checkpoint is damaged and is rebuilt", folder=str(folder), reason=str(error))
            shutil.rmtree(folder)
            folder.mkdir()
            self._db = _open(folder)
        self._cursor = _ROW

    def get(self, flight: str) -> bytes | None:
        value = self._db.get(_ROW + flight.encode())
        return None if value is None else _bytes(value)[8:]

    def meta(self) -> bytes | None:
        value = self._db.get(_META)
        return None if value is None else _bytes(value)

    def items(self) -> Iterator[tuple[str, bytes]]:
        for raw_key, raw_value in self._db.items(from_key=_ITEM):
            key = _bytes(raw_key)
            if not key.startswith(_ITEM):
                return
            yield key[len(_ITEM) :].decode(), _bytes(raw_value)

    def commit(self, rows: Mapping[str, tuple[int, bytes]], meta: bytes, items: Mapping[str, bytes | None] = MappingProxyType({})) -> None:
        batch = WriteBatch(raw_mode=True)
        for name, value in items.items():
            if value is None:
                batch.delete(_ITEM + name.encode())
            else:
                batch.put(_ITEM + name.encode(), value)
        for flight, (ms, row) in rows.items():
            batch.put(_ROW + flight.encode(), ms.to_bytes(8, "big") + row)
        batch.put(_META, meta)
        self._db.write(batch)

    def expire(self, before_ms: int, limit: int) -> int:
        batch = WriteBatch(raw_mode=True)
        dropped, seen, last = 0, 0, b""
        for raw_key, raw_value in self._db.items(from_key=self._cursor):
            key, value = _bytes(raw_key), _bytes(raw_value)
            if not key.startswith(_ROW) or seen == limit:
                break
            seen, last = seen + 1, key
            if int.from_bytes(value[:8], "big") < before_ms:
                batch.delete(key)
                dropped += 1
        self._cursor = last + b"\0" if seen == limit else _ROW
        if dropped:
            self._db.write(batch)
        return dropped

    def clear(self) -> None:
        batch = WriteBatch(raw_mode=True)
        for key in list(self._db.keys()):
            batch.delete(key)
        self._db.write(batch)
        self._cursor = _ROW

    def close(self) -> None:
        self._db.close()


def _open(folder: Path) -> Rdict:
    options = Options(raw_mode=True)
    options.create_if_missing(True)
    options.set_compression_type(DBCompressionType.lz4())
    options.set_keep_log_file_num(2)
    options.set_max_open_files(64)
    share_memory(options)
    return Rdict(str(folder), options)


def _bytes(value: object) -> bytes:
    # In raw mode rocksdict speaks bytes, whatever its annotations allow.
    assert isinstance(value, bytes)
    return value

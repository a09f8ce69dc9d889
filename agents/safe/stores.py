"""Where a table's rows lie on this worker: one store per partition, each with the changelog offset that it reflects.

Rows and offset are written together, so a store is always exactly the changelog up to its checkpoint.
"""

import logging
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol, cast

from faust.stores import memory, rocksdb
from rocksdict import Options, WriteBatch

from ...connectors.rocksdb_memory import share_memory

log = logging.getLogger(__name__)

Rows = Mapping[bytes, bytes | None]
"""Key to value; None deletes."""

ROCKSDB_OPTIONS = {"max_open_files": 64, "target_file_size_base": 16 * 1024 * 1024}
"""Per partition."""


class SharedMemoryOptions(rocksdb.RocksDBOptions):
    """Faust's, whose defaults allow 2 GB of cache for each partition, within the memory that all databases of the process share."""

    def as_options(self) -> Options:
        options: Options = super().as_options()
        share_memory(options)
        return options


DAMAGE = ("Corruption:", "Invalid argument:", "IO error: No such file")
"""How RocksDB names files that are not what they should be; rocksdict raises bare `Exception`. A full disk, or a lock, is none."""


class DamagedStore(Exception):
    """Rows of a partition can't be read back; they are rebuilt from the changelog when it is opened next."""


class PartitionedStore(Protocol):
    """What a table needs of its store. A partition must be open before anything else is asked of it."""

    def open_partition(self, partition: int) -> None: ...

    def close_partition(self, partition: int) -> None: ...

    def read(self, partition: int, key: bytes) -> bytes | None: ...

    def apply(self, partition: int, rows: Rows, checkpoint: int | None) -> None:
        """Writes rows and, where given, the changelog offset of the last of them, all or nothing."""
        ...

    def checkpoint(self, partition: int) -> int | None:
        """Offset of the last changelog record that the store reflects."""
        ...

    def rows(self, partition: int) -> Iterator[tuple[bytes, bytes]]: ...

    def wipe(self, partition: int) -> None:
        """Empties an open partition, checkpoint included."""
        ...


class MemoryStore(memory.Store[bytes, bytes]):
    """Rows in dictionaries; rebuilt from the changelog whenever a partition is gained."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._rows: dict[int, dict[bytes, bytes]] = {}
        self._checkpoints: dict[int, int] = {}

    def open_partition(self, partition: int) -> None:
        self._rows.setdefault(partition, {})

    def close_partition(self, partition: int) -> None:
        self._rows.pop(partition, None)
        self._checkpoints.pop(partition, None)

    def read(self, partition: int, key: bytes) -> bytes | None:
        return self._rows[partition].get(key)

    def apply(self, partition: int, rows: Rows, checkpoint: int | None) -> None:
        own = self._rows[partition]
        for key, value in rows.items():
            if value is None:
                own.pop(key, None)
            else:
                own[key] = value
        if checkpoint is not None:
            self._checkpoints[partition] = checkpoint

    def checkpoint(self, partition: int) -> int | None:
        return self._checkpoints.get(partition)

    def rows(self, partition: int) -> Iterator[tuple[bytes, bytes]]:
        return iter(list(self._rows[partition].items()))

    def wipe(self, partition: int) -> None:
        self.close_partition(partition)
        self.open_partition(partition)


class RocksStore(rocksdb.Store):
    """Faust's RocksDB store (one database per partition, through rocksdict), asked by partition."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.rocksdb_options = SharedMemoryOptions(**(self.options or {}))

    def open_partition(self, partition: int) -> None:
        """A damaged one is emptied: nothing is lost with it, its checkpoint goes too, and the changelog is read from the start."""
        if self._condemned(partition).exists():
            self._remove(partition)
        try:
            self._db_for_partition(partition)
        except Exception as error:
            if not str(error).startswith(DAMAGE):
                raise
            log.warning("table %s[%d]: the local rows are damaged and are rebuilt: %s", self.table_name, partition, error)
            self._remove(partition)
            self._db_for_partition(partition)

    def close_partition(self, partition: int) -> None:
        db = self._dbs.pop(partition, None)
        if db is not None:
            db.close()

    def read(self, partition: int, key: bytes) -> bytes | None:
        """Raises `DamagedStore`."""
        try:
            return cast("bytes | None", self._dbs[partition].get(key))
        except Exception as error:
            raise self._judged(partition, error) from error

    def _judged(self, partition: int, error: Exception) -> Exception:
        if not str(error).startswith(DAMAGE):
            return error
        self._condemned(partition).touch()
        return DamagedStore(f"table {self.table_name}[{partition}]: the local rows are damaged, the next start rebuilds them: {error}")

    def _condemned(self, partition: int) -> Path:
        return self.partition_path(partition).with_suffix(".condemned")

    def _remove(self, partition: int) -> None:
        shutil.rmtree(self.partition_path(partition), ignore_errors=True)
        self._condemned(partition).unlink(missing_ok=True)

    def apply(self, partition: int, rows: Rows, checkpoint: int | None) -> None:
        batch = WriteBatch(raw_mode=True)
        for key, value in rows.items():
            if value is None:
                batch.delete(key)
            else:
                batch.put(key, value)
        if checkpoint is not None:
            batch.put(self.offset_key, str(checkpoint).encode())
        self._dbs[partition].write(batch)

    def checkpoint(self, partition: int) -> int | None:
        stored = self._dbs[partition].get(self.offset_key)
        return None if stored is None else int(stored)

    def rows(self, partition: int) -> Iterator[tuple[bytes, bytes]]:
        """Raises `DamagedStore`."""
        try:
            yield from self._visible_items(self._dbs[partition])
        except Exception as error:
            raise self._judged(partition, error) from error

    def wipe(self, partition: int) -> None:
        self.close_partition(partition)
        self._remove(partition)
        self.open_partition(partition)

    async def stop(self) -> None:
        for partition in list(self._dbs):
            self.close_partition(partition)

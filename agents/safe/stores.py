"""Where a table's rows lie on this worker: one store per partition, each with the changelog offset that it reflects.

Rows and offset are written together, so a store is always exactly the changelog up to its checkpoint.
"""

import shutil
from collections.abc import Iterator, Mapping
from typing import Protocol, cast

from faust.stores import memory, rocksdb
from rocksdict import WriteBatch

Rows = Mapping[bytes, bytes | None]
"""Key to value; None deletes."""

ROCKSDB_OPTIONS = {
    "max_open_files": 64,
    "write_buffer_size": 8 * 1024 * 1024,
    "max_write_buffer_number": 2,
    "target_file_size_base": 16 * 1024 * 1024,
    "block_cache_size": 16 * 1024 * 1024,
    "bloom_filter_size": 10,
}
"""Per partition. Faust's defaults allow 2 GB of cache for each."""


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

    def open_partition(self, partition: int) -> None:
        self._db_for_partition(partition)

    def close_partition(self, partition: int) -> None:
        db = self._dbs.pop(partition, None)
        if db is not None:
            db.close()

    def read(self, partition: int, key: bytes) -> bytes | None:
        return cast("bytes | None", self._dbs[partition].get(key))

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
        return self._visible_items(self._dbs[partition])

    def wipe(self, partition: int) -> None:
        self.close_partition(partition)
        shutil.rmtree(self.partition_path(partition), ignore_errors=True)
        self.open_partition(partition)

    async def stop(self) -> None:
        for partition in list(self._dbs):
            self.close_partition(partition)

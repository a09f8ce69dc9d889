"""Keeps caches within their sizes: one eviction index per owned partition."""

from ..pipeline.eviction import EvictionIndex, Limits, PolicyName


class EvictionKeeper:
    """Each partition gets an equal share of the engine's limits, so that the whole stays within them on any number of workers."""

    def __init__(self, policy: PolicyName, max_entries: int, max_bytes: int | None, partitions: int) -> None:
        share = None if max_bytes is None else max(1, max_bytes // partitions)
        self._policy = policy
        self._limits = Limits(max_entries=-(-max_entries // partitions), max_bytes=share)
        self._indexes: dict[int, EvictionIndex[bytes]] = {}

    def insert(self, partition: int, key: bytes, size: int, saved_pico: int, now_ms: int) -> list[bytes]:
        """Returns the keys that have to go."""
        index = self._indexes.get(partition)
        if index is None:
            index = self._indexes[partition] = EvictionIndex(self._policy, self._limits)
        return index.put(key, size, saved_pico)

    def touch(self, partition: int, key: bytes, now_ms: int) -> None:
        index = self._indexes.get(partition)
        if index is not None:
            index.touch(key)

    def revalue(self, partition: int, key: bytes, saved_pico: int) -> None:
        """What one hit saves, where it was not known at the insertion."""
        index = self._indexes.get(partition)
        if index is not None:
            index.revalue(key, saved_pico)

    def remove(self, partition: int, key: bytes) -> None:
        """It is gone already, and takes no room any more."""
        index = self._indexes.get(partition)
        if index is not None:
            index.remove(key)

    def drop(self, partition: int) -> None:
        self._indexes.pop(partition, None)

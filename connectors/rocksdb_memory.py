"""What RocksDB may hold in memory, for all databases of a process together.

A worker has dozens of databases, one for each partition of each table. Counted for each of them, buffers and caches that fill up
slowly look like a leak for days.
"""

from functools import cache

from rocksdict import BlockBasedOptions, Cache, Options, WriteBufferManager

WRITE_BUFFERS = 64 * 1024 * 1024
BLOCK_CACHE = 32 * 1024 * 1024
WRITE_BUFFER = 1024 * 1024
"""Of one database, at most two at once: rows stay in it until it is full."""
BLOOM_BITS = 10
"""Per key: one look-up in a hundred for a key that is not there reads a block."""


@cache
def _shared() -> tuple[Cache, WriteBufferManager]:
    return Cache(BLOCK_CACHE), WriteBufferManager(WRITE_BUFFERS, False)


def share_memory(options: Options) -> None:
    """Lets a database that is opened with these options take its memory from the process's share."""
    block_cache, write_buffers = _shared()
    blocks = BlockBasedOptions()
    blocks.set_bloom_filter(BLOOM_BITS, block_based=False)
    blocks.set_block_cache(block_cache)
    options.set_block_based_table_factory(blocks)
    options.set_write_buffer_size(WRITE_BUFFER)
    options.set_max_write_buffer_number(2)
    options.set_write_buffer_manager(write_buffers)

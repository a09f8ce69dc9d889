"""Memory of a process that lives long: when Python looks for cyclic garbage, and when freed memory goes back to the system."""

import asyncio
import ctypes
import gc

YOUNG = 50_000
"""Objects made and not freed until the young ones are looked at: those of some 150 requests."""
MIDDLE, OLD = 20, 50
"""So many looks at one generation until the next one is looked at too."""
GIVE_BACK_S = 5.0


def look_less_often() -> None:
    """Call it once, when everything is loaded and set up: that much is taken out of all later looks.

    By default every 700 new objects are looked at, and now and then all objects there are: of a worker for 0.1 to 0.2 s, in
    which it does nothing else. That took a third of a worker's CPU. A request leaves less than one object in cycles behind,
    so nothing piles up meanwhile.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG, MIDDLE, OLD)


async def give_back_freed() -> None:
    """Runs until it is cancelled: what was freed goes back to the system every few seconds.

    Bodies and packets leave holes in glibc's heap, which it keeps: a worker that had passed 200 MB of requests on held 200 MB that
    nothing used, in one run of four. One call takes 1 to 13 ms, in a thread. Other C libraries than glibc have no such call.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    while trim is not None:
        await asyncio.sleep(GIVE_BACK_S)
        await asyncio.to_thread(trim, ctypes.c_size_t(0))

"""Real processes, really killed: every id comes out, and every row is recovered."""

import asyncio
import signal
import sys
from functools import partial
from pathlib import Path

from .conftest import Bench, until
from .test_table import worker

WORKER = Path(__file__).with_name("crashing_worker.py")
IDS = [b"%d" % n for n in range(2000)]


async def _spawn(bench: Bench, folder: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(sys.executable, str(WORKER), bench.brokers, bench.prefix, str(bench.folder / folder))


async def _copied(bench: Bench) -> list[bytes]:
    return [record.value for record in await bench.read("out")]


async def _has_copied(bench: Bench, ids: int) -> bool:
    return len(set(await _copied(bench))) >= min(ids, len(IDS))


async def test_no_id_is_lost_when_workers_are_killed(bench: Bench) -> None:
    """Two workers; one is killed at work, then the other; a third finishes what they left. Ids are compared, not lag."""
    bench.create("in", "out")
    changelog = f"{bench.topic('app')}-rows-changelog"
    bench.create_exactly(changelog, cleanup_policy="compact")
    await bench.feed(bench.topic("in"), [(n, n) for n in IDS])
    first, second = await _spawn(bench, "one"), await _spawn(bench, "two")
    try:
        await until(partial(_has_copied, bench, 200), "copies by both")
        first.send_signal(signal.SIGKILL)
        await first.wait()
        first = await _spawn(bench, "one")
        await until(partial(_has_copied, bench, len(await _copied(bench)) + 200), "more copies by whoever is left", 30)
        second.send_signal(signal.SIGKILL)
        await second.wait()
        await until(partial(_has_copied, bench, len(IDS)), "every id", 30)
        first.terminate()
        assert await first.wait() == 0
    finally:
        for process in (first, second):
            if process.returncode is None:
                process.kill()
                await process.wait()
    assert set(await _copied(bench)) == set(IDS)
    app, table = worker(bench, "three")
    async with bench.running(app):
        await until(lambda: app.partitions == set(range(4)), "all partitions")
        rows = {key: value for number in range(4) for key, value in table.scan(number)}
    assert rows == {n: n for n in IDS}

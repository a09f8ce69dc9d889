"""A worker that gets nowhere ends; one that waits for others does not."""

import asyncio
import subprocess
import sys
import threading
from collections.abc import Hashable

from hypothesis import given
from hypothesis import strategies as st

from inference_engine.agents.watchdog import EXIT_CODE, Standstill, Watchdog, WatchdogSettings
from inference_engine.pipeline.errors import Stalled


class World:
    """What a watchdog sees, set by the test."""

    def __init__(self, **settings: float) -> None:
        self.marks: dict[Hashable, int] = {}
        self.recovering: str | None = None
        self.counts = True
        self.crashed: list[Exception] = []
        self.ended: list[int] = []
        self.over = threading.Event()
        self.told = asyncio.Event()
        self.dog = Watchdog(
            WatchdogSettings(**settings),
            marks=lambda: self.marks,
            recovering=lambda: self.recovering,
            counts=lambda: self.counts,
            crash=self._crash,
            end_process=self._end,
        )

    async def _crash(self, error: Exception) -> None:
        self.crashed.append(error)
        self.told.set()

    def _end(self, code: int) -> None:
        self.ended.append(code)
        self.over.set()

    def look(self, seconds: float, *, every: float = 5.0) -> Stalled | None:
        for _ in range(int(seconds / every)):
            error = self.dog.look(every)
            if error is not None:
                return error
        return None


def test_an_event_that_does_not_move_ends_the_worker_and_is_named() -> None:
    world = World(stall_s=300)
    world.marks = {"calls[2]": 17}
    assert world.look(299) is None
    assert "calls[2]" in str(world.look(10))


@given(st.lists(st.integers(1, 58), min_size=5, max_size=40))
def test_whatever_moves_now_and_then_is_left_alone(steps: list[int]) -> None:
    world = World(stall_s=300)
    for at, looks in enumerate(steps):
        world.marks = {"requests[0]": at}
        assert world.look(looks * 5) is None


def test_what_is_done_and_comes_again_later_starts_anew() -> None:
    world = World(stall_s=100)
    for names in ("a", "", "a"):
        world.marks = dict.fromkeys(names, 1)
        assert world.look(95) is None


def test_each_mark_is_counted_by_itself() -> None:
    still = Standstill()
    for at in range(10):
        found = still.look({"moves": at, "stands": 1}, 10)
    assert found == {"moves": 0.0, "stands": 90.0}


def test_a_recovery_has_a_deadline_and_each_assignment_its_own() -> None:
    world = World(recovery_s=600)
    for generation in range(5):
        world.recovering = f"generation {generation}"
        assert world.look(595) is None
    assert "generation 4 were not recovered" in str(world.look(10))


async def test_time_without_a_broker_is_not_counted() -> None:
    world = World(stall_s=0.3, look_s=0.05, exit_s=60)
    world.marks, world.counts = {"calls[2]": 17}, False
    world.dog.start()
    await asyncio.sleep(0.6)
    assert world.crashed == []
    world.counts = True
    await asyncio.wait_for(world.told.wait(), 10)
    assert isinstance(world.crashed[0], Stalled)
    world.dog._done.set()


async def test_an_orderly_end_that_hangs_is_cut_short() -> None:
    world = World(stall_s=0.1, look_s=0.05, exit_s=0.5)
    world.marks = {"calls[2]": 17}
    world.dog.start()
    assert await asyncio.to_thread(world.over.wait, 20)
    assert world.ended == [EXIT_CODE]
    assert len(world.crashed) == 1


BLOCKED = """
import asyncio, time
from inference_engine.agents.watchdog import Watchdog, WatchdogSettings

async def main():
    settings = WatchdogSettings(stall_s=2, look_s=0.1)
    dog = Watchdog(settings, marks=dict, recovering=lambda: None, counts=lambda: True, crash=None)
    dog.start()
    await asyncio.sleep(0.3)
    time.sleep(600)

asyncio.run(main())
"""


def test_a_blocked_event_loop_ends_the_process_with_its_stacks_in_the_log() -> None:
    done = subprocess.run([sys.executable, "-c", BLOCKED], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == EXIT_CODE
    assert "the event loop is blocked" in done.stderr
    assert "time.sleep" in done.stderr or "in main" in done.stderr

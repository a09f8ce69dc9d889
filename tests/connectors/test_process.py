"""A process that should end does."""

import subprocess
import sys

STUCK = """
import asyncio
from inference_engine.connectors.process import end_within

async def stubborn():
    while True:
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            pass

async def main():
    asyncio.create_task(stubborn())
    await asyncio.sleep(0)
    end_within(0.2)

asyncio.run(main())
"""


def test_a_process_whose_tasks_ignore_their_cancellation_ends_with_an_error() -> None:
    done = subprocess.run([sys.executable, "-c", STUCK], capture_output=True, timeout=30, check=False)
    assert done.returncode == 70
    assert b"held the end of this process up" in done.stderr


def test_a_process_that_ends_by_itself_keeps_its_code() -> None:
    script = "from inference_engine.connectors.process import end_within; end_within(30); raise SystemExit(3)"
    assert subprocess.run([sys.executable, "-c", script], timeout=20, check=False).returncode == 3


def test_the_soft_limit_of_open_files_is_raised_as_far_as_the_hard_one() -> None:
    script = """
import resource
from inference_engine.connectors.process import allow_open_files
resource.setrlimit(resource.RLIMIT_NOFILE, (256, 512))
print(allow_open_files(300), resource.getrlimit(resource.RLIMIT_NOFILE)[0], allow_open_files(200), allow_open_files(4000))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=20, check=True)
    assert done.stdout.split() == ["300", "300", "300", "512"]

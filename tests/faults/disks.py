"""Disks that are full: files of a process may not grow beyond some size (RLIMIT_FSIZE), which the kernel says as it says that there is no
space, in the middle of a write. It needs no special right, so it runs everywhere."""

import resource
import time
from collections.abc import Iterable
from pathlib import Path

import psutil

from inference_engine.connectors.kafka_embedded import find_broker

from ..e2e.waiting import until
from .brokers import ready
from .play import Fault, Scene

ROWS = 80
ROOM = 64 * 1024


def fill(pid: int, files: Iterable[Path]) -> None:
    """From now on no file of the process grows far beyond the largest of these."""
    largest = max((path.stat().st_size for path in files if path.is_file()), default=0)
    _, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (largest + ROOM, hard))


def worker_full(scene: Scene) -> None:
    """RocksDB can't write any more: the worker says so and ends; one with space goes on."""
    stage = scene.stage
    stage.start_sink()
    stage.start_worker(0)
    stage.ask(ROWS)
    stage.wait_for(ROWS // 2)
    worker = stage.workers[0]
    data = stage.engine.home / "data" / "worker-0"
    fill(worker.popen.pid, [*data.rglob("*.log"), worker.log])
    assert stage.until_ended(0, lambda: stage.ask(ROWS)) != 0, "the worker ended as if nothing were wrong"
    assert b"nothing is lost" in worker.log.read_bytes(), worker.tail()
    stage.note()
    stage.start_worker(0)
    stage.ask(ROWS // 2)


def broker_full(scene: Scene) -> None:
    """Kafka can't append any more, and ends, as it does when its only disk fails; it comes back with space."""
    stage, broker = ready(scene), scene.own_broker
    stage.note()
    [process] = find_broker(broker.folder)
    fill(process.pid, broker.folder.rglob("*.log"))

    def work() -> None:
        until(lambda: gone(process), "the broker ends", within_s=120)
        broker.start()
        stage.broken_at = time.monotonic()

    stage.while_asking(work)


def gone(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


DISKS = (
    Fault("disk full, of a worker", worker_full),
    Fault("disk full, of the broker", broker_full, breaks_broker=True),
)

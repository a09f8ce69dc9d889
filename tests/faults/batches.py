"""Faults around provider batches: deaths at every point of their life, lost submissions, rows that come to nothing."""

import signal
import time
from dataclasses import replace
from itertools import cycle
from typing import Any

from inference_engine.connectors.crash_points import OF_BATCHES, POINTS
from inference_engine.connectors.simulated_batch_http import SUBMIT

from .play import Fault, Play, Scene

ROWS = 80
SETTINGS = {
    "PROVIDER_BATCH_GATHER_SECONDS": "0.5",
    "PROVIDER_BATCH_POLL_SECONDS": "0.3",
    "PROVIDER_BATCH_TURNAROUND_SECONDS": "2",
    "PROVIDER_BATCH_RESERVE_SECONDS": "9",
}
PATIENT: dict[str, Any] = {"deadline": "1h", "priority": "batch"}
MARKS = ("[[batch:expired]] ", "[[batch:canceled]] ", "[[batch:errored]] ", "busy ", "useless ", "broken ", "", "", "", "")


def at(point: str) -> Play:
    """One of two workers dies at the point, and comes back."""
    passage = 4 if point in ("after_parked", "in_collection") else 1

    def play(scene: Scene) -> None:
        stage = scene.stage
        stage.start_sink()
        stage.start_worker(0, wait=False, CRASH_AT=f"{point}:{passage}")
        stage.start_worker(1)
        stage.workers[0].ready()  # or the other one submits everything
        stage.ask(ROWS, **PATIENT)
        assert stage.workers[0].wait(90) == -signal.SIGKILL, stage.workers[0].tail()
        stage.note()
        stage.start_worker(0)
        stage.ask(ROWS // 4, **PATIENT)

    return play


def kills(scene: Scene) -> None:
    """Three workers; each of six times one of them is killed while batches are gathered, worked on and collected."""
    stage = scene.stage
    stage.start_sink()
    stage.start_workers(3)

    def work() -> None:
        for _ in range(6):
            stage.kill_one(0.5, 3.5)

    stage.while_asking(work, **PATIENT)


def lost(kind: str) -> Play:
    """Submissions whose answers are lost, or that are turned away, beside good ones; a worker dies meanwhile."""

    def play(scene: Scene) -> None:
        stage = scene.stage
        stage.start_sink()
        stage.start_workers(2)
        stage.provider.fail(kind, match=SUBMIT, count=3, retry_after=1.0)
        stage.ask(ROWS, **PATIENT)
        time.sleep(2)
        stage.workers[0].kill()
        stage.note()
        stage.start_worker(0)
        stage.ask(ROWS // 4, **PATIENT)

    return play


def rows_that_fail(scene: Scene) -> None:
    """Every way in which a row can come to nothing, billed or not, and workers that are killed meanwhile."""
    stage = scene.stage
    stage.start_sink()
    stage.start_workers(2)
    stage.provider.fail("503", match="busy", count=10)
    stage.provider.fail("no-choices", match="useless", count=10)
    stage.provider.fail("no-usage", match="broken", count=10)
    marks = cycle(MARKS)
    stage.ask(ROWS, mark=lambda: next(marks), repeats=0, **PATIENT)
    for index in (0, 1):
        stage.kill_one(1.0, 3.0, index)


def late(scene: Scene) -> None:
    """Batches that would take an hour, deadlines in seconds: each batch is ended, and its rows are called for in time."""
    stage = scene.stage
    stage.start_sink()
    stage.start_workers(2)
    stage.ask(ROWS, deadline="35s", priority="batch")
    time.sleep(8)
    stage.workers[0].kill()
    stage.note()
    stage.start_worker(0)


def zombie(scene: Scene) -> None:
    """A worker stands still with batches on their way for longer than its session, and wakes up when others have them."""
    stage = scene.stage
    stage.start_sink()
    stage.start_workers(2)
    stage.ask(ROWS, **PATIENT)
    time.sleep(1.5)
    still = stage.workers[0].popen
    still.send_signal(signal.SIGSTOP)
    stage.note()
    time.sleep(12)
    still.send_signal(signal.SIGCONT)
    stage.ask(ROWS // 2, **PATIENT)


def in_a_hurry(scene: Scene) -> None:
    """The same prompts are asked again by people who can't wait for the batch that they are in."""
    stage = scene.stage
    stage.start_sink()
    stage.start_workers(2)
    rows = stage.rows(ROWS // 2, repeats=0, **PATIENT)
    stage.send(rows)
    time.sleep(2)
    stage.send(stage.again([asked for asked, _ in rows], priority="express"))
    stage.note()


FAULTS = (
    *(Fault(f"batch: crash at {point}", at(point)) for point in POINTS if point in OF_BATCHES),
    Fault("batch: random kills", kills, seeded=True),
    Fault("batch: submitted, and the answer lost", lost("drop")),
    Fault("batch: submitted, and answered 500", lost("billed-500")),
    Fault("batch: turned away", lost("429")),
    Fault("batch: rows that come to nothing", rows_that_fail, seeded=True),
    Fault("batch: too slow for the deadline", late),
    Fault("batch: zombie", zombie, seeded=True),
    Fault("batch: asked again in a hurry", in_a_hurry),
)
BATCHES = tuple(
    replace(fault, settings={**SETTINGS, **fault.settings}, batch_s=3600.0 if "too slow" in fault.name else 3.0, drain_s=150.0)
    for fault in FAULTS
)

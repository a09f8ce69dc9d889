"""Models that refuse, or are cut off, so that another one is asked; and workers that die between the two."""

from collections.abc import Iterator
from itertools import cycle

import orjson

from inference_engine.connectors.crash_points import OF_REFUSALS
from inference_engine.schemas import packets
from inference_engine.schemas.ledger import Charged, Completion

from .batches import PATIENT
from .batches import SETTINGS as OF_BATCHES
from .play import Fault, Play, Scene
from .stage import MODEL

ROWS = 80
OTHER = "gpt-4o"
SETTINGS = {
    "ROUTING_FALLBACK_ON_ANSWERS": "all",
    "ROUTING_EQUIVALENTS": orjson.dumps({MODEL: [OTHER]}).decode(),
    # Whoever dies while it asks the other model has used up what a request may cost: then the refusal itself is what is left to give.
    "MAX_ATTEMPTS": "2",
}
MARKS = (f"[[refused:{MODEL}]] ", f"[[refused:{MODEL}]] [[refused:{OTHER}]] ", "")


def at(point: str) -> Play:
    """One of two workers dies at the point, and comes back."""

    def play(scene: Scene) -> None:
        stage, marks = scene.stage, cycle(MARKS)
        stage.start_sink()
        stage.start_worker(0, wait=False, CRASH_AT=f"{point}:4")
        stage.start_worker(1, wait=False)
        stage.until_shared(0, 1)
        stage.until_killed(0, lambda: stage.ask(ROWS, mark=lambda: next(marks)))
        stage.note()
        stage.start_worker(0)
        stage.ask(ROWS // 4, mark=lambda: next(marks))

    return play


def kills(scene: Scene) -> None:
    """Two workers, of which one is killed four times while it asks a second model."""
    stage, marks = scene.stage, cycle(MARKS)
    stage.start_sink()
    stage.start_workers(2)

    def work() -> None:
        for index in (0, 1, 0, 1):
            stage.kill_one(1.0, 3.0, index)

    stage.while_asking(work, mark=lambda: next(marks))


def rows_of_batches(scene: Scene) -> None:
    """Rows of batches that are refused, and workers that are killed while they collect them and ask the other model."""
    stage, marks = scene.stage, cycle(MARKS)
    stage.start_sink()
    stage.start_workers(2)

    def work() -> None:
        for index in (0, 1, 0, 1):
            stage.kill_one(2.0, 5.0, index)

    stage.while_asking(work, mark=lambda: next(marks), **PATIENT)


def what_was_paid_is_given(scene: Scene) -> Iterator[str]:
    """A request one of whose models said something is given an answer: another model's, or that one after all."""
    records = [found.member for found in scene.stage.members(scene.stage.engine.topics.ledger, packets.ledger)]
    held = {r.flight: r for r in records if isinstance(r, Charged) and r.discarded}
    answered = {r.flight for r in records if isinstance(r, Completion)}
    if not held:
        yield "no answer was held back: this shows nothing"
    yield from (f"flight {flight[:12]} was not answered, though {r.model} was paid for a {r.discarded}" for flight, r in held.items()
                if flight not in answered)  # fmt: skip


REFUSALS = (
    *(Fault(f"refusals: crash at {point}", at(point), what_was_paid_is_given, SETTINGS) for point in sorted(OF_REFUSALS)),
    Fault("refusals: random kills", kills, what_was_paid_is_given, SETTINGS, latency_ms=400, seeded=True),
    Fault("batch: rows that are refused", rows_of_batches, what_was_paid_is_given, {**SETTINGS, **OF_BATCHES}, latency_ms=400, batch_s=3.0,
          drain_s=150.0, seeded=True),
)  # fmt: skip

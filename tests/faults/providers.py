"""Faults of the provider: every way in which a call can go wrong, billed or not."""

from itertools import cycle

from .play import Fault, Play, Scene

ROWS, FAULTY = 60, 30
MIXED = ("429", "500", "drop", "hang-billed", "truncated", "no-usage")
KINDS = {
    "429": "429 with Retry-After",
    "429-bare": "429 without Retry-After",
    "500": "500",
    "503": "503",
    "529": "529",
    "hang": "no answer at all",
    "drop": "billed, then dropped",
    "reset": "reset within the body",
    "hang-billed": "billed, then no answer",
    "billed-500": "billed, then 500",
    "drip": "a slow drip",
    "truncated": "half a JSON",
    "no-usage": "no usage",
    "no-choices": "no choices",
    "wrong-model": "another model",
}


def failing(kind: str) -> Play:
    """Half of the rows meet the fault; 40 calls of them fail, so that some rows meet it twice."""

    def play(scene: Scene) -> None:
        stage = scene.stage
        stage.start_sink()
        stage.start_worker(0)
        stage.provider.fail(kind, match="faulty", count=FAULTY + 10, retry_after=1.5)
        stage.ask(FAULTY, mark="faulty ", repeats=0)
        stage.ask(ROWS - FAULTY)
        stage.note()

    return play


def failing_for_ever(scene: Scene) -> None:
    """One prompt is never answered: it ends in an error after the attempts that are allowed, and the others go on."""
    stage = scene.stage
    stage.start_sink()
    stage.start_worker(0)
    stage.provider.fail("drop", match="hopeless")
    stage.ask(5, mark="hopeless ", repeats=0)
    stage.ask(ROWS)
    stage.note()


def failing_and_killed(scene: Scene) -> None:
    """A provider that fails some calls, every way in turn, and workers that are killed meanwhile."""
    stage = scene.stage
    stage.start_sink()
    stage.start_workers(2)
    for kind in MIXED:
        stage.provider.fail(kind, match=f"{kind}!", count=8)
    marks = cycle([*(f"{kind}! " for kind in MIXED), *[""] * len(MIXED)])

    def work() -> None:
        for index in (0, 1, 0):
            stage.kill_one(1.0, 3.0, index)

    stage.while_asking(work, mark=lambda: next(marks))


PROVIDERS = (
    *(Fault(f"provider: {words}", failing(kind)) for kind, words in KINDS.items()),
    Fault("provider: never an answer", failing_for_ever),
    Fault("provider fails, workers are killed", failing_and_killed, seeded=True),
)

"""Faults of processes: killed at a named point or at any time, stopped and woken, coming and going."""

import signal
import time
from collections import Counter
from collections.abc import Iterator

import orjson

from inference_engine.connectors.crash_points import OF_BATCHES, OF_REFUSALS, POINTS
from inference_engine.schemas.ledger import Ambiguous, Charged, Completion, Failure

from ..e2e.waiting import until
from .gather import gather
from .invariants import books
from .play import Fault, Play, Scene
from .stage import TENANTS

ROWS = 120
CAREFUL = TENANTS[0]
FAIL_IF_AMBIGUOUS = {"ON_AMBIGUOUS_TENANTS": orjson.dumps({CAREFUL: "fail"}).decode()}


def at(point: str) -> Play:
    """One of two workers dies at the point, as after a power cut, and comes back."""

    def play(scene: Scene) -> None:
        stage = scene.stage
        stage.start_sink()
        stage.start_worker(0, wait=False, CRASH_AT=f"{point}:4")
        stage.start_worker(1, wait=False)
        stage.until_shared(0, 1)
        stage.until_killed(0, lambda: stage.ask(ROWS, repeats=0.4))
        stage.note()
        stage.start_worker(0)
        stage.ask(ROWS // 4)

    return play


def random_kills(scene: Scene) -> None:
    """Three workers; each of five times one of them is killed, and comes back at once."""
    stage = scene.stage
    stage.start_sink()
    stage.start_workers(3)

    def work() -> None:
        for _ in range(5):
            stage.kill_one(0.3, 3.0)

    stage.while_asking(work)


def paid_at_most_once(scene: Scene) -> Iterator[str]:
    """P4: a tenant that wants no second payment has none, however often workers died over its calls."""
    evidence = gather(scene.stage)
    kept = books(evidence)
    ended = [p.member for p in evidence.ledger if isinstance(p.member, Completion | Failure | Ambiguous | Charged)]
    careful = {r.flight for r in ended if r.request.identity.tenant == CAREFUL}
    paid = Counter(kept.intents[line.attempt].flight for line in evidence.bill if line.attempt in kept.intents)
    yield from (f"flight {flight[:12]} of {CAREFUL} was paid {paid[flight]} times" for flight in careful if paid[flight] > 1)


def zombie(scene: Scene) -> None:
    """A worker stands still for longer than its session, with calls under way, and wakes up when others have its partitions."""
    stage = scene.stage
    stage.start_sink()
    stage.start_workers(2)
    stage.stand_still(0, lambda: stage.ask(ROWS))
    stage.note()
    stage.ask(ROWS // 2)
    time.sleep(12)
    stage.workers[0].popen.send_signal(signal.SIGCONT)
    stage.ask(ROWS // 2)


def zombie_and_successor(scene: Scene) -> None:
    """A worker stands still, its successor pays again and is killed at it, the first one wakes up and writes what it has."""
    stage = scene.stage
    stage.start_sink()
    stage.start_workers(2)
    stage.stand_still(0, lambda: stage.ask(ROWS))
    still, successor = stage.workers[0].popen, stage.workers[1]
    stage.note()
    before = len(stage.engine.ledger().ambiguous)
    until(lambda: len(stage.engine.ledger().ambiguous) > before, "its calls are booked, and paid again", within_s=60)
    successor.kill()
    still.send_signal(signal.SIGCONT)
    stage.note()
    stage.start_worker(1)
    stage.ask(ROWS // 2)


def churn(scene: Scene) -> None:
    """Every two seconds a worker joins, or one leaves as it should."""
    stage = scene.stage
    stage.start_sink()
    stage.start_worker(0)

    def work() -> None:
        for turn in range(8):
            time.sleep(2)
            index = 1 + turn % 3
            worker = stage.workers.get(index)
            if worker is not None and worker.alive:
                worker.terminate()
            else:
                stage.start_worker(index, wait=False)
            stage.note()

    stage.while_asking(work)


def hot_key(scene: Scene) -> None:
    """Hundreds wait for a few answers; the worker dies while it sends them out, three times."""
    stage = scene.stage
    stage.start_sink()

    def ask() -> None:
        first = stage.rows(10, repeats=0)
        stage.send(first)
        stage.send(stage.again([asked for asked, _ in first] * 20))

    for point in ("in_fan_out:40", "in_fan_out:90", "after_fan_out:2"):
        ask()
        stage.start_worker(0, wait=False, CRASH_AT=point)
        stage.until_killed(0, ask)
        stage.note()
    stage.start_worker(0)


def stopped_with_hung_calls(scene: Scene) -> None:
    """SIGTERM while the provider answers nobody: the worker ends in time, and the next one settles what it left."""
    stage = scene.stage
    stage.start_sink()
    stage.start_worker(0)
    stage.provider.fail("hang")
    stage.ask(40)
    stage.until_called(10)
    assert stage.workers[0].stop(45) == 0, stage.workers[0].tail()
    stage.note()
    stage.provider.heal()
    stage.start_worker(0)


def stuck(scene: Scene) -> None:
    """A worker whose door lets some requests hang ends itself; the next one answers them."""
    stage = scene.stage
    stage.start_sink()
    stage.start_worker(0, FAULT_STUCK="stuck", STALL_TIMEOUT_SECONDS="10")
    stage.ask(ROWS // 2)
    stage.ask(5, mark="stuck ", repeats=0)
    code = stage.workers[0].wait(90)
    assert code != 0, "the worker ended as if nothing were wrong"
    assert b"no progress for" in stage.workers[0].log.read_bytes(), stage.workers[0].tail()
    stage.note()
    stage.start_worker(0)
    stage.ask(ROWS // 2)


def recovery_that_hangs(scene: Scene) -> None:
    """A worker whose partitions never become ready ends itself at its deadline; the next one does what it was to do."""
    stage = scene.stage
    stage.start_sink()
    stage.ask(ROWS)
    stage.start_worker(0, wait=False, FAULT_RECOVERY="hangs", RECOVERY_TIMEOUT_SECONDS="10")
    assert stage.workers[0].wait(90) != 0, "the worker ended as if nothing were wrong"
    assert b"were not recovered within" in stage.workers[0].log.read_bytes(), stage.workers[0].tail()
    stage.note()
    stage.start_worker(0)


KILLS = (
    *(Fault(f"crash at {point}", at(point)) for point in POINTS if point not in OF_BATCHES | OF_REFUSALS),
    Fault("random kills", random_kills, seeded=True),
    Fault("random kills, no second payment", random_kills, paid_at_most_once, FAIL_IF_AMBIGUOUS, latency_ms=400, seeded=True),
    Fault("zombie", zombie, seeded=True),
    Fault("zombie, its successor killed", zombie_and_successor, latency_ms=400, seeded=True),
    Fault("workers come and go", churn, seeded=True),
    Fault("hot key, killed in its fan-out", hot_key),
    Fault("SIGTERM with hung calls", stopped_with_hung_calls),
    Fault("a worker that is stuck", stuck),
    Fault("a recovery that hangs", recovery_that_hangs),
)

"""Faults of the broker and of the network before it."""

import time

from .play import Fault, Scene
from .proxy import Weather
from .stage import Stage

ROWS = 100


def ready(scene: Scene) -> Stage:
    """Two workers at work."""
    stage = scene.stage
    stage.start_sink()
    stage.start_workers(2)
    stage.ask(ROWS)
    stage.wait_for(10)
    return stage


def killed(scene: Scene) -> None:
    """kill -9 of the broker, and its start."""
    stage = ready(scene)
    stage.note()
    scene.own_broker.kill()
    scene.own_broker.start()
    stage.ask(ROWS // 2)


def killed_with_a_worker(scene: Scene) -> None:
    """The broker and a worker go at once; another worker is killed before the broker is back."""
    stage = ready(scene)
    stage.note()
    scene.own_broker.kill()
    stage.workers[0].kill()
    stage.workers[1].kill()
    scene.own_broker.start()
    stage.start_workers(2)
    stage.ask(ROWS // 2)


def unreachable(scene: Scene) -> None:
    """For 30 s nothing gets through, in either direction."""
    stage = ready(scene)
    stage.note()
    scene.own_broker.proxy.weather(Weather("blackhole"))
    time.sleep(30)
    scene.own_broker.proxy.weather(Weather())
    stage.broken_at = time.monotonic()
    stage.ask(ROWS // 2)


def refused(scene: Scene) -> None:
    """For 8 s, longer than a session, every connection is reset."""
    stage = ready(scene)
    stage.note()
    scene.own_broker.proxy.weather(Weather("reset"))
    time.sleep(8)
    scene.own_broker.proxy.weather(Weather())
    stage.broken_at = time.monotonic()
    stage.ask(ROWS // 2)


def cut(scene: Scene) -> None:
    """All connections are reset once a second."""
    stage = scene.stage
    stage.start_sink()
    stage.start_workers(2)

    def work() -> None:
        for _ in range(10):
            time.sleep(1)
            scene.own_broker.proxy.cut()
        stage.broken_at = time.monotonic()

    stage.while_asking(work)


def slow(scene: Scene) -> None:
    """Every piece takes 150 ms longer, and a connection carries 200 kB/s."""
    stage = scene.stage
    stage.start_sink()
    stage.start_workers(2)
    scene.own_broker.proxy.weather(Weather(delay_s=0.15, bytes_per_s=200_000))
    stage.ask(ROWS)
    stage.wait_for(ROWS // 2)
    stage.workers[0].kill()
    stage.note()
    stage.start_worker(0, wait=False)
    stage.ask(ROWS // 2)
    scene.own_broker.proxy.weather(Weather())


BROKERS = (
    Fault("broker killed", killed, breaks_broker=True),
    Fault("broker and both workers killed", killed_with_a_worker, breaks_broker=True),
    Fault("broker unreachable for 30 s", unreachable, breaks_broker=True),
    Fault("broker refuses for 8 s", refused, breaks_broker=True),
    Fault("connections reset once a second", cut, breaks_broker=True),
    Fault("slow network", slow, breaks_broker=True),
)

"""Faults of what lies on disk and of the stores: indexes, the cost store, local data, changelogs, clocks."""

import shutil
import signal
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource, ResourceType  # type: ignore[attr-defined]

from inference_engine.agents.names import changelogs
from inference_engine.agents.sink_worker import PACKETS_AT_ONCE

from ..connectors.clickhouse_http import clickhouse_http
from ..e2e.engine import PARTITIONS
from ..e2e.waiting import until
from .gather import gather, stored
from .play import Fault, Play, Scene
from .proxy import Proxy, Weather
from .stage import Stage

ROWS = 80
AWAY_S = 600.0
CALM_S = 30.0
"""So long it is asked at the same rate before the store goes away."""
SLOWED_MS = 250
"""An answer that comes later than this, and than twice its usual time, is slowed down by more than chance."""
SEMANTIC = {"CACHE_SEMANTIC_ENABLED": "true", "CACHE_POLICY": "static"}


def index(kind: str) -> Play:
    """The vector index does not work: requests go on without the semantic tier."""

    def play(scene: Scene) -> None:
        stage = scene.stage
        stage.start_sink()
        stage.start_worker(0, FAULT_INDEX=kind)
        stage.ask(ROWS, priority="standard")
        stage.note()

    return play


SAID = "please tell me kindly and at once how do I reset the forgotten password of my savings account, this is "


def semantic_and_killed(scene: Scene) -> None:
    """The semantic tier at work, many followers of few leaders, and workers that are killed."""
    killed_while_asking(scene)


def killed_while_asking(scene: Scene, **how: Any) -> None:
    stage = scene.stage
    stage.start_sink()
    stage.start_workers(2, FAULT_INDEX="hash")

    def work() -> None:
        for number in (0, 1, 0):
            stage.kill_one(2.0, 4.0, number, FAULT_INDEX="hash")

    stage.while_asking(work, body={"temperature": 0}, **how)


def leaders_fail_and_killed(scene: Scene) -> None:
    """Prompts that share an answer with nearly all others, of which the first ones that are called are refused."""
    scene.stage.provider.fail("400", count=40)
    killed_while_asking(scene, mark=SAID, spelled=True, repeats=0)


def was_handed_over(scene: Scene) -> Iterator[str]:
    """Nothing is shown where no follower came back and led, and none followed another one then."""
    evidence = gather(scene.stage)
    back = {p.member.request.flight for p in evidence.misses if p.member.fallen}
    led = sum(p.member.request.flight in back for p in evidence.calls)
    followed = sum(p.member.follow is not None and bool(p.member.follow.fallen) for p in evidence.lookups)
    if not led or not followed:
        yield f"{len(back)} followers came back, {led} of them led, and {followed} times one followed another leader"


def qdrant_silent(scene: Scene) -> None:
    """A Qdrant server takes connections and answers nothing."""
    stage = scene.stage
    with Proxy() as proxy:
        proxy.weather(Weather("blackhole"))
        stage.start_sink()
        stage.start_worker(0, FAULT_INDEX="hash", QDRANT_URL=f"http://127.0.0.1:{proxy.port}")
        stage.ask(ROWS)
        stage.note()
        stage.wait_for(ROWS)


@contextmanager
def cost_store(stage: Stage) -> Iterator[Proxy]:
    """A ClickHouse behind a forwarder; the sink keeps what it stores there. Put it on before the sink is started."""
    with clickhouse_http(stage.engine.home / "clickhouse") as url, Proxy() as proxy:
        host, _, rest = url.removeprefix("http://").partition("/")
        proxy.to(int(host.rpartition(":")[2]))
        stage.engine.settings["CLICKHOUSE_URL"] = f"http://127.0.0.1:{proxy.port}/{rest}"
        yield proxy
        stage.drain()
        stage.kept = stored(stage)


def clickhouse_away(scene: Scene) -> None:
    """The cost store is down from the start, comes, goes in the middle, and comes back."""
    stage = scene.stage
    with cost_store(stage) as proxy:
        proxy.weather(Weather("reset"))
        stage.start_sink()
        stage.start_worker(0)
        stage.ask(ROWS)
        stage.wait_for(ROWS)
        proxy.weather(Weather())
        stage.ask(ROWS)
        stage.wait_for(ROWS + 20)
        proxy.weather(Weather("blackhole"))
        stage.ask(ROWS)
        stage.wait_for(3 * ROWS)
        proxy.weather(Weather("reset"))
        time.sleep(2)
        proxy.weather(Weather())
        stage.note()


def clickhouse_long_away(scene: Scene) -> None:
    """The cost store is away for ten minutes, first as a host that is gone, then as a process that is gone; two requests a second go on."""
    stage = scene.stage
    with cost_store(stage) as proxy:
        stage.start_sink()
        stage.start_worker(0)

        def away() -> None:
            time.sleep(CALM_S)
            stage.mark("calm")
            for kind in ("blackhole", "reset"):
                proxy.weather(Weather(kind))
                time.sleep(AWAY_S / 2)
            asked = {a.key for a in list(stage.asked)}
            until(lambda: asked <= stage.responded(), "who asked while the cost store was away has an answer", within_s=10)
            stage.mark("away")
            waiting = stage.unstored()
            assert waiting > PACKETS_AT_ONCE, f"only {waiting} packets wait for the cost store: the sink could hold them all"
            proxy.weather(Weather())
            stage.note()

        stage.while_asking(away, every_s=1.0, count=2)
        assert stage.workers[0].alive, stage.workers[0].tail()


def not_slowed(scene: Scene) -> Iterator[str]:
    """Answers took as long while the cost store was away as before; see `clickhouse_long_away`."""
    stage = scene.stage
    calm, away = ({a.custom_id for a in stage.asked[: stage.marks[name]]} for name in ("calm", "away"))
    took = {line.custom_id: line.engine.latency_ms for line in stage.engine.responses()}
    before = statistics.median(ms for custom_id, ms in took.items() if custom_id in calm)
    meanwhile = statistics.median(ms for custom_id, ms in took.items() if custom_id in away - calm)
    if meanwhile > max(2 * before, before + SLOWED_MS):
        yield f"an answer took {meanwhile} ms (median) while the cost store was away, and {before} ms before"


def sink_killed(scene: Scene) -> None:
    """The process that owns the cost store is killed while it stores, three times."""
    stage = scene.stage
    stage.start_sink()
    stage.start_worker(0)

    def work() -> None:
        for _ in range(3):
            stage.pause(0.5, 2.0)
            assert stage.sink is not None
            stage.sink.kill()
            stage.note()
            stage.start_sink()

    stage.while_asking(work, count=20)


def folder_gone(scene: Scene) -> None:
    """A worker is killed and its data folder deleted."""
    stage, data = killed_with_data(scene)
    shutil.rmtree(data)
    stage.start_worker(0)
    stage.ask(ROWS // 2)


def folder_corrupt(scene: Scene) -> None:
    """A worker is killed, and every file of its data folder is overwritten from the middle on."""
    stage, data = killed_with_data(scene)
    for path in data.rglob("*"):
        if path.is_file() and path.name != "lock":
            size = path.stat().st_size
            with path.open("r+b") as file:
                file.seek(size // 2)
                file.write(stage.random.randbytes(size - size // 2))
    stage.start_worker(0)
    stage.ask(ROWS // 2)


def changelog_truncated(scene: Scene) -> None:
    """All records of the changelogs are deleted while no worker runs; local rows are what is left."""
    stage, _ = killed_with_data(scene)
    truncate(stage)
    stage.start_worker(0)
    stage.ask(ROWS // 2)


def changelog_and_folder_gone(scene: Scene) -> None:
    """Nobody knows any more who waits: who asks again gets his answer, and nothing is paid again that was paid.

    Without repeated prompts: whoever had another one's answer, and asks again when no cache knows it, gets one of his own.
    """
    stage, data = killed_with_data(scene, repeats=0)
    shutil.rmtree(data)
    truncate(stage)
    stage.start_worker(0)
    stage.send(stage.same_again())


def killed_with_data(scene: Scene, repeats: float = 0.2) -> tuple[Stage, Path]:
    stage = scene.stage
    stage.start_sink()
    stage.start_worker(0)
    stage.ask(ROWS, repeats=repeats)
    stage.wait_for(ROWS // 3)
    stage.workers[0].kill()
    stage.note()
    return stage, stage.engine.home / "data" / "worker-0"


def truncate(stage: Stage) -> None:
    """Deletes all records; the broker allows it only where records may be deleted by age too."""
    admin = AdminClient({"bootstrap.servers": stage.engine.brokers, "log_level": 0})
    names = changelogs(stage.engine.topics)
    set_policy(admin, names, "compact,delete")
    everything = [TopicPartition(name, p, -1) for name in names for p in range(PARTITIONS)]
    for deleted in admin.delete_records(everything).values():
        deleted.result(15)
    set_policy(admin, names, "compact")


def set_policy(admin: AdminClient, topics: Sequence[str], policy: str) -> None:
    entries = [ConfigEntry("cleanup.policy", policy, incremental_operation=AlterConfigOpType.SET)]
    resources = [ConfigResource(ResourceType.TOPIC, name, incremental_configs=entries) for name in topics]
    for changed in admin.incremental_alter_configs(resources).values():
        changed.result(15)


def clocks(scene: Scene) -> None:
    """Two workers whose clocks are an hour ahead and an hour behind take over from each other."""
    stage = scene.stage
    hour = 3_600_000
    stage.start_sink()
    stage.start_worker(0, wait=False, FAULT_CLOCK_OFFSET_MS=str(hour))
    stage.start_worker(1, FAULT_CLOCK_OFFSET_MS=str(-hour))
    stage.ask(ROWS)
    stage.wait_for(10)
    for index, offset in ((0, -hour), (1, hour)):
        stage.workers[index].kill()
        stage.note()
        stage.start_worker(index, FAULT_CLOCK_OFFSET_MS=str(offset))
        stage.ask(ROWS)


def clock_jumps(scene: Scene) -> None:
    """A worker's clock is set an hour ahead, then an hour behind, then right, with calls under way; then it is killed."""
    stage = scene.stage
    stage.start_sink()
    stage.start_workers(2)

    def work() -> None:
        for _ in range(3):
            stage.pause(0.5, 2.0)
            stage.workers[0].popen.send_signal(signal.SIGUSR1)
        stage.pause(0.5, 2.0)
        stage.workers[0].kill()
        stage.note()
        stage.start_worker(0, wait=False)

    stage.while_asking(work)


STORES = (
    *(Fault(f"vector index {kind}", index(kind), settings=SEMANTIC) for kind in ("missing", "failing", "dimension", "slow")),
    Fault("Qdrant is silent", qdrant_silent, settings=SEMANTIC, drain_s=60),
    Fault("semantic tier, workers are killed", semantic_and_killed, settings=SEMANTIC, seeded=True),
    Fault("semantic tier, leaders are refused, workers are killed", leaders_fail_and_killed, was_handed_over, SEMANTIC, seeded=True),
    Fault("ClickHouse away", clickhouse_away),
    Fault("ClickHouse away for 10 minutes", clickhouse_long_away, not_slowed),
    Fault("sink killed", sink_killed, seeded=True),
    Fault("data folder deleted", folder_gone),
    Fault("data folder corrupt", folder_corrupt),
    Fault("changelog truncated", changelog_truncated),
    Fault("changelog and data folder gone", changelog_and_folder_gone),
    Fault("clocks an hour ahead and behind", clocks),
    Fault("a clock that jumps", clock_jumps, seeded=True),
)

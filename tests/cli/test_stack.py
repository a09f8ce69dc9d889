"""The stack: started once, shared, restarted for new settings, and never more than one of each, whatever died in between."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from confluent_kafka.admin import AdminClient

from inference_engine.agents.settings import Settings
from inference_engine.cli import children, stack
from inference_engine.cli.engine import Engine
from inference_engine.cli.stack import StackOptions, down, ensure, status
from inference_engine.connectors.data_folder import DataFolder
from inference_engine.connectors.kafka_admin import topic_specs
from inference_engine.connectors.kafka_embedded import EmbeddedKafka, find_broker
from inference_engine.connectors.process import created_at
from inference_engine.pipeline.errors import ConfigError
from inference_engine.schemas.topics import Topics

FAKE = (sys.executable, str(Path(__file__).with_name("fake_child.py")))


@pytest.fixture
def options(kafka: str, topic_prefix: str, tmp_path: Path) -> Iterator[StackOptions]:
    """A stack of fake children on the session's broker."""
    made = StackOptions(
        folder=DataFolder(tmp_path / "home"),
        brokers=kafka,
        specs=topic_specs(Topics(topic_prefix), 2),
        workers=2,
        command=FAKE,
        stop_timeout_s=10,
    )
    yield made
    down(made.folder, timeout_s=2)


def pids(running: stack.Stack) -> list[int]:
    return [child.pid for child in (running.sink, *running.workers)]


def with_environ(options: StackOptions, **extra: str) -> StackOptions:
    return replace(options, environ={**os.environ, **extra})


def test_all_children_and_topics_are_there_when_ensure_returns(options: StackOptions, kafka: str) -> None:
    running = ensure(options)
    assert running.brokers == kafka
    assert running.sink_url == "http://127.0.0.1:4242"
    assert all(psutil.pid_exists(pid) for pid in pids(running))
    there = AdminClient({"bootstrap.servers": kafka}).list_topics(timeout=10).topics
    assert {spec.name for spec in options.specs} <= there.keys()


def test_the_second_command_adopts_everything(options: StackOptions) -> None:
    """Nothing is started twice, and there is nothing to say."""
    first = ensure(options)
    second = ensure(options)
    assert pids(second) == pids(first)
    assert second.notes == ()


def test_down_stops_the_children_and_leaves_no_state(options: StackOptions) -> None:
    running = ensure(options)
    assert down(options.folder) == ["worker-0", "worker-1", "sink"]
    assert [created_at(pid) for pid in pids(running)] == [None, None, None]
    assert status(options.folder).children == {}
    assert down(options.folder) == []


def test_a_child_is_told_the_broker_and_the_folder(options: StackOptions, kafka: str) -> None:
    ensure(options)
    assert f"sink in mode ready, brokers {kafka}" in options.folder.log_file("sink").read_text()


def test_a_child_works_in_the_folder_of_the_command(options: StackOptions, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """`.env` and relative paths mean the same to both."""
    monkeypatch.chdir(tmp_path)
    assert psutil.Process(ensure(options).sink.pid).cwd() == str(tmp_path)


def test_changed_settings_restart_workers_and_sink_and_say_so(options: StackOptions) -> None:
    first = ensure(options)
    second = ensure(replace(options, fingerprint="another"))
    assert not set(pids(first)) & set(pids(second))
    assert "restarting sink: the settings have changed" in second.notes
    assert ensure(replace(options, fingerprint="another")).notes == ()


def test_fewer_workers_stop_the_surplus_and_keep_the_rest(options: StackOptions) -> None:
    first = ensure(options)
    second = ensure(replace(options, workers=1))
    assert pids(second) == pids(first)[:2]
    assert created_at(first.workers[1].pid) is None


def test_a_killed_worker_is_started_again_and_the_others_stay(options: StackOptions) -> None:
    first = ensure(options)
    os.kill(first.workers[0].pid, signal.SIGKILL)
    psutil.Process(first.workers[0].pid).wait(10)
    second = ensure(options)
    assert second.workers[0].pid != first.workers[0].pid
    assert (second.sink, second.workers[1]) == (first.sink, first.workers[1])


def test_a_child_that_dies_is_quoted(options: StackOptions) -> None:
    with pytest.raises(ConfigError, match=r"(?s)worker-0 ended before it was ready.*the model file is broken"):
        ensure(with_environ(options, FAKE_WORKER="dies"))


def test_a_child_is_quoted_from_this_start_on(options: StackOptions) -> None:
    with pytest.raises(ConfigError, match="the model file is broken"):
        ensure(with_environ(options, FAKE_WORKER="dies"))
    with pytest.raises(ConfigError, match=r"(?s)START_TIMEOUT_SECONDS.*worker in mode slow") as error:
        ensure(replace(with_environ(options, FAKE_WORKER="slow"), ready_timeout_s=2.0))
    assert "the model file is broken" not in str(error.value)
    assert "the model file is broken" in options.folder.log_file("worker-0").read_text(), "what was written before stays"


def test_how_long_a_child_is_waited_for_is_a_setting_that_restarts_no_worker(options: StackOptions) -> None:
    short, long = Engine(Settings(start_timeout_seconds=1)), Engine(Settings(start_timeout_seconds=600))
    assert (short.stack_options.ready_timeout_s, long.stack_options.ready_timeout_s) == (1, 600)
    assert short.stack_options.fingerprint == long.stack_options.fingerprint


def test_a_child_that_is_never_ready_is_stopped_and_named(options: StackOptions) -> None:
    with pytest.raises(ConfigError, match="sink was not ready in time and was stopped"):
        ensure(replace(with_environ(options, FAKE_SINK="slow"), ready_timeout_s=1.0))
    assert "sink" not in status(options.folder).children


def test_a_command_that_does_not_exist_is_named(options: StackOptions) -> None:
    with pytest.raises(ConfigError, match="sink could not be started"):
        ensure(replace(options, command=(str(options.folder.root / "nothing"),)))


def test_a_child_that_ignores_term_is_killed(options: StackOptions) -> None:
    running = ensure(with_environ(options, FAKE_WORKER="stubborn"))
    lines: list[str] = []
    down(options.folder, lines.append, timeout_s=0.5)
    assert [created_at(child.pid) for child in running.workers] == [None, None]
    assert any("was killed" in line for line in lines)


def test_a_reused_pid_is_never_touched(options: StackOptions) -> None:
    """The record names the pid of a stranger: it survives ensure and down."""
    stranger = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"])
    try:
        options.folder.root.mkdir(parents=True)
        birth = {"pid": stranger.pid, "created": psutil.Process(stranger.pid).create_time(), "fingerprint": "x"}
        options.folder.stack_state.write_text(json.dumps({"version": 1, "children": {"worker-0": birth, "sink": birth}}))
        options.folder.state_file("worker-0").write_text(json.dumps({"pid": stranger.pid, "port": 1, "ready_ms": 1}))
        running = ensure(options)
        assert stranger.pid not in pids(running)
        down(options.folder)
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


@pytest.mark.parametrize("wreck", ["", "{", "[]", '{"children": {"sink": {"pid": 1}}}', "\x00" * 64])
def test_a_wrecked_record_is_no_obstacle(options: StackOptions, wreck: str) -> None:
    """Children that no readable record knows are replaced, so that there is still one of each."""
    first = ensure(options)
    options.folder.stack_state.write_text(wreck)
    second = ensure(options)
    assert "restarting worker-1: an interrupted command left it behind" in second.notes
    assert [created_at(pid) for pid in pids(first)] == [None, None, None]
    assert len(children.find(options.folder)) == 3


def test_a_command_killed_between_start_and_record_leaves_no_second_child(options: StackOptions) -> None:
    """The child lives and nobody wrote it down: the next command finds it by its arguments."""
    command = [*FAKE, "sink", "--state-file", str(options.folder.state_file("sink"))]
    orphan = subprocess.Popen(command, env={**os.environ, "KAFKA_BROKERS": "x"}, start_new_session=True)
    running = ensure(options)
    assert orphan.wait(10) == 0
    assert running.sink.pid != orphan.pid


def test_a_half_written_record_file_is_ignored(options: StackOptions) -> None:
    """A command died while it wrote: the part lies about, the last whole record counts."""
    first = ensure(options)
    (options.folder.root / ".stack.json.abc").write_text("{")
    assert pids(ensure(options)) == pids(first)


_KILLED_COMMAND = """
import os, signal, sys
from pathlib import Path
from inference_engine.cli import children
from inference_engine.cli.stack import StackOptions, ensure
from inference_engine.connectors.data_folder import DataFolder
from inference_engine.connectors.kafka_admin import topic_specs
from inference_engine.schemas.topics import Topics

home, kafka, prefix, step, calls, python, fake = sys.argv[1:]
real, left = getattr(children, step), iter(range(int(calls)))

def killing(*args, **kwargs):
    result = real(*args, **kwargs)
    if next(left, None) is None:
        os.kill(os.getpid(), signal.SIGKILL)
    return result

setattr(children, step, killing)
ensure(StackOptions(folder=DataFolder(Path(home)), brokers=kafka, specs=topic_specs(Topics(prefix), 2), workers=2, command=(python, fake)))
"""


@pytest.mark.parametrize(
    ("step", "calls"), [("launch", 0), ("launch", 1), ("launch", 2), ("record", 0), ("record", 2), ("wait_ready", 0), ("wait_ready", 2)]
)
def test_a_command_killed_anywhere_is_followed_by_a_whole_stack(
    options: StackOptions, kafka: str, topic_prefix: str, step: str, calls: int
) -> None:
    """kill -9 right after the given step; the next command ends with exactly one of each child, and keeps those that were recorded."""
    arguments = [str(options.folder.root), kafka, topic_prefix, step, str(calls), *FAKE]
    killed = subprocess.run([sys.executable, "-c", _KILLED_COMMAND, *arguments], timeout=60, check=False)
    assert killed.returncode == -signal.SIGKILL
    recorded = children.births(options.folder)
    running = ensure(options)
    now = {child.name: child.pid for child in (running.sink, *running.workers)}
    assert {name: process.pid for name, process in children.find(options.folder).items()} == now
    assert {name: birth.pid for name, birth in recorded.items()}.items() <= now.items()


def test_commands_that_start_together_share_one_stack(options: StackOptions) -> None:
    """Four commands at once: one starts, the others wait for it and adopt."""
    from concurrent.futures import ThreadPoolExecutor

    options = replace(options, ready_timeout_s=20.0)
    with ThreadPoolExecutor(4) as pool:
        stacks = [future.result() for future in [pool.submit(ensure, options) for _ in range(4)]]
    assert len({tuple(pids(running)) for running in stacks}) == 1
    assert sorted(bool([note for note in running.notes if "waiting" not in note]) for running in stacks) == [False, False, False, True]


def test_two_folders_are_two_stacks(options: StackOptions, tmp_path: Path) -> None:
    other = replace(options, folder=DataFolder(tmp_path / "other"), workers=1)
    first = ensure(options)
    try:
        assert not set(pids(ensure(other))) & set(pids(first))
    finally:
        down(other.folder)
    assert pids(ensure(options)) == pids(first)


def test_a_folder_reached_by_a_link_is_the_same_stack(options: StackOptions, tmp_path: Path) -> None:
    first = ensure(options)
    (tmp_path / "link").symlink_to(options.folder.root)
    assert pids(ensure(replace(options, folder=DataFolder(tmp_path / "link")))) == pids(first)


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path, options: StackOptions) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="INFERENCE_ENGINE_HOME"):
        ensure(replace(options, folder=DataFolder(tmp_path / "file" / "home")))


def test_children_outlive_the_command(options: StackOptions) -> None:
    """They lead their own sessions: a hang-up or an interrupt of the terminal doesn't reach them."""
    assert all(os.getsid(pid) == pid for pid in pids(ensure(options)))


def own_broker(options: StackOptions) -> StackOptions:
    return replace(options, brokers=None, kafka=EmbeddedKafka(fast_jit=True, heap=("128m", "384m")))


def test_the_embedded_broker_is_shared_survives_and_is_stopped_last(options: StackOptions) -> None:
    """Start, adopt, kill -9 of the broker, start again on the same data and the same port, down."""
    options = own_broker(options)
    first = ensure(options)
    assert ensure(options).notes == ()
    (broker,) = find_broker(options.folder.kafka)
    broker.kill()
    broker.wait(10)
    second = ensure(options)
    assert second.brokers == first.brokers
    assert "created" not in " ".join(second.notes), "the topics are still there"
    assert pids(second) == pids(first), "the same address: nobody has to restart"
    assert status(options.folder).brokers == second.brokers
    assert down(options.folder) == ["worker-0", "worker-1", "sink", "broker"]
    assert status(options.folder).brokers is None


def test_the_waiting_command_says_whom_it_waits_for(options: StackOptions) -> None:
    from inference_engine.connectors.file_lock import held

    lines: list[str] = []
    holder = subprocess.Popen([sys.executable, "-c", _HOLDER, str(options.folder.lock)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"held\n"

    def let_go(line: str) -> None:
        lines.append(line)
        holder.kill()

    with held(options.folder.lock, let_go):
        assert f"pid {holder.pid}" in lines[0]
    holder.communicate()


_HOLDER = (
    "import sys\n"
    "from pathlib import Path\n"
    "from inference_engine.connectors.file_lock import held\n"
    "with held(Path(sys.argv[1])):\n"
    "    print('held', flush=True)\n"
    "    sys.stdin.read()\n"
)

"""What dies under a `run` is started again by it; what another command stopped is not."""

import os
import signal

import psutil
import pytest

from inference_engine.cli import keeper as keeper_module
from inference_engine.cli.keeper import MOST_RESTARTS, Keeper
from inference_engine.cli.stack import StackOptions, down, ensure, status
from inference_engine.pipeline.errors import Unavailable

from .test_stack import options

__all__ = ["options"]


@pytest.fixture(autouse=True)
def always_looking(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeper_module, "EVERY_S", 0.0)


def kill(stack: StackOptions, name: str) -> None:
    child = status(stack.folder).children[name]
    assert child is not None
    os.kill(child.pid, signal.SIGKILL)
    psutil.Process(child.pid).wait(10)


def test_a_worker_that_dies_is_started_again_and_it_is_said(options: StackOptions) -> None:
    ensure(options)
    said: list[str] = []
    keeper = Keeper(options, said.append)
    keeper.look()
    assert said == []
    kill(options, "worker-1")
    keeper.look()
    assert set(status(options.folder).children) == {"sink", "worker-0", "worker-1"}
    assert said == ["worker-1 ended in the middle of the job (1 of 3 times that it is started again)", "starting worker-1"]


def test_what_dies_again_and_again_ends_the_run_with_its_log(options: StackOptions) -> None:
    ensure(options)
    keeper = Keeper(options, lambda _: None)
    for _ in range(MOST_RESTARTS):
        kill(options, "worker-0")
        keeper.look()
    kill(options, "worker-0")
    with pytest.raises(Unavailable, match=r"(?s)after 3 restarts.*the same command goes on.*in mode ready"):
        keeper.look()


def test_what_another_command_stopped_stays_stopped(options: StackOptions) -> None:
    ensure(options)
    keeper = Keeper(options, lambda _: None)
    down(options.folder)
    keeper.look()
    assert status(options.folder).children == {}

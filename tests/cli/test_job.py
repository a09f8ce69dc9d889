"""A job without Kafka: any order of responses, with a kill after any step, ends complete, in order, and within its budget."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inference_engine.cli import job as job_module
from inference_engine.cli import retry_failed
from inference_engine.cli.budget import Budget
from inference_engine.cli.job import Job
from inference_engine.cli.job_files import JobFiles, JobRequest, open_job
from inference_engine.cli.rows import Row, RowDefaults, request_key
from inference_engine.cli.spool import AnswersFile, Journal, RowIndex
from inference_engine.cli.state import JobDatabase
from inference_engine.pipeline.errors import Unpriced

from .fake_engine import as_error, response_line

MILLI = 10**9


def prompts(ids: list[str]) -> bytes:
    return b"".join(b"broken\n" if i == "!" else orjson.dumps({"custom_id": i, "prompt": i}) + b"\n" for i in ids)


class Killed(BaseException):
    """The process ends here."""


class Fuse:
    """Ends the process before one of the next writes to disk."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.left: int | None = None
        for owner, name in ((RowIndex, "put"), (Journal, "append"), (JobDatabase, "put"), (AnswersFile, "write")):
            patch.setattr(owner, name, self._guarded(getattr(owner, name)))

    def _guarded(self, write: Callable[..., Any]) -> Callable[..., Any]:
        def guarded(*args: Any) -> Any:
            if self.left is not None:
                if self.left == 0:
                    self.left = None
                    raise Killed
                self.left -= 1
            return write(*args)

        return guarded


class World:
    """The user's folder, and everything that was ever asked of the engine."""

    def __init__(self, folder: Path, ids: list[str], limit: int | None = None, cap: int = MILLI) -> None:
        self.folder, self.ids, self.limit, self.cap = folder, ids, limit, cap
        (folder / "in").write_bytes(prompts(ids))
        self.responses: list[tuple[bytes, bytes]] = []
        """The topic: read from the checkpoint on after a kill."""
        self.read = 0
        self.asked: list[str] = []
        self.committed = 0

    def start(self, **options: Any) -> Job:
        request = JobRequest(self.folder / "in", self.folder / "out", "t", RowDefaults("j"), **options)
        opened = open_job(request)
        assert opened.files is not None
        job = Job(opened.files, "t", opened.total, opened.defaults, Budget(self.limit), lambda _row: self.cap)
        job.restore()
        self.read = self.committed
        if opened.reask:
            retry_failed.reask_failed(opened.files, opened.defaults)
            job.recount()
        return job

    def kill(self, job: Job) -> None:
        """As the operating system does: files are closed, nothing is said."""
        files: JobFiles = job.files
        files.close()

    def ask(self, job: Job, room: int) -> None:
        self.asked += [ask.custom_id for ask in job.take(room, due=0.0)]

    def answer(self, custom_id: str, ok: bool = True) -> None:
        line = response_line(custom_id, "t", "j")
        self.responses.append((request_key("t", "j", custom_id), orjson.dumps(line if ok else as_error(line, "unavailable"))))

    def settle(self, job: Job, count: int) -> None:
        job.settle(self.responses[self.read : self.read + count])
        self.read = min(len(self.responses), self.read + count)

    def checkpoint(self, job: Job) -> None:
        job.checkpoint({0: self.read}, 0.0, sync=False)
        self.committed = self.read

    def step(self, job: Job, chance: Random) -> None:
        step = chance.choice(["ask", "answer", "settle", "write", "checkpoint", "kill", "again"])
        if step == "ask":
            self.ask(job, chance.randint(1, 4))
        elif step == "answer" and self.asked:
            self.answer(chance.choice(self.asked))
        elif step == "settle":
            self.settle(job, chance.randint(1, 5))
        elif step == "write":
            job.write_answers()
        elif step == "checkpoint":
            self.checkpoint(job)
        elif step == "again":
            self.asked += [ask.custom_id for ask in job.due(1.0, lambda _: 1.0)]
        elif step == "kill":
            raise Killed

    def lines(self) -> list[dict[str, Any]]:
        return [orjson.loads(line) for line in (self.folder / "out").read_bytes().splitlines()]


rows = st.lists(st.sampled_from([*"abcdefghij", "!"]), min_size=1, max_size=25)


@settings(max_examples=150, deadline=None)
@given(rows, st.randoms(use_true_random=False), st.sampled_from([None, 3 * MILLI]))
def test_any_kills_and_any_order_end_complete_in_order_and_each_id_is_paid_once(ids: list[str], chance: Random, limit: int | None) -> None:
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(job_module, "BATCH", 3)
        fuse = Fuse(patch)
        world = World(Path(folder), ids, limit)
        job = world.start()
        for _ in range(400):
            if job.finished:
                break
            fuse.left = chance.choice([None, 0, 1, 2, 3, 5])
            try:
                world.step(job, chance)
            except Killed:
                world.kill(job)
                job = world.start()
            fuse.left = None
            if limit is not None:
                assert job.budget.spent + job.budget.reserved <= limit
        while not job.finished:
            world.ask(job, 5)
            for custom_id in list(job.outstanding):
                world.answer(custom_id)
            world.settle(job, 1000)
        while job.write_answers():
            pass
        if job.files.answers.rows < job.total:
            assert limit is not None
            job.files.answers.write(list(job.open_rows()))
        lines = world.lines()
        assert [line["custom_id"] for line in lines] == [f"row-{n + 1}" if i == "!" else i for n, i in enumerate(ids)]
        good = {line["custom_id"] for line in lines if line["error"] is None}
        assert job.totals.cost_pico == len(good) * MILLI
        if limit is None:
            assert good == set(ids) - {"!"}
            assert job.counts.final == job.total
        else:
            assert len(good) == min(3, len(set(ids) - {"!"}))
        world.kill(job)


def test_a_row_is_on_disk_as_asked_before_it_is_given_out(tmp_path: Path) -> None:
    world = World(tmp_path, list("abc"))
    job = world.start()
    world.ask(job, 2)
    world.kill(job)
    assert set(world.start().outstanding) == {"a", "b"}


def test_a_row_in_flight_at_a_kill_keeps_its_reservation(tmp_path: Path) -> None:
    world = World(tmp_path, list("abc"), limit=2 * MILLI)
    job = world.start()
    world.ask(job, 5)
    assert world.asked == ["a", "b"]
    world.kill(job)
    again = world.start()
    assert again.budget.reserved == 2 * MILLI
    world.ask(again, 5)
    assert world.asked == ["a", "b"]


def test_a_row_dearer_than_all_that_is_left_does_not_hold_up_cheaper_ones(tmp_path: Path) -> None:
    world = World(tmp_path, list("abc"), limit=2 * MILLI)
    job = world.start()
    job.cap_of = lambda row: 5 * MILLI if row.custom_id == "a" else MILLI
    world.ask(job, 5)
    assert set(job.outstanding) == {"b", "c"}
    for custom_id in "bc":
        world.answer(custom_id)
    world.settle(job, 9)
    assert job.finished
    assert [orjson.loads(line)["error"] and orjson.loads(line)["error"]["code"] for line in job.open_rows()] == ["over_budget", None, None]


def test_a_row_whose_most_is_not_known_is_an_error_and_is_not_sent(tmp_path: Path) -> None:
    def unknown(_row: Row) -> int:
        raise Unpriced("no price is known")

    world = World(tmp_path, ["a"], limit=MILLI)
    job = world.start()
    job.cap_of = unknown
    world.ask(job, 5)
    assert job.finished
    job.write_answers()
    assert world.lines()[0]["error"]["code"] == "unpriced"


def test_what_is_given_out_under_a_budget_carries_its_reservation(tmp_path: Path) -> None:
    world = World(tmp_path, ["a"], limit=MILLI)
    job = world.start()
    [ask] = job.take(1, due=0.0)
    assert orjson.loads(ask.value)["engine"]["max_cost_usd"] == "0.001"


def test_others_responses_repeats_and_rubbish_change_nothing(tmp_path: Path) -> None:
    world = World(tmp_path, list("ab"))
    job = world.start()
    world.ask(job, 5)
    world.answer("a")
    world.answer("a")
    world.responses.append((request_key("t", "j", "b"), b"rubbish"))
    world.responses.append((request_key("t", "other", "b"), world.responses[0][1]))
    world.responses.append((request_key("other", "j", "b"), world.responses[0][1]))
    world.settle(job, 9)
    assert set(job.outstanding) == {"b"}
    assert job.totals.cost_pico == MILLI
    assert "is no response" in job.notes[0]


def test_a_repeat_at_a_temperature_is_told_once(tmp_path: Path) -> None:
    world = World(tmp_path, [])
    hot = {"messages": [{"role": "user", "content": "dice"}], "temperature": 1}
    (tmp_path / "in").write_bytes(b"".join(orjson.dumps({"custom_id": i, "body": hot}) + b"\n" for i in "abc"))
    job = world.start()
    world.ask(job, 5)
    assert len(job.notes) == 1
    assert "row 2 repeats the prompt of row 1" in job.notes[0]


def test_failed_rows_are_marked_again_after_a_kill_in_the_middle_of_a_retry(tmp_path: Path) -> None:
    world = World(tmp_path, list("ab"))
    job = world.start()
    world.ask(job, 5)
    world.answer("a", ok=False)
    world.answer("b")
    world.settle(job, 9)
    world.checkpoint(job)
    world.kill(job)
    job = world.start(retry_failed=True)
    world.ask(job, 5)
    assert world.asked == ["a", "b", "a"]
    world.kill(job)
    job = world.start()
    assert set(job.outstanding) == {"a"}
    assert job.files.rewriting

"""A job without Kafka: any order of responses, with a kill after any step, ends complete, in order, and within its budget."""

import tempfile
from collections.abc import Callable
from decimal import Decimal
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
from inference_engine.cli.job import Ask, Job
from inference_engine.cli.job_files import JobFiles, JobRequest, open_job
from inference_engine.cli.outcome import Totals
from inference_engine.cli.rows import Row, RowDefaults, request_key
from inference_engine.cli.run import RunResult
from inference_engine.cli.run_command import summary_table
from inference_engine.cli.spool import AnswersFile, Journal, RowIndex
from inference_engine.cli.state import JobDatabase
from inference_engine.pipeline.errors import Unpriced
from inference_engine.pipeline.respond import usd

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
        for owner, name in (
            (RowIndex, "put"),
            (Journal, "append"),
            (JobDatabase, "put"),
            (JobDatabase, "put_spent"),
            (JobDatabase, "put_most"),
            (AnswersFile, "write"),
        ):
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

    def __init__(self, folder: Path, ids: list[str], limit: int | None = None, caps: tuple[int, ...] = (MILLI,)) -> None:
        self.folder, self.ids, self.limit, self.caps = folder, ids, limit, caps
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
        job = Job(opened.files, "t", opened.total, opened.defaults, Budget(self.limit), lambda _row: self.caps)
        job.restore()
        self.read = self.committed
        if opened.reask:
            retry_failed.reask_failed(job)
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
    job.caps_of = lambda row: (5 * MILLI if row.custom_id == "a" else MILLI,)
    world.ask(job, 5)
    assert set(job.outstanding) == {"b", "c"}
    for custom_id in "bc":
        world.answer(custom_id)
    world.settle(job, 9)
    assert job.finished
    assert [orjson.loads(line)["error"] and orjson.loads(line)["error"]["code"] for line in job.open_rows()] == ["over_budget", None, None]


def test_a_row_whose_most_is_not_known_is_an_error_and_is_not_sent(tmp_path: Path) -> None:
    def unknown(_row: Row) -> tuple[int, ...]:
        raise Unpriced("no price is known")

    world = World(tmp_path, ["a"], limit=MILLI)
    job = world.start()
    job.caps_of = unknown
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


class Provider:
    """Bills every call and answers only some, under an engine that knows what it may spend on each row: as the ledger decides."""

    def __init__(self, world: World, cap: int = MILLI) -> None:
        self.world, self.cap = world, cap
        self.billed: dict[str, int] = {}
        """By row, for calls without an answer; pico-dollars."""
        self.calls: list[str] = []
        self.answered: dict[str, bytes] = {}

    def serve(self, asks: list[Ask], drops: int) -> None:
        """`drops`: how many more calls of each row stay without an answer."""
        for ask in asks:
            key = request_key("t", "j", ask.custom_id)
            if ask.custom_id in self.answered:
                self.world.responses.append((key, self.answered[ask.custom_id]))
                continue
            engine = orjson.loads(ask.value)["engine"]
            limit = int(Decimal(engine["max_cost_usd"]) * 10**12) if "max_cost_usd" in engine else None
            dropped = self.billed.get(ask.custom_id, 0)
            code = None
            while code is None and dropped < drops * self.cap:
                if limit is not None and dropped + self.cap > limit:
                    code = "over_budget"
                else:
                    self.calls.append(ask.custom_id)
                    dropped += self.cap
            if code is None and limit is not None and dropped + self.cap > limit:
                code = "over_budget"
            self.billed[ask.custom_id] = dropped
            line = response_line(ask.custom_id, "t", "j", ambiguous_cap_usd=usd(dropped))
            if code is None:
                self.calls.append(ask.custom_id)
                self.answered[ask.custom_id] = orjson.dumps(line)
            else:
                line = as_error(line, code)
                line["engine"]["max_cost_usd"] = engine["max_cost_usd"]
            self.world.responses.append((key, orjson.dumps(line)))

    @property
    def bill(self) -> int:
        return self.cap * len(self.calls)


def work(world: World, job: Job, provider: Provider, drops: int, *, room: int = 2) -> None:
    """Until the job is done or has no room left."""
    for _ in range(200):
        if job.finished:
            return
        provider.serve(job.take(room, due=0.0), drops)
        world.settle(job, 100)
    raise AssertionError("the job does not end")


def test_calls_that_were_billed_and_dropped_count_against_the_budget(tmp_path: Path) -> None:
    world = World(tmp_path, [f"r{n}" for n in range(30)], limit=3 * MILLI)
    job = world.start()
    provider = Provider(world)
    work(world, job, provider, drops=1)
    assert provider.bill <= 3 * MILLI
    assert job.totals.possibly_pico == provider.bill
    assert {orjson.loads(line)["error"]["code"] for line in job.open_rows() if orjson.loads(line)["error"]} == {"over_budget"}


@pytest.mark.parametrize("killed", [False, True])
def test_a_row_whose_call_was_billed_and_dropped_is_asked_again_while_the_budget_has_room(tmp_path: Path, killed: bool) -> None:
    world = World(tmp_path, list("abc"), limit=100 * MILLI)
    job = world.start()
    provider = Provider(world)
    provider.serve(job.take(5, due=0.0), drops=2)
    if killed:
        world.kill(job)
        job = world.start()
    world.settle(job, 9)
    work(world, job, provider, drops=2)
    assert (job.counts.answered, job.counts.failed) == (3, 0)
    assert sorted(provider.calls) == sorted("abc" * 3)
    assert (job.totals.cost_pico, job.totals.ambiguous_cap_pico) == (3 * MILLI, 6 * MILLI)
    assert job.budget.spent == provider.bill
    assert job.budget.reserved == 0


def test_a_row_that_waits_for_a_higher_budget_says_what_it_took_and_goes_on_with_it(tmp_path: Path) -> None:
    world = World(tmp_path, ["a"], limit=MILLI)
    job = world.start()
    provider = Provider(world)
    work(world, job, provider, drops=1)
    [line] = job.open_rows()
    assert "may have taken $0.001" in orjson.loads(line)["error"]["message"]
    world.checkpoint(job)
    world.kill(job)
    world.limit = 2 * MILLI
    job = world.start()
    assert job.budget.spent == MILLI
    work(world, job, provider, drops=1)
    assert (job.counts.answered, provider.bill, job.totals.possibly_pico) == (1, 2 * MILLI, 2 * MILLI)


def test_a_row_to_be_asked_again_waits_for_the_room_that_others_give_back(tmp_path: Path) -> None:
    world = World(tmp_path, list("ab"), limit=2 * MILLI)
    job = world.start()
    provider = Provider(world)
    asks = {ask.custom_id: ask for ask in job.take(5, due=0.0)}
    assert job.take(5, due=0.0) == []
    provider.serve([asks["a"]], drops=1)
    world.settle(job, 9)
    assert job.take(5, due=0.0) == []
    assert not job.finished
    line = response_line("b", "t", "j", cost_usd="0", cache={"tier": "exact"})
    world.responses.append((request_key("t", "j", "b"), orjson.dumps(line)))
    world.settle(job, 9)
    assert [ask.custom_id for ask in job.take(5, due=0.0)] == ["a"]


def test_the_money_of_an_answer_stands_once_in_the_file_however_many_rows_share_it(tmp_path: Path) -> None:
    world = World(tmp_path, list("aba"))
    job = world.start()
    world.ask(job, 5)
    line = response_line("a", "t", "j", counterfactual_usd="0.003", savings={"routing": "0.002"})
    world.responses.append((request_key("t", "j", "a"), orjson.dumps(line)))
    world.answer("b")
    world.settle(job, 9)
    job.write_answers()
    first, _, copy = world.lines()
    assert first == line
    assert (copy["custom_id"], copy["response"]) == ("a", line["response"])
    assert [copy["engine"][name] for name in ("cost_usd", "counterfactual_usd")] == ["0", "0"]
    assert copy["engine"]["savings"] == {"routing": "0"}


def test_on_another_kafka_what_calls_took_before_comes_on_top(tmp_path: Path) -> None:
    world = World(tmp_path, ["a"], limit=5 * MILLI)
    job = world.start()
    provider = Provider(world)
    provider.serve(job.take(5, due=0.0), drops=1)
    world.settle(job, 9)
    world.kill(job)
    job = world.start()
    job.forget_calls()
    world.responses.clear()
    world.read = 0
    [ask] = job.take(5, due=0.0)
    assert orjson.loads(ask.value)["engine"]["max_cost_usd"] == "0.001"
    world.answer("a")
    world.settle(job, 9)
    assert (job.totals.cost_pico, job.totals.ambiguous_cap_pico, job.budget.spent) == (MILLI, MILLI, 2 * MILLI)


def test_the_summary_has_a_row_for_what_may_have_been_paid_on_top_only_where_there_is_some(tmp_path: Path) -> None:
    world = World(tmp_path, list("ab"), limit=100 * MILLI)
    job = world.start()
    work(world, job, Provider(world), drops=1)
    for totals, wanted in ((job.totals, ["$0.00200"]), (Totals(cost_pico=2 * MILLI), [])):
        summary = totals.summary(requests=2, answered=2, failed=0, seconds=1.0)
        table = summary_table(RunResult("j", summary))
        cells = [list(column.cells) for column in table.columns]
        assert [cells[1][n] for n, name in enumerate(cells[0]) if name == "possibly paid on top"] == wanted
    assert orjson.loads(job.totals.summary(requests=2, answered=2, failed=0, seconds=1.0).as_json())["possibly_paid_usd"] == 0.002


def test_a_limit_of_the_rows_own_is_final(tmp_path: Path) -> None:
    world = World(tmp_path, ["a"], limit=100 * MILLI)
    (tmp_path / "in").write_bytes(orjson.dumps({"custom_id": "a", "prompt": "a", "engine": {"max_cost_usd": "0.0015"}}) + b"\n")
    job = world.start()
    provider = Provider(world)
    work(world, job, provider, drops=1)
    assert (job.counts.failed, provider.bill) == (1, MILLI)


def test_an_engine_that_knows_a_dearer_call_is_believed_in_the_end(tmp_path: Path) -> None:
    world = World(tmp_path, ["a"], limit=100 * MILLI)
    job = world.start()
    provider = Provider(world, cap=2 * MILLI)
    work(world, job, provider, drops=0)
    assert (job.counts.failed, provider.bill) == (1, 0)
    job.write_answers()
    assert "--max-cost" in world.lines()[0]["error"]["message"]


def test_a_failed_row_asked_again_is_counted_once_and_may_cost_what_it_may_have_cost_before(tmp_path: Path) -> None:
    world = World(tmp_path, list("ab"), limit=3 * MILLI)
    job = world.start()
    job.take(5, due=0.0)
    for custom_id in "ab":
        line = response_line(custom_id, "t", "j", ambiguous_cap_usd="0.001")
        world.responses.append((request_key("t", "j", custom_id), orjson.dumps(as_error(line, "provider_unavailable"))))
    world.settle(job, 9)
    world.checkpoint(job)
    world.kill(job)
    job = world.start(retry_failed=True)
    assert job.budget.spent == 2 * MILLI
    [ask] = job.take(5, due=0.0)
    assert orjson.loads(ask.value)["engine"]["max_cost_usd"] == "0.002"
    line = response_line("a", "t", "j", ambiguous_cap_usd="0.001", attempts=2)
    world.responses.append((request_key("t", "j", "a"), orjson.dumps(line)))
    world.settle(job, 9)
    world.kill(job)
    job = world.start()
    assert (job.totals.cost_pico, job.totals.ambiguous_cap_pico, job.totals.provider_calls) == (MILLI, 2 * MILLI, 3)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 12), st.integers(0, 3), st.integers(1, 20), st.randoms(use_true_random=False))
def test_whatever_is_dropped_and_wherever_it_is_killed_the_bill_stays_within_the_budget(
    count: int, drops: int, limit: int, chance: Random
) -> None:
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(job_module, "BATCH", 3)
        fuse = Fuse(patch)
        world = World(Path(folder), [f"r{n}" for n in range(count)], limit * MILLI)
        job, provider = world.start(), Provider(world)
        for _ in range(30):
            fuse.left = chance.choice([None, 0, 1, 2, 3, 5, 8])
            try:
                asks = job.take(chance.randint(1, 4), due=0.0) + job.due(1.0, lambda _: 2.0)
                provider.serve(asks, drops)
                world.settle(job, chance.randint(1, 5))
                if chance.random() < 0.3:
                    world.checkpoint(job)
                if chance.random() < 0.2:
                    raise Killed
            except Killed:
                world.kill(job)
                job = world.start()
            fuse.left = None
            assert job.budget.spent + job.budget.reserved <= limit * MILLI
        for _ in range(200):
            if job.finished:
                break
            provider.serve(job.take(5, due=0.0) + job.due(1e9, lambda _: 0.0), drops)
            world.settle(job, 1000)
        assert job.finished
        assert provider.bill <= limit * MILLI
        assert job.totals.possibly_pico == job.budget.spent
        if limit >= count * (drops + 1):
            assert job.counts.answered == count
        world.kill(job)

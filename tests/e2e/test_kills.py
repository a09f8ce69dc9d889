"""Processes die in the middle of a job: nothing is lost, and every payment that a crash made twice stands in the ledger."""

from collections import Counter
from pathlib import Path

import pytest

from .conftest import MakeEngine
from .engine import MODEL, Accounts, Engine, Process, expected_answer, read_rows, row, text_of, write_rows
from .waiting import until

ROWS = 160
IN_THE_MIDDLE = 40
SETTINGS = {"MAX_IN_FLIGHT": "48", "CALL_TIMEOUT_SECONDS": "3"}
"""Some twenty calls at once, so that a job of this size has a middle."""


class Killed:
    """A job of unique prompts, and what must hold of it whatever was killed."""

    def __init__(self, engine: Engine, folder: Path) -> None:
        self.engine = engine
        self.texts = [f"question {i} of {engine.prefix}" for i in range(ROWS)]
        self.source = write_rows(folder / "in.jsonl", [row(f"r{i}", text) for i, text in enumerate(self.texts)])
        self.target = folder / "out.jsonl"

    def start(self) -> Process:
        return self.engine.start_run(self.source, self.target)

    def wait_for_the_middle(self, calls: int = IN_THE_MIDDLE) -> None:
        until(lambda: len(self.engine.provider.bill()) >= calls, f"{calls} calls are paid", within_s=60)

    def check_answers(self) -> None:
        """Complete, in input order, each row with its own answer, no id with two."""
        lines = read_rows(self.target)
        assert [line["custom_id"] for line in lines] == [f"r{i}" for i in range(ROWS)]
        assert [line["error"] for line in lines if line["error"] is not None] == []
        assert [text_of(line) for line in lines] == [expected_answer(text) for text in self.texts]
        assert {custom_id: found for custom_id, found in self._distinct().items() if len(found) != 1} == {}

    def _distinct(self) -> dict[str, set[tuple[str, str]]]:
        jobs = {line.engine.job for line in self.engine.responses()}
        assert len(jobs) == 1
        return self.engine.distinct(jobs.pop())

    def check_money(self) -> int:
        """How many calls were paid twice: each of them is an ambiguous row."""
        bill, accounts = self.engine.provider.bill(), until(self._settled, "every intent has its outcome")
        again = len(bill) - len({line.prompt for line in bill})
        assert again <= len(accounts.ambiguous)
        charged = sum(line.pico for line in bill)
        assert accounts.certain <= charged <= accounts.certain + accounts.caps
        per_prompt = Counter(line.prompt for line in bill)
        assert max(per_prompt.values()) <= 2
        assert len(per_prompt) == ROWS
        return again

    def _settled(self) -> Accounts | None:
        accounts = self.engine.ledger()
        return None if accounts.open else accounts


def test_after_kill_9_of_the_worker_a_new_one_answers_the_rest_and_owns_up_to_what_was_paid_twice(
    make_engine: MakeEngine, tmp_path: Path
) -> None:
    engine = make_engine(**SETTINGS | {"CALL_TIMEOUT_SECONDS": "10"})
    job = Killed(engine, tmp_path)
    held = job.texts[IN_THE_MIDDLE]
    engine.provider.fail("hang-billed", match=held, count=1)
    worker, run = engine.start_worker(), job.start()
    until(lambda: engine.provider.billed(MODEL, [held]), "a call is paid whose answer does not come", within_s=60)
    worker.kill()
    assert run.alive
    engine.start_worker(wait=False)
    assert run.wait(90) == 0, run.tail()
    job.check_answers()
    assert job.check_money() >= 1
    assert engine.provider.billed(MODEL, [held])[held] == 2
    assert engine.ledger().ambiguous


def test_after_kill_9_of_run_the_same_command_completes_the_file_and_nothing_is_paid_twice(make_engine: MakeEngine, tmp_path: Path) -> None:
    engine = make_engine(**SETTINGS)
    job = Killed(engine, tmp_path)
    engine.start_worker()
    for calls in (IN_THE_MIDDLE, 2 * IN_THE_MIDDLE):
        run = job.start()
        job.wait_for_the_middle(calls)
        run.kill()
    assert job.start().wait(90) == 0
    job.check_answers()
    assert job.check_money() == 0
    assert not engine.ledger().ambiguous


def test_after_kill_9_of_worker_and_run_the_job_goes_on_where_it_was(make_engine: MakeEngine, tmp_path: Path) -> None:
    engine = make_engine(**SETTINGS)
    job = Killed(engine, tmp_path)
    worker, run = engine.start_worker(), job.start()
    job.wait_for_the_middle()
    run.kill()
    worker.kill()
    engine.start_worker(wait=False)
    assert job.start().wait(90) == 0
    job.check_answers()
    job.check_money()


@pytest.mark.parametrize("how", ["killed", "stopped"])
def test_of_two_workers_that_share_the_partitions_one_ends_and_the_other_goes_on(make_engine: MakeEngine, tmp_path: Path, how: str) -> None:
    engine = make_engine(**SETTINGS)
    job = Killed(engine, tmp_path)
    first, second = engine.start_worker(0, wait=False), engine.start_worker(1, wait=False)

    def shared() -> bool:
        held = [set(worker.health()["partitions"]) for worker in (first, second) if worker.ready()]
        return all(held) and sorted(p for part in held for p in part) == [0, 1, 2, 3]

    until(shared, "both workers hold partitions", within_s=90)
    run = job.start()
    job.wait_for_the_middle()
    if how == "killed":
        second.kill()
    else:
        second.terminate()
    assert run.wait(90) == 0, run.tail()
    job.check_answers()
    again = job.check_money()
    if how == "stopped":
        assert second.wait(30) == 0, second.tail()
        assert again == len(engine.ledger().ambiguous) == 0


def test_a_worker_that_is_asked_to_stop_writes_down_its_calls_in_flight_and_the_next_one_pays_none_of_them_again(
    make_engine: MakeEngine, tmp_path: Path
) -> None:
    engine = make_engine(**SETTINGS)
    job = Killed(engine, tmp_path)
    worker, run = engine.start_worker(), job.start()
    job.wait_for_the_middle()
    worker.terminate()
    assert worker.wait(30) == 0, worker.tail()
    accounts = engine.ledger()
    assert not accounts.open, "calls were cut short: their intents have no outcome"
    assert sum(line.pico for line in engine.provider.bill()) == accounts.certain
    assert len(engine.provider.bill()) < ROWS, "it had ended before: this shows nothing"
    engine.start_worker(wait=False)
    assert run.wait(90) == 0, run.tail()
    job.check_answers()
    assert job.check_money() == 0
    assert not engine.ledger().ambiguous

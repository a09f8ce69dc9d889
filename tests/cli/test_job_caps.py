"""Under `--max-cost` a row is allowed the cheapest model's worst case first, and more where the engine says that it needs more."""

import tempfile
from decimal import Decimal
from pathlib import Path
from random import Random

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inference_engine.cli import job as job_module
from inference_engine.cli.job import Ask, Job
from inference_engine.cli.rows import request_key
from inference_engine.cli.run import RunResult
from inference_engine.cli.run_command import closing_lines
from inference_engine.pipeline.respond import usd

from .fake_engine import as_error, response_line
from .test_job import MILLI, Fuse, Killed, World

LADDER = (MILLI, 8 * MILLI, 100 * MILLI)


class Router:
    """Sends each row to one model, and never makes a call that can cost more than the row may; a call costs the whole cap."""

    def __init__(self, world: World, model_of: dict[str, int]) -> None:
        self.world, self.model_of = world, model_of
        self.bills: dict[str, int] = {}
        self.limits: list[tuple[str, int]] = []

    def serve(self, asks: list[Ask]) -> None:
        for ask in asks:
            limit = int(Decimal(orjson.loads(ask.value)["engine"]["max_cost_usd"]) * 10**12)
            self.limits.append((ask.custom_id, limit))
            cap = self.model_of.get(ask.custom_id, MILLI)
            line = response_line(ask.custom_id, "t", "j", cost_usd=usd(cap))
            if ask.custom_id not in self.bills and cap > limit:
                line = as_error(line, "over_budget")
                line["engine"]["max_cost_usd"] = usd(limit)
            else:
                self.bills[ask.custom_id] = cap
            self.world.responses.append((request_key("t", "j", ask.custom_id), orjson.dumps(line)))

    @property
    def bill(self) -> int:
        return sum(self.bills.values())


def work(world: World, job: Job, router: Router) -> None:
    for _ in range(300):
        if job.finished:
            return
        router.serve(job.take(50, due=0.0) + job.due(1e9, lambda _: 0.0))
        world.settle(job, 1000)
    raise AssertionError("the job does not end")


def test_rows_fly_together_though_the_dearest_models_worst_case_would_let_none_fly(tmp_path: Path) -> None:
    world = World(tmp_path, [f"r{n}" for n in range(40)], limit=50 * MILLI, caps=LADDER)
    assert len(world.start().take(100, due=0.0)) == 40


def test_with_ample_money_each_model_may_be_chosen_at_once(tmp_path: Path) -> None:
    world = World(tmp_path, list("ab"), limit=200 * MILLI, caps=LADDER)
    router = Router(world, {"a": 100 * MILLI})
    work(world, world.start(), router)
    assert set(router.limits) == {("a", 100 * MILLI), ("b", 100 * MILLI)}


@pytest.mark.parametrize("killed", [False, True])
def test_a_row_whose_model_costs_more_is_asked_again_with_more_and_keeps_it_over_a_kill(tmp_path: Path, killed: bool) -> None:
    world = World(tmp_path, [f"r{n}" for n in range(20)], limit=50 * MILLI, caps=LADDER)
    job, router = world.start(), Router(world, {"r3": 8 * MILLI})
    router.serve(job.take(50, due=0.0))
    world.settle(job, 1000)
    asks = job.take(50, due=0.0)
    assert [ask.custom_id for ask in asks] == ["r3"]
    if killed:
        world.checkpoint(job)
        world.kill(job)
        job = world.start()
        asks = job.take(50, due=0.0) + job.due(1e9, lambda _: 0.0)
    assert job.budget.reserved == 8 * MILLI
    router.serve(asks)
    world.settle(job, 1000)
    assert job.take(50, due=0.0) == []
    assert job.finished
    assert (job.counts.answered, router.bill, router.limits[-1]) == (20, 27 * MILLI, ("r3", 8 * MILLI))


def test_a_row_that_waits_for_much_room_holds_up_none_that_needs_little(tmp_path: Path) -> None:
    world = World(tmp_path, [f"r{n}" for n in range(30)], limit=9 * MILLI, caps=(MILLI, 9 * MILLI))
    job, router = world.start(), Router(world, {"r0": 9 * MILLI})
    router.serve(job.take(2, due=0.0)[:1])
    world.settle(job, 1)
    assert [ask.custom_id for ask in job.take(2, due=0.0)] == ["r2", "r3"]


def test_rows_without_room_say_how_much_the_cheapest_model_needs(tmp_path: Path) -> None:
    world = World(tmp_path, list("ab"), limit=MILLI // 2, caps=LADDER)
    job = world.start()
    assert job.take(5, due=0.0) == []
    assert job.finished
    assert job.least_needed() == MILLI
    assert all("up to $0.001" in orjson.loads(line)["error"]["message"] for line in job.open_rows())
    result = RunResult("j", job.totals.summary(requests=2, answered=0, failed=2, seconds=1.0), unsent=2, least_needed_pico=MILLI)
    [said] = closing_lines(result, None)  # type: ignore[arg-type]
    assert "the cheapest needs $0.001" in said
    assert "max_tokens" in said


@settings(max_examples=25, deadline=None)
@given(st.lists(st.sampled_from(LADDER), min_size=1, max_size=10), st.integers(1, 300), st.randoms(use_true_random=False))
def test_whatever_models_are_chosen_and_wherever_it_is_killed_the_bill_stays_within_the_budget(
    models: list[int], limit: int, chance: Random
) -> None:
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(job_module, "BATCH", 3)
        fuse = Fuse(patch)
        ids = [f"r{n}" for n in range(len(models))]
        world = World(Path(folder), ids, limit * MILLI, LADDER)
        job, router = world.start(), Router(world, dict(zip(ids, models, strict=True)))
        for _ in range(15):
            fuse.left = chance.choice([None, 0, 1, 2, 3, 5, 8])
            try:
                router.serve(job.take(chance.randint(1, 4), due=0.0) + job.due(1.0, lambda _: 2.0))
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
        work(world, job, router)
        assert router.bill == job.totals.possibly_pico == job.budget.spent <= limit * MILLI
        if limit * MILLI >= sum(models) + max(LADDER):
            assert job.counts.answered == len(ids)
        world.kill(job)

"""The batch lane: half the price where there is time, nothing submitted twice, nothing forgotten, and in time when it gets late."""

import asyncio
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from inference_engine.agents.attempt import CallSettings
from inference_engine.connectors.simulated_batches import BatchOptions
from inference_engine.connectors.simulation import FaultRule
from inference_engine.pipeline.errors import Ambiguous, Rejected, Unavailable
from inference_engine.pipeline.held import Batch
from inference_engine.pipeline.models import Catalogue, Model
from inference_engine.pipeline.ports import ProviderReply
from inference_engine.pipeline.prefix import Lifetime, Terms
from inference_engine.pipeline.provider_batch import WayPrices
from inference_engine.schemas import packets
from inference_engine.schemas.answers import ErrorInfo
from inference_engine.schemas.ledger import BatchPrepared, Charged, Completion, Failure, Intent, Parked
from inference_engine.schemas.record import Lane
from inference_engine.schemas.requests import Call

from .batchers import BATCH_PRICE, HOUR, POINTS, SYNC_PRICE, TRAITS, BatchWorker, BatchWorld, batch_worker, patient
from .payers import CAP, REPLY, World, call, now
from .test_call import RolledBack
from .virtual_time import run


@pytest.fixture
def world(tmp_path: Path) -> BatchWorld:
    return BatchWorld(World(), tmp_path)


def open_batches(of: BatchWorker) -> list[Batch]:
    return of.worker.ledger._owned[0].ledger.holdings.open_batches()


def ended(world: BatchWorld) -> dict[str, list[str]]:
    """How each request ended."""
    found: dict[str, list[str]] = {}
    for record in world.world.records():
        if isinstance(record, Completion | Failure):
            found.setdefault(record.request.identity.custom_id, []).append(record.type)
    return found


def test_calls_with_time_go_into_one_batch_at_half_the_price_and_their_packets_are_acknowledged_long_before(world: BatchWorld) -> None:
    async def main() -> float:
        async with batch_worker(world) as one:
            await one.run(*(patient(f"r{i}") for i in range(5)))
            acknowledged = asyncio.get_running_loop().time()
            await one.until(lambda: "batch_closed" in world.records)
            assert world.totals(one.worker) == (5 * BATCH_PRICE, 0, 0)
            assert one.worker.ledger._owned[0].ledger.holdings.held == {}
            return acknowledged

    assert run(main()) < 1
    kinds = Counter(world.records)
    assert kinds == {"parked": 5, "batch_prepared": 1, "batch_submitted": 1, "completion": 5, "batch_closed": 1}
    assert world.world.provider.calls == []
    assert world.paid_in_batches() == 5
    assert len(world.forgotten) == 1
    [prepared] = [r for r in world.world.records() if isinstance(r, BatchPrepared)]
    assert (prepared.reserved_pico, len(prepared.members), len(prepared.file_sha256)) == (5 * 500, 5, 64)
    assert list(world.folder.iterdir()) == []


@pytest.mark.parametrize(
    "asked",
    [
        call("no deadline"),
        patient("too soon", hours=1),
        patient("express", lane=Lane.EXPRESS),
        patient("its own model", model="big").model_copy(update={"route": call("x", "none-such", "small").route}),
    ],
    ids=lambda c: c.request.identity.custom_id,
)
def test_calls_for_which_a_batch_is_no_way_are_made_at_once(world: BatchWorld, asked: Any) -> None:
    async def main() -> None:
        async with batch_worker(world) as one:
            await one.run(asked)

    run(main())
    assert world.records == ["intent", "completion"]
    assert len(world.world.provider.calls) == 1


def test_where_a_batch_costs_no_less_the_call_is_made_at_once(world: BatchWorld) -> None:
    world.prices = WayPrices(sync=SYNC_PRICE, batch=SYNC_PRICE)

    async def main() -> None:
        async with batch_worker(world) as one:
            await one.run(patient())

    run(main())
    assert world.records == ["intent", "completion"]


def test_a_call_that_comes_again_while_the_ledger_owns_it_is_acknowledged_and_one_that_has_ended_is_answered_again(
    world: BatchWorld,
) -> None:
    async def main() -> None:
        async with batch_worker(world) as one:
            await one.run(patient())
            await one.run(patient())
            await one.until(lambda: "batch_submitted" in world.records)
            await one.run(patient())
            await one.until(lambda: "batch_closed" in world.records)
            await one.run(patient())

    run(main())
    assert Counter(world.records)["parked"] == 1
    assert world.paid_in_batches() == 1
    assert [r.type for r in world.world.reemitted] == ["completion"]


def test_files_are_split_at_the_provider_limits(world: BatchWorld) -> None:
    async def main() -> None:
        async with batch_worker(world) as one:
            await one.run(*(patient(f"r{i}") for i in range(230)))
            await one.until(lambda: world.records.count("batch_closed") == 3)

    run(main())
    sizes = [len(r.members) for r in world.world.records() if isinstance(r, BatchPrepared)]
    assert sorted(sizes) == [30, 100, 100]
    assert world.paid_in_batches() == 230


@pytest.mark.parametrize(("point", "passage"), [*((point, 1) for point in POINTS), ("after_parked", 3), ("in_collection", 3)])
def test_a_crash_at_any_point_neither_submits_again_nor_forgets(
    world: BatchWorld, monkeypatch: pytest.MonkeyPatch, point: str, passage: int
) -> None:
    """The calls come again, as they do where their packets were not acknowledged."""
    calls = [patient(f"r{i}") for i in range(6)]

    async def main() -> None:
        async with batch_worker(world, monkeypatch, point=point, passage=passage) as one:
            for c in calls:
                one.worker.start(c)
            await asyncio.wait_for(one.death.happened.wait(), 48 * HOUR)
        async with batch_worker(world, monkeypatch) as two:
            await two.run(*calls)
            # What a predecessor has deleted is not asked for: it would never be found.
            await two.until(within_s=6 * HOUR, done=lambda: len(ended(world)) == 6 and not open_batches(two))
            certain, ambiguous, still_open = world.totals(two.worker)
            assert (ambiguous, still_open) == (0, 0)
            assert certain == BATCH_PRICE * 6

    run(main())
    assert world.paid_in_batches() == 6
    assert world.world.provider.calls == []
    assert ended(world) == {f"r{i}": ["completion"] for i in range(6)}
    assert len(world.created) == 1
    assert world.forgotten


def test_a_submission_whose_answer_was_lost_is_found_at_the_provider_and_not_repeated(world: BatchWorld) -> None:
    world.lose_answers = 1

    async def main() -> None:
        async with batch_worker(world) as one:
            await one.run(patient())
            await one.until(lambda: "batch_closed" in world.records)

    run(main())
    assert len(world.created) == 1
    assert world.records.count("batch_submitted") == 1


def test_a_submission_that_never_arrived_is_made_again_only_after_no_earlier_one_can_arrive_any_more(world: BatchWorld) -> None:
    world.lose_submits = 1

    async def main() -> None:
        async with batch_worker(world) as one:
            await one.run(patient())
            await one.until(lambda: "batch_closed" in world.records)

    run(main())
    [(at, _)] = world.created
    assert at >= 10 + 60 + 10 + TRAITS.settle_s
    assert Counter(world.records)["batch_void"] == 1
    assert world.paid_in_batches() == 1


def test_rows_that_come_to_nothing_are_handled_one_by_one(world: BatchWorld) -> None:
    texts = {"well": "", "expired": "[[batch:expired]]", "refused": "[[batch:errored]]", "busy": "[[fault:503]]", "broken": "[[fault:500]]",
             "useless": "[[fault:no-choices]]"}  # fmt: skip

    async def main() -> None:
        async with batch_worker(world) as one:
            await one.run(*(patient(name, text=f"{text} {name}") for name, text in texts.items()))
            await one.until(lambda: len(ended(world)) == len(texts))
            await one.until(lambda: not open_batches(one))

    run(main())
    assert ended(world) == {name: ["failure" if name == "refused" else "completion"] for name in texts}
    [refused] = [r for r in world.world.records() if isinstance(r, Failure)]
    assert refused.error.code == "provider_rejected"
    # What cost nothing may go into another batch; what cost something, or may have, is asked for at once.
    sync = {r.flight for r in world.world.records() if isinstance(r, Intent)}
    named = {r.flight: r.call.request.identity.custom_id for r in world.world.records() if isinstance(r, Parked)}
    assert {"broken", "useless"} <= {named[f] for f in sync}
    assert Counter(world.records)["ambiguous"] == 1
    assert Counter(world.records)["charged"] == 1


def test_after_a_row_of_unknown_cost_a_tenant_that_pays_once_at_most_gets_an_error(world: BatchWorld) -> None:
    world.world.on_ambiguous = "fail"

    async def main() -> None:
        async with batch_worker(world) as one:
            await one.run(patient("r1", text="[[fault:500]]"))
            await one.until(lambda: len(ended(world)) == 1)

    run(main())
    assert ended(world) == {"r1": ["failure"]}
    assert world.world.provider.calls == []


def test_a_batch_that_takes_too_long_is_ended_and_its_rows_are_asked_in_time_for_their_deadline(world: BatchWorld) -> None:
    world.options.turnaround_s = 20 * HOUR

    async def main() -> float:
        async with batch_worker(world) as one:
            await one.run(*(patient(f"r{i}", hours=6) for i in range(10)))
            await one.until(lambda: len(ended(world)) == 10)
            return asyncio.get_running_loop().time()

    took = run(main())
    assert took < 6 * HOUR
    assert set(map(tuple, ended(world).values())) == {("completion",)}
    assert 0 < world.paid_in_batches() < 10
    assert len(world.world.provider.calls) == 10 - world.paid_in_batches()


def test_rows_that_expire_at_the_provider_are_asked_in_time(world: BatchWorld) -> None:
    world.options = BatchOptions(turnaround_s=40 * HOUR, window_s=24 * HOUR)
    world.store.options = world.options

    async def main() -> None:
        async with batch_worker(world) as one:
            await one.run(*(patient(f"r{i}", hours=26) for i in range(4)))
            await one.until(lambda: len(ended(world)) == 4)

    run(main())
    assert set(map(tuple, ended(world).values())) == {("completion",)}
    assert world.paid_in_batches() == 2


def test_a_provider_that_refuses_batches_gets_plain_calls(world: BatchWorld) -> None:
    world.refuse = [Rejected("no batches for this key")]

    async def main() -> None:
        async with batch_worker(world) as one:
            await one.run(patient("r1"))
            await one.until(lambda: len(ended(world)) == 1)
            await one.run(patient("r2"))

    run(main())
    assert len(world.world.provider.calls) == 2
    assert "batch_void" in world.records


def test_a_provider_that_turns_batches_away_is_asked_again_later(world: BatchWorld) -> None:
    world.refuse = [Unavailable("busy", retry_after=120)]

    async def main() -> None:
        async with batch_worker(world) as one:
            await one.run(patient("r1"))
            await one.until(lambda: "batch_closed" in world.records)

    run(main())
    [(at, _)] = world.created
    assert at >= 130
    assert world.world.provider.calls == []


def test_a_job_that_exceeds_the_providers_queue_goes_there_in_smaller_batches_one_after_the_other_and_at_their_price(
    world: BatchWorld,
) -> None:
    """OpenAI says so only once the batch was made, and fails it as a whole."""
    world.options.queue_rows = 3

    async def main() -> None:
        async with batch_worker(world) as one:
            await one.run(*(patient(f"r{i}") for i in range(40)))
            await one.until(lambda: len(ended(world)) == 40, within_s=23 * HOUR)

    run(main())
    assert set(map(tuple, ended(world).values())) == {("completion",)}
    assert (world.world.provider.calls, world.paid_in_batches()) == ([], 40)
    assert len(set(world.forgotten)) == len(world.created)


def test_a_batch_whose_intents_were_rolled_back_is_not_looked_for_and_its_rows_go_into_the_next_one(world: BatchWorld) -> None:
    """Though the reader sees the records of aborted transactions."""
    fence = RolledBack(world.world, 1)
    world.fence = lambda _: fence

    async def main() -> float:
        async with batch_worker(world) as one:
            await one.run(patient("r1"))
            await fence.rolled_back.wait()
            for member in world.world.aborted:
                one.worker.ledger.learn(0, await world.world.topic.end(0), packets.ledger.decode(b"[" + member + b"]")[0])
            await one.until(lambda: bool(world.created), within_s=HOUR)
            created = asyncio.get_running_loop().time()
            await one.until(lambda: len(ended(world)) == 1)
            assert world.totals(one.worker) == (BATCH_PRICE, 0, 0)
            return created

    assert run(main()) < TRAITS.settle_s + 60
    assert world.records.count("batch_void") == 1
    assert len(world.created) == 1
    assert world.world.provider.calls == []


def told(name: str, of: int) -> Any:
    """A call of one of the groups that share a long system prompt."""
    made = patient(name)
    messages = [{"role": "system", "content": f"group {of} " + "word " * 1000}, {"role": "user", "content": f"question {name}"}]
    return made.model_copy(update={"request": made.request.model_copy(update={"body": {"messages": messages}})})


def test_rows_that_share_a_prefix_stand_side_by_side_marked_alike_and_each_request_gets_its_own_answer(world: BatchWorld) -> None:
    world.terms = Terms("breakpoints", 1024, 0.1, (Lifetime("30m", 1800, 1.25),), per_key_per_minute=2)
    calls = [told(f"r{i}", i % 3) for i in range(12)]

    async def main() -> None:
        async with batch_worker(world) as one:
            await one.run(*calls)
            await one.until(lambda: "batch_closed" in world.records)

    run(main())
    assert len(world.submitted) == 12
    heads = [row["body"]["messages"][0]["content"] for row in world.submitted]
    assert all("prompt_cache_breakpoint" in content[0] for content in heads)
    groups = [content[0]["text"].split()[1] for content in heads]
    assert sum(a != b for a, b in pairwise(groups)) == 2
    assert len({row["body"]["prompt_cache_key"] for row in world.submitted}) == 3
    asked = {row["custom_id"]: row["body"]["messages"][1] for row in world.submitted}
    done = [r for r in world.world.records() if isinstance(r, Completion)]
    assert len(done) == 12
    assert all(asked[r.attempt] == r.request.body["messages"][1] for r in done)
    [prepared] = [r for r in world.world.records() if isinstance(r, BatchPrepared)]
    assert prepared.file_bytes > sum(len(str(row)) for row in world.submitted) * 0.9


@pytest.mark.parametrize("terms", [None, Terms("automatic", 1024, 0.1, (Lifetime("", 300, 1.0),))])
def test_rows_of_similar_prompts_stand_side_by_side_in_the_file(world: BatchWorld, terms: Terms | None) -> None:
    world.terms = terms
    calls = [patient(f"r{i}", text=f"group {i % 3} row {i}").model_copy(update={"group": f"g{i % 3}"}) for i in range(9)]

    async def main() -> None:
        async with batch_worker(world) as one:
            await one.run(*calls)
            await one.until(lambda: "batch_closed" in world.records)

    run(main())
    rows = [row["body"]["messages"][0]["content"].split() for row in world.submitted]
    assert [(row[1], row[3]) for row in rows] == [(str(i % 3), str(i)) for i in (0, 3, 6, 1, 4, 7, 2, 5, 8)]


def test_a_row_that_is_short_or_marked_by_its_author_is_sent_as_it_is(world: BatchWorld) -> None:
    world.terms = Terms("breakpoints", 1024, 0.1, (Lifetime("30m", 1800, 1.25),), per_key_per_minute=15)
    own = [told(f"r{i}", 0) for i in range(2)]
    own = [c.model_copy(update={"request": c.request.model_copy(
        update={"body": {**c.request.body, "prompt_cache_key": "mine"}})}) for c in own]  # fmt: skip
    short = [patient(f"s{i}", text=f"short {i}") for i in range(2)]

    async def main() -> None:
        async with batch_worker(world) as one:
            await one.run(*own, *short)
            await one.until(lambda: "batch_closed" in world.records)

    run(main())
    sent = [row["body"] for row in world.submitted]
    assert len(sent) == 4
    assert sorted(body.get("prompt_cache_key", "") for body in sent) == ["", "", "mine", "mine"]
    assert not any("prompt_cache_options" in body or "prompt_cache_breakpoint" in str(body) for body in sent)


def test_a_cancelled_request_is_not_put_into_a_batch(world: BatchWorld) -> None:
    async def main() -> None:
        async with batch_worker(world) as one:
            await one.run(patient("r1"), patient("r2"))
            world.world.cancelled.add("r1")
            await one.until(lambda: len(ended(world)) == 2)

    run(main())
    assert ended(world) == {"r1": ["failure"], "r2": ["completion"]}
    assert world.paid_in_batches() == 1


def test_a_request_whose_own_limit_is_below_the_most_that_its_row_can_cost_is_not_submitted(world: BatchWorld) -> None:
    async def main() -> None:
        async with batch_worker(world) as one:
            await one.run(patient("r1", max_cost_pico=499), patient("r2", max_cost_pico=500))
            await one.until(lambda: len(ended(world)) == 2)

    run(main())
    assert ended(world) == {"r1": ["failure"], "r2": ["completion"]}


def test_a_batch_of_which_nobody_hears_again_is_booked_at_its_caps_and_its_requests_end(world: BatchWorld) -> None:
    async def main() -> None:
        async with batch_worker(world) as one:
            await one.run(patient("r1", hours=30))
            await one.until(lambda: "batch_submitted" in world.records)
            for batch in world.store.list("openai"):
                world.store.delete(batch)
            await one.until(lambda: "batch_closed" in world.records)
            await one.until(lambda: len(ended(world)) == 1)
            assert world.totals(one.worker)[1:] == (500, 0)

    run(main())


def test_the_successor_of_a_worker_that_lost_its_partition_collects_its_batches_and_the_loser_stops(world: BatchWorld) -> None:
    async def main() -> None:
        async with batch_worker(world) as old:
            await old.run(patient("r1"))
            await old.until(lambda: "batch_submitted" in world.records)
            await old.batches.revoked([0])
            await old.worker.ledger.revoked([0])
            async with batch_worker(world) as new:
                await new.until(lambda: "batch_closed" in world.records)

    run(main())
    assert world.paid_in_batches() == 1
    assert ended(world) == {"r1": ["completion"]}


def test_a_worker_that_stood_still_after_its_intents_does_not_submit(world: BatchWorld) -> None:
    async def main() -> None:
        async with batch_worker(world) as one:
            intend = one.worker.ledger.intend

            async def stalls(*args: Any, **more: Any) -> None:
                await intend(*args, **more)
                one.worker.ledger.intend = intend  # type: ignore[method-assign]
                await asyncio.sleep(11)

            one.worker.ledger.intend = stalls  # type: ignore[method-assign]
            await one.run(patient())
            await one.until(lambda: "batch_closed" in world.records)

    run(main())
    assert world.records.count("batch_void") == 1
    assert world.records.count("batch_prepared") == 2
    assert len(world.created) == 1


def test_what_is_shown_of_a_batch_grows_and_goes(world: BatchWorld) -> None:
    async def main() -> list[int]:
        async with batch_worker(world) as one:
            await one.run(*(patient(f"r{i}") for i in range(10)))
            await one.until(lambda: "batch_submitted" in world.records)
            seen = []
            while "batch_closed" not in world.records:
                seen += [b["done"] for b in one.batches.shown()]
                await asyncio.sleep(10)
            await asyncio.sleep(5)
            assert one.batches.shown() == []
            return seen

    seen = run(main())
    assert seen == sorted(seen)
    assert 0 < max(seen[:-20]) < 10


def test_a_row_without_usage_is_booked_at_its_cap_and_asked_again_by_itself(world: BatchWorld) -> None:
    world.faults.add(FaultRule("no-usage"))

    async def main() -> None:
        async with batch_worker(world) as one:
            await one.run(patient())
            await one.until(lambda: len(ended(world)) == 1)

    run(main())
    assert Counter(world.records)["ambiguous"] == 1


def test_a_call_that_was_made_by_itself_when_its_worker_died_is_taken_up_by_the_next_one(
    world: BatchWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its packet was acknowledged long ago, and no batch answers for it: nobody but the ledger's owner knows of it."""
    world.options = BatchOptions(turnaround_s=40 * HOUR, window_s=24 * HOUR)
    world.store.options = world.options

    async def main() -> None:
        async with batch_worker(world, monkeypatch, point="after_send", passage=1) as one:
            for number in range(4):
                one.worker.start(patient(f"r{number}", hours=26))
            await asyncio.wait_for(one.death.happened.wait(), 48 * HOUR)
        async with batch_worker(world, monkeypatch) as two:
            await two.until(lambda: len(ended(world)) == 4, within_s=6 * HOUR)

    run(main())
    assert set(map(tuple, ended(world).values())) == {("completion",)}


def test_a_cascade_is_not_put_into_a_batch_since_its_answers_are_checked_one_after_the_other(world: BatchWorld) -> None:
    async def main() -> None:
        async with batch_worker(world) as one:
            plain = patient()
            await one.run(plain.model_copy(update={"route": plain.route.model_copy(update={"cascade": "structure", "cheap": 1})}))

    run(main())
    assert Counter(world.records) == {"intent": 1, "completion": 1}


def marked(*names: str, mark: str = "[[refused:small]]", **more: Any) -> list[Call]:
    """Calls that leave the model to the engine, and that the first one of their route refuses, or answers in part."""
    more = {"model": "auto", **more}
    return [patient(name, text=f"{mark} {name}", **more).model_copy(update={"route": call("x", "small", "big").route}) for name in names]


def outcomes(world: BatchWorld) -> list[Charged | Completion | Failure]:
    return [record for record in world.world.records() if isinstance(record, Charged | Completion | Failure)]


def collected(world: BatchWorld, *calls: Call) -> tuple[int, int, int]:
    """Certain, ambiguous and open sums when every request has ended."""

    async def main() -> tuple[int, int, int]:
        async with batch_worker(world) as one:
            await one.run(*calls)
            await one.until(lambda: len(ended(world)) == len(calls) and "batch_closed" in world.records)
            return world.totals(one.worker)

    return run(main())


@pytest.mark.parametrize(("mark", "why"), [("[[refused:small]]", "refusal"), ("[[cut-off:small]]", "cut_off")])
def test_a_row_that_is_refused_or_cut_off_costs_half_and_the_next_model_is_called_for_it(world: BatchWorld, mark: str, why: str) -> None:
    small, big = world.world.models.models
    world.world.models = Catalogue((small, replace(big, max_output_tokens=2_000)), "big")
    assert collected(world, *marked("r1", mark=mark)) == (BATCH_PRICE + SYNC_PRICE, 0, 0)
    held, given = outcomes(world)
    assert isinstance(held, Charged)
    assert (held.discarded, held.model, held.paid_pico) == (why, "small", BATCH_PRICE)
    assert isinstance(given, Completion)
    assert (given.answer.model_used, given.spent_pico, given.discarded_pico) == ("big", BATCH_PRICE + SYNC_PRICE, BATCH_PRICE)
    assert world.records.count("batch_prepared") == 1


def test_an_answer_of_a_row_that_was_held_back_is_given_where_the_next_model_gives_none(world: BatchWorld) -> None:
    async def lost(_model: Model, _number: int) -> ProviderReply:
        raise Ambiguous("no answer")

    world.world.provider.script = lost
    assert collected(world, *marked("r1")) == (BATCH_PRICE, 2 * CAP, 0)
    *_, given = outcomes(world)
    assert isinstance(given, Completion)
    assert (given.kept, given.answer.model_used, given.answer.finish_reason, given.discarded_pico) == (True, "small", "content_filter", 0)
    assert [model for _, model, _ in world.world.provider.calls] == ["big", "big"]


@pytest.mark.parametrize("limit", ["named model", "no fallback", "one attempt", "on_ambiguous", "max_cost", "cancelled", "deadline"])
def test_a_row_for_which_no_more_may_be_paid_is_given_as_it_is(world: BatchWorld, limit: str) -> None:
    own: dict[str, CallSettings] = {"no fallback": CallSettings(fall_back="never"), "one attempt": CallSettings(max_attempts=1)}
    world.world.settings = own.get(limit, world.world.settings)
    world.world.on_ambiguous = "fail" if limit == "on_ambiguous" else "retry"
    more: Any = {"named model": {"model": "small"}, "max_cost": {"max_cost_pico": 500 + CAP - 1}}.get(limit, {})
    calls = marked("r1", **more)

    async def main() -> None:
        async with batch_worker(world) as one:
            await one.run(*calls)
            await one.until(lambda: "batch_submitted" in world.records)
            if limit == "cancelled":
                world.world.cancelled.add("r1")
            if limit == "deadline":  # it is in nobody's hands until then
                await one.batches.revoked([0])
                await asyncio.sleep(24 * HOUR)
                await one.batches.assigned([0])
            await one.until(lambda: bool(ended(world)))

    run(main())
    [given] = outcomes(world)
    assert isinstance(given, Completion)
    assert (given.answer.model_used, given.spent_pico, world.world.provider.calls) == ("small", BATCH_PRICE, [])


def test_a_row_whose_request_has_ended_meanwhile_is_given_as_it_is_since_nobody_would_ask_the_next_model(world: BatchWorld) -> None:
    [asked] = marked("r1")

    async def main() -> None:
        async with batch_worker(world) as one:
            await one.run(asked)
            await one.until(lambda: "batch_submitted" in world.records)
            failed = one.worker.ledger._owned[0].ledger.failure(
                asked.request.flight, asked.request, ErrorInfo(code="x", message="x"), now()
            )
            await one.worker.ledger.book(0, failed, 0)
            await one.until(lambda: "batch_closed" in world.records)

    run(main())
    assert [record.type for record in outcomes(world)] == ["failure", "completion"]
    assert world.world.provider.calls == []


@pytest.mark.parametrize("point", [*POINTS, "after_held_back", "after_intent", "after_send", "after_completion"])
def test_a_crash_at_any_point_forgets_no_answer_of_a_row_that_was_held_back(
    world: BatchWorld, monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    calls = [*marked("r1", "r2", "r3"), *(patient(f"s{i}") for i in range(3))]

    async def well_only_once(_model: Model, number: int) -> ProviderReply:
        if number == 1:
            return REPLY
        raise Ambiguous("no answer")

    world.world.provider.script = well_only_once

    async def main() -> None:
        async with batch_worker(world, monkeypatch, point=point, passage=1) as one:
            for c in calls:
                one.worker.start(c)
            await asyncio.wait_for(one.death.happened.wait(), 48 * HOUR)
        async with batch_worker(world, monkeypatch) as two:
            await two.run(*calls)
            await two.until(within_s=8 * HOUR, done=lambda: len(ended(world)) == 6 and not open_batches(two))
            certain, _, still_open = world.totals(two.worker)
            assert still_open == 0
            paid_plainly = [r for r in outcomes(world) if isinstance(r, Completion) and r.answer.model_used == "big"]
            assert certain == 6 * BATCH_PRICE + SYNC_PRICE * len(paid_plainly)

    run(main())
    assert world.paid_in_batches() == 6
    assert ended(world) == {c.request.identity.custom_id: ["completion"] for c in calls}
    assert {model for _, model, _ in world.world.provider.calls} == {"big"}
    held = [r for r in outcomes(world) if isinstance(r, Charged)]
    assert len(held) == 3
    assert len(world.world.provider.calls) <= 2 * len(held)

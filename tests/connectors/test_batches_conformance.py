"""All providers' batches behave alike, against the simulated server with its own bill, and in process."""

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import orjson
import pytest

from inference_engine.connectors.models_toml import load_catalogue
from inference_engine.connectors.providers.anthropic_batches import AnthropicBatches
from inference_engine.connectors.providers.openai_batches import OpenAIBatches, read_line
from inference_engine.connectors.providers.simulated_batches import SimulatedBatchProvider, traits_of
from inference_engine.connectors.simulated_batch_http import SUBMIT
from inference_engine.connectors.simulated_batches import BatchOptions, SimulatedBatches
from inference_engine.connectors.simulated_bill import Bill, price
from inference_engine.connectors.simulated_cache import SimulatedCache
from inference_engine.connectors.simulated_server import ServerOptions, SimulatedServer
from inference_engine.connectors.simulation import FaultRule, Faults
from inference_engine.pipeline.billing import bill
from inference_engine.pipeline.errors import Ambiguous, Charged, EngineError, Rejected, Unavailable
from inference_engine.pipeline.models import Model, ProviderName
from inference_engine.pipeline.ports import BatchProvider, ProviderReply
from inference_engine.pipeline.prefix import marked, path_of, terms_of
from inference_engine.pipeline.prefix_tree import marks_of_job
from inference_engine.pipeline.prices import day_of, rates
from inference_engine.schemas.record import JsonObject

NAMES: dict[str, tuple[ProviderName, str]] = {
    "openai": ("openai", "gpt-4o-mini"),
    "openai-responses": ("openai", "gpt-4o-mini"),
    "anthropic": ("anthropic", "claude-haiku-4-5"),
    "simulated": ("simulated", "sim-economy"),
}


@dataclass
class Clock:
    """Seconds since the epoch, moved by hand."""

    seconds: float = field(default_factory=time.time)

    def __call__(self) -> float:
        return self.seconds


@dataclass
class Side:
    """One provider and what is behind it."""

    name: str
    batches: BatchProvider
    store: SimulatedBatches
    faults: Faults
    bill: Bill
    clock: Clock
    folder: Path
    files: Callable[[], int]

    @property
    def model(self) -> Model:
        provider, name = NAMES[self.name]
        return Model(name, provider, name, "economy", 100_000, 4_000, api="responses" if "responses" in self.name else "chat")

    def path(self, texts: list[str], key: str = "k1") -> Path:
        path = self.folder / f"{key}.jsonl"
        bodies = [{"model": "x", "max_tokens": 60, "messages": [{"role": "user", "content": text}]} for text in texts]
        path.write_bytes(b"".join(self.batches.line(self.model, f"{key}-{i}", b) + b"\n" for i, b in enumerate(bodies)))
        return path

    async def submit(self, texts: list[str], key: str = "k1") -> str:
        path = self.path(texts, key)
        return await self.batches.create(key, await self.batches.upload(key, path), path, timeout=10)

    async def rows(self, batch_id: str) -> dict[str, ProviderReply | EngineError]:
        return {row.custom_id: row.result async for row in self.batches.results(self.model, batch_id)}


@asynccontextmanager
async def side(name: str, folder: Path, options: BatchOptions) -> AsyncIterator[Side]:
    clock = Clock()
    if name == "simulated":
        faults, own_bill = Faults(), Bill()
        store = SimulatedBatches(own_bill, faults, options, clock, cache=SimulatedCache())
        batches: BatchProvider = SimulatedBatchProvider(store, traits_of(1.0))
        yield Side(name, batches, store, faults, own_bill, clock, folder, lambda: len(store.list("openai")))
        return
    async with SimulatedServer(ServerOptions(batches=options, api_key="sk-test")) as server:
        store = server.batches.batches
        store._clock = clock
        batches = OpenAIBatches("sk-test", f"{server.url}/v1") if name.startswith("openai") else AnthropicBatches("sk-test", server.url)
        kept = server.batches.files if name.startswith("openai") else store._batches
        yield Side(name, batches, store, server.faults, server.bill, clock, folder, lambda: len(kept))
        await batches.close()


@pytest.fixture(params=list(NAMES))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


async def test_a_batch_is_worked_on_then_ended_and_each_row_is_billed_at_the_batch_price(name: str, tmp_path: Path) -> None:
    async with side(name, tmp_path, BatchOptions(turnaround_s=100)) as s:
        batch = await s.submit(["one", "two", "three"])
        assert (await s.batches.status(batch)).state == "working"
        s.clock.seconds += 101
        status = await s.batches.status(batch)
        assert (status.state, status.done, status.failed) == ("ended", 3, 0)
        rows = await s.rows(batch)
        assert sorted(rows) == ["k1-0", "k1-1", "k1-2"]
        paid = 0
        for row in rows.values():
            assert isinstance(row, ProviderReply)
            assert row.service_tier in ("standard", "batch")
            paid += bill(s.model, row.usage, "batch", day_of(time.time_ns() // 1_000_000)) if name != "simulated" else 0
        if name != "simulated":
            assert paid == s.bill.pico
        assert s.bill.pico == sum(price(s.model.provider_model, r.usage, "batch") for r in rows.values() if isinstance(r, ProviderReply))


CACHED = {"openai": "gpt-5-mini", "openai-responses": "gpt-5-mini", "anthropic": "claude-haiku-4-5", "simulated": "sim-economy"}


async def test_rows_that_share_a_marked_prefix_read_it_from_the_cache_at_the_batch_price(name: str, tmp_path: Path) -> None:
    async with side(name, tmp_path, BatchOptions(turnaround_s=60)) as s:
        model = replace(load_catalogue(None).get(CACHED[name]), api=s.model.api)
        today = day_of(time.time_ns() // 1_000_000)
        shared = "word " * 5_000
        bodies: list[JsonObject] = [
            {"max_tokens": 60, "messages": [{"role": "system", "content": shared}, {"role": "user", "content": f"question {i}"}]}
            for i in range(6)
        ]
        terms = terms_of(model, rates(model, "batch", today).base)
        assert terms is not None
        marks = marks_of_job(terms, [path_of("t", body) for body in bodies], calls_per_s=0.1)
        sent = [marked(body, plan) for body, plan in zip(bodies, marks, strict=True)]
        path = tmp_path / "k1.jsonl"
        path.write_bytes(b"".join(s.batches.line(model, f"k1-{i}", body) + b"\n" for i, body in enumerate(sent)))
        batch = await s.batches.create("k1", await s.batches.upload("k1", path), path, timeout=10)
        s.clock.seconds += 61
        rows = {row.custom_id: row.result async for row in s.batches.results(model, batch)}
        usages = [reply.usage for _, reply in sorted(rows.items()) if isinstance(reply, ProviderReply)]
        assert [usage.cache_read_tokens > 4_000 for usage in usages] == [False] + [True] * 5
        assert s.bill.cache_read_tokens == sum(usage.cache_read_tokens for usage in usages)
        assert sum(bill(model, usage, "batch", today) for usage in usages) == s.bill.pico


async def test_the_file_and_the_results_are_gone_once_they_are_forgotten_and_forgetting_twice_is_fine(name: str, tmp_path: Path) -> None:
    async with side(name, tmp_path, BatchOptions()) as s:
        path = s.path(["one", "[[batch:errored]] two"])
        file_id = await s.batches.upload("k1", path)
        batch = await s.batches.create("k1", file_id, path, timeout=10)
        assert (await s.batches.status(batch)).state == "ended"
        assert s.files() > 0
        await s.batches.forget(batch, file_id)
        assert s.files() == 0
        await s.batches.forget(batch, file_id)
        await s.batches.forget("", file_id)


async def test_rows_that_failed_expired_or_were_canceled_come_one_by_one_with_what_they_mean_and_are_not_billed(
    name: str, tmp_path: Path
) -> None:
    async with side(name, tmp_path, BatchOptions()) as s:
        s.faults.add(FaultRule("503", match="overloaded"))
        texts = ["well", "[[batch:errored]] x", "[[batch:expired]] x", "[[batch:canceled]] x", "overloaded"]
        rows = await s.rows(await s.submit(texts))
        kinds = [type(rows[f"k1-{i}"]) for i in range(5)]
        assert kinds == [ProviderReply, Rejected, Unavailable, Unavailable, Unavailable]
        assert s.bill.calls == 1


async def test_a_row_that_was_billed_and_gave_nothing_usable_is_not_called_free(name: str, tmp_path: Path) -> None:
    async with side(name, tmp_path, BatchOptions()) as s:
        for kind in ("no-usage", "wrong-model", "no-choices"):
            s.faults.add(FaultRule(kind, match=kind))
        rows = await s.rows(await s.submit(["no-usage", "wrong-model", "no-choices"]))
        assert [type(rows[f"k1-{i}"]) for i in range(3)] == [Ambiguous, Ambiguous, Charged]
        assert s.bill.calls == 3


async def test_a_canceled_batch_keeps_the_rows_that_are_done_and_gives_back_the_others_free_of_charge(name: str, tmp_path: Path) -> None:
    async with side(name, tmp_path, BatchOptions(turnaround_s=100)) as s:
        batch = await s.submit([f"row {i}" for i in range(10)])
        s.clock.seconds += 41
        await s.batches.cancel(batch)
        assert (await s.batches.status(batch)).state == "ended"
        rows = await s.rows(batch)
        assert [isinstance(rows[f"k1-{i}"], ProviderReply) for i in range(10)] == [True] * 4 + [False] * 6
        assert all(isinstance(r, ProviderReply | Unavailable) for r in rows.values())
        assert s.bill.calls == 4


async def test_after_the_window_the_rows_that_are_not_done_have_expired(name: str, tmp_path: Path) -> None:
    async with side(name, tmp_path, BatchOptions(turnaround_s=100, window_s=50)) as s:
        batch = await s.submit([f"row {i}" for i in range(10)])
        s.clock.seconds += 60
        rows = await s.rows(batch)
        assert sum(isinstance(r, ProviderReply) for r in rows.values()) == 5
        assert {r.code for r in rows.values() if isinstance(r, EngineError)} == {"batch_expired"}


async def test_a_submission_whose_answer_was_lost_is_found_and_one_that_was_never_made_is_not(name: str, tmp_path: Path) -> None:
    async with side(name, tmp_path, BatchOptions()) as s:
        before = int(time.time() * 1000)
        if name == "simulated":
            batch = await s.submit(["lost"], "lost")
        else:
            s.faults.add(FaultRule("drop", count=1, match=SUBMIT))
            with pytest.raises(Ambiguous):
                await s.submit(["lost"], "lost")
            batch = None
        others = [await s.submit(["x"], f"other{i}") for i in range(3)]
        found = await s.batches.find("lost", "", before, 1)
        assert found is not None
        assert found not in others
        assert batch in (None, found)
        assert list(await s.rows(found)) == ["lost-0"]
        assert await s.batches.find("never", "", before, 1) is None


async def test_where_only_results_tell_whose_a_batch_is_nothing_is_decided_before_it_has_ended(tmp_path: Path) -> None:
    async with side("anthropic", tmp_path, BatchOptions(turnaround_s=100)) as s:
        before = int(time.time() * 1000)
        await s.submit(["x"], "other")
        with pytest.raises(Unavailable):
            await s.batches.find("lost", "", before, 1)
        assert await s.batches.find("lost", "", before, 2) is None
        s.clock.seconds += 101
        assert await s.batches.find("lost", "", before, 1) is None


@pytest.mark.parametrize("provider", ["openai", "anthropic"])
async def test_a_submission_that_is_turned_away_is_unavailable_and_one_that_is_refused_is_rejected(provider: str, tmp_path: Path) -> None:
    async with side(provider, tmp_path, BatchOptions()) as s:
        s.faults.add(FaultRule("429", count=1, match=SUBMIT))
        with pytest.raises(Unavailable):
            await s.submit(["x"])
        s.faults.add(FaultRule("400", count=1, match=SUBMIT))
        with pytest.raises(Rejected):
            await s.submit(["x"])
        s.faults.add(FaultRule("billed-500", count=1, match=SUBMIT))
        with pytest.raises(Ambiguous):
            await s.submit(["x"])
        assert len(s.store.list(s.name)) == 1  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["openai", "openai-responses", "simulated"])
async def test_a_batch_for_which_the_queue_has_no_room_fails_as_a_whole_and_says_why(name: str, tmp_path: Path) -> None:
    async with side(name, tmp_path, BatchOptions(turnaround_s=100, queue_rows=3)) as s:
        first, second = await s.submit(["one", "two"]), await s.submit(["three", "four"], "k2")
        assert (await s.batches.status(first)).state == "working"
        status = await s.batches.status(second)
        assert (status.state, status.full, status.done) == ("failed", True, 0)
        await s.batches.forget(second, "")
        s.clock.seconds += 101
        assert (await s.batches.status(await s.submit(["three", "four"], "k3"))).state == "working"
        assert (await s.batches.status(first)).state == "ended"
        assert s.bill.calls == 2


async def test_a_question_about_a_batch_that_does_not_exist_is_refused(name: str, tmp_path: Path) -> None:
    async with side(name, tmp_path, BatchOptions()) as s:
        with pytest.raises(Rejected):
            await s.batches.status("batch_0123")


async def test_a_batch_in_a_folder_goes_on_in_another_process_and_is_billed_once(tmp_path: Path) -> None:
    options = BatchOptions(turnaround_s=100, folder=tmp_path / "batches")
    async with side("simulated", tmp_path, options) as first:
        batch = await first.submit(["one"])
        async with side("simulated", tmp_path, options) as second:
            second.clock.seconds = first.clock.seconds + 101
            assert await second.batches.find("k1", "", 0, 1) == batch
            assert list(await second.rows(batch)) == ["k1-0"]
            assert second.bill.calls == 1
    async with side("simulated", tmp_path, options) as third:
        assert list(await third.rows(batch)) == ["k1-0"]
        assert third.bill.calls == 0


async def test_lines_go_to_the_endpoint_that_the_model_is_asked_by(tmp_path: Path) -> None:
    """A batch has one endpoint, and the url of its lines is the same."""
    for name, endpoint in (("openai", "/v1/chat/completions"), ("openai-responses", "/v1/responses")):
        async with side(name, tmp_path, BatchOptions()) as s:
            await s.submit(["x"], name)
            (batch,) = s.store.list("openai")
            assert orjson.loads(s.path(["x"], "k2").read_bytes())["url"] == endpoint
            assert ("input" in batch.rows[0][1]) is (name == "openai-responses")


async def test_a_batch_is_read_by_what_it_holds_though_the_models_setting_has_changed_meanwhile(tmp_path: Path) -> None:
    async with side("openai-responses", tmp_path, BatchOptions()) as s:
        batch = await s.submit(["one"])
        s.clock.seconds += 1
        (row,) = [row.result async for row in s.batches.results(replace(s.model, api="chat"), batch)]
        assert isinstance(row, ProviderReply)
        assert bill(s.model, row.usage, "batch", day_of(time.time_ns() // 1_000_000)) == s.bill.pico


def test_a_line_that_is_no_result_is_fetched_again_rather_than_taken_for_one() -> None:
    for line in ("{", "[]", '{"response": {}}'):
        with pytest.raises(Unavailable):
            read_line(Model("m", "openai", "m", "economy", 1, 1), line)

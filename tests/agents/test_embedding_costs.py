"""What an embeddings endpoint bills is in the costs to the pico-dollar, under the requests whose texts it embedded."""

import asyncio
import itertools
from collections.abc import Sequence
from dataclasses import replace
from datetime import date
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference_engine.agents.embed import Book, EmbedQueue
from inference_engine.agents.embedders import embedding_price
from inference_engine.agents.embedding_costs import EmbeddingBook, EmbeddingPrice
from inference_engine.agents.judge import EmbeddingJudge
from inference_engine.agents.outbox import Outbox
from inference_engine.agents.settings import Settings
from inference_engine.connectors.embedder import HashEmbedder
from inference_engine.pipeline.embed import shares
from inference_engine.pipeline.ports import Embedded
from inference_engine.schemas.record import JsonObject, Lane
from inference_engine.schemas.requests import Waiter

from ..pipeline.test_judge import said
from .support import TOPICS
from .test_flow import Flow
from .test_judge import CASE

DAY = date(2026, 11, 25)


class Billing(HashEmbedder):
    """Bills seven tokens a text, and three a call."""

    def __init__(self) -> None:
        super().__init__()
        self.billed = 0

    def embed_whole(self, texts: Sequence[str]) -> Embedded:
        tokens = 7 * len(texts) + 3
        self.billed += tokens
        return replace(super().embed_whole(texts), billed_tokens=tokens)


class BilledFlow(Flow):
    def __init__(self) -> None:
        super().__init__()
        self.embedder = self.bill = Billing()
        self._ids = itertools.count()

    def book(self, out: Outbox) -> Book:
        return EmbeddingBook(EmbeddingPrice("embedder", 20_000), out, self.clock, lambda: str(next(self._ids)))

    def embeddings(self) -> list[JsonObject]:
        return [row for row in self.broker.members(TOPICS.costs) if row["kind"] == "embedding"]


async def test_every_text_is_a_row_of_its_request_and_the_rows_add_up_to_the_bill() -> None:
    flow = BilledFlow()
    await flow.start()
    for i, text in enumerate(("how do I water a fern", "may a rose stand in the sun", "which soil does moss like")):
        await flow.ask(f"r{i}", text, job="night", user_id="u7")
    await flow.run()
    rows = flow.embeddings()
    assert {(row["tenant_id"], row["job"], row["request_id"], row["user_id"]) for row in rows} == {
        ("local", "night", f"r{i}", "u7") for i in range(3)
    }
    assert sum(row["tokens_input"] for row in rows) == flow.bill.billed > 0
    assert sum(row["base_cost_pico"] for row in rows) == 20_000 * flow.bill.billed
    assert len({row["event_id"] for row in rows}) == len(rows)
    assert {row["model_used"] for row in rows} == {"embedder"}


async def test_a_text_that_is_embedded_again_after_a_crash_is_paid_again_and_booked_again() -> None:
    flow = BilledFlow()
    await flow.start()
    await flow.ask("r1", "how do I water a fern")
    await flow.run()
    await flow.start()
    flow.again(TOPICS.misses(Lane.EXPRESS), 1)
    await flow.run()
    rows = flow.embeddings()
    assert len({row["event_id"] for row in rows}) == len(rows) == 2
    assert sum(row["base_cost_pico"] for row in rows) == 20_000 * flow.bill.billed


@given(st.integers(0, 10**9), st.lists(st.integers(0, 10_000), min_size=1).filter(any))
def test_shares_add_up_and_none_is_far_from_its_part(total: int, weights: list[int]) -> None:
    parts = shares(total, weights)
    assert sum(parts) == total
    assert all(abs(part - total * weight / sum(weights)) <= 1 + 1e-3 for part, weight in zip(parts, weights, strict=True))


@pytest.mark.parametrize(
    ("model", "price", "pico"),
    [(None, None, 20_000), ("text-embedding-3-large", None, 130_000), ("all-minilm", None, 0), ("all-minilm", "0.01", 10_000)],
)
def test_the_price_is_the_given_one_or_the_known_one_or_nothing(model: str | None, price: str | None, pico: int) -> None:
    given_price = None if price is None else Decimal(price)
    settings = Settings(embedding_base_url="http://127.0.0.1:9/v1", embedding_model=model, embedding_price_per_mtok=given_price)
    found = embedding_price(settings, DAY)
    assert found is not None
    assert found.pico_per_token == pico


def test_a_model_that_runs_here_costs_nothing() -> None:
    assert embedding_price(Settings(), DAY) is None


async def test_answers_that_are_compared_are_booked_to_the_request_whose_answer_was_new() -> None:
    booked: list[tuple[Waiter, int]] = []

    async def book(billed: Sequence[tuple[Waiter, int]]) -> None:
        booked.extend(billed)

    bill = Billing()
    judge = EmbeddingJudge(EmbedQueue(bill, book=book), 0.8)
    own, other = said("Open the app and choose Cards in it."), said("Choose Cards when you have opened the app.")
    await judge.agree(own, [other], CASE)
    await judge.agree(own, [other], CASE)
    assert {whose for whose, _ in booked} == {CASE.whose}
    assert sum(tokens for _, tokens in booked) == bill.billed > 0


async def test_a_row_that_can_not_be_written_is_told_and_takes_no_vector_away() -> None:
    async def book(billed: Sequence[tuple[Waiter, int]]) -> None:
        raise ConnectionError("the broker refuses")

    queue = EmbedQueue(Billing(), book=book)
    assert await asyncio.wait_for(queue.embed_aside("a text", CASE.whose), 30) is not None

"""The judge by embedding: what it says of free text, and that it is asked after everything that requests wait for."""

import asyncio
from collections.abc import Sequence

import numpy as np

from inference_engine.agents.embed import EmbedQueue
from inference_engine.agents.judge import EmbeddingJudge
from inference_engine.connectors.embedder import HashEmbedder
from inference_engine.pipeline.ports import Case, Embedded
from inference_engine.schemas.answers import Told
from inference_engine.schemas.record import Lane
from inference_engine.schemas.requests import Identity, Waiter

CASE = Case(0, "s", Waiter(identity=Identity(tenant="t", job="j", custom_id="r"), lane=Lane.STANDARD, model="small", accepted_ms=0))


def text(words: str) -> Told:
    return Told(kind="text", digest=words, text=words)


class Counting(HashEmbedder):
    """Remembers its batches; takes its time over the first one."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[list[str]] = []

    def embed_whole(self, texts: Sequence[str]) -> Embedded:
        self.batches.append(list(texts))
        found = super().embed_whole(texts)
        return Embedded(found.vectors, np.array(["too long" not in t for t in texts]))


async def test_free_text_agrees_from_the_given_cosine_on_and_each_answer_is_embedded_once() -> None:
    embedder = Counting()
    judge = EmbeddingJudge(EmbedQueue(embedder), 0.8)
    own = text("open the app and choose your card in the list")
    near, far = text("open the app and choose your card in that list"), text("the weather will be fine tomorrow")
    for _ in range(2):
        assert await judge.agree(own, [near, far, Told(kind="value", digest="yes")], CASE) == [True, False, False]
    assert sorted(t for batch in embedder.batches for t in batch) == sorted([own.text, near.text, far.text])


async def test_what_the_embedder_does_not_see_whole_is_not_judged() -> None:
    judge = EmbeddingJudge(EmbedQueue(Counting()), 0.8)
    assert await judge.agree(text("it is too long"), [text("it is too long, too")], CASE) == [None]


async def test_requests_of_every_lane_are_embedded_before_answers() -> None:
    embedder = Counting()
    queue = EmbedQueue(embedder)
    queue._running = embedder.parallel  # no thread takes anything yet
    answers = [queue.embed_aside(f"answer {i}") for i in range(40)]
    asked = [queue.embed(f"question {lane}", lane, "t") for lane in reversed(Lane)]
    queue._running = 0
    last = queue.embed("the one that starts it", Lane.EXPRESS, "t")
    await asyncio.gather(*answers, *asked, last)
    first = embedder.batches[0]
    assert {"the one that starts it", *(f"question {lane}" for lane in Lane)} <= set(first)
    assert max(len(batch) for batch in embedder.batches) <= 16

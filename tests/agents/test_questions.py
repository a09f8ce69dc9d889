"""Questions to a model: asked once, heard by whoever waits, and nobody waits for what is not asked any more."""

import asyncio

import pytest

from inference_engine.agents.questions import Questions
from inference_engine.pipeline.asking import asking
from inference_engine.pipeline.errors import Stale
from inference_engine.pipeline.grade_question import score_of
from inference_engine.schemas.record import Lane
from inference_engine.schemas.requests import Call

from ..pipeline.support import catalogue, request
from ..pipeline.test_judge_question import reply
from ..pipeline.test_respond import completion
from .virtual_time import run


async def sent(partition: int, call: Call) -> None:
    await asyncio.sleep(0)


def question(flight: str = "1" * 64) -> Call:
    return asking("cascade", catalogue().get("small"), {"messages": []}, flight, request(), scope="2" * 64, lane=Lane.EXPRESS, now_ms=1)


@pytest.mark.parametrize("stopping", [True, False])
def test_nobody_waits_for_a_question_that_the_worker_does_not_ask_any_more(stopping: bool) -> None:
    async def main() -> float:
        questions = Questions(sent)

        async def make() -> None:
            await asyncio.sleep(1)
            if stopping:
                raise Stale("the worker stops")
            raise asyncio.CancelledError

        assert await questions.ask(0, question(), score_of, 60, make) is None
        assert not questions.awaits(0, "1" * 64)
        return asyncio.get_running_loop().time()

    assert run(main()) < 2


def test_a_reply_is_read_once_for_all_who_asked_and_one_about_another_partition_is_nobodys() -> None:
    async def main() -> None:
        questions, read = Questions(sent), 0

        def reads(body: dict[str, object]) -> float | None:
            nonlocal read
            read += 1
            return score_of(body)

        asking_ = [asyncio.create_task(questions.ask(0, question(), reads, 60)) for _ in range(3)]
        await asyncio.sleep(1)
        done = completion(question().request, purpose="cascade")
        done = done.model_copy(update={"answer": done.answer.model_copy(update={"body": reply('{"score": 4}')})})
        questions.heard(1, done)
        assert questions.awaits(0, "1" * 64)
        questions.heard(0, done)
        questions.heard(0, done)
        assert await asyncio.gather(*asking_) == [0.4] * 3
        assert read == 1

    run(main())

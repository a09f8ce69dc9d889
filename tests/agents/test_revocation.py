"""An answer that was reported wrong is given to nobody any more, and the decision that shared it learns from that."""

import pytest

from inference_engine.agents.learners import Promised
from inference_engine.connectors.corrections import Corrections
from inference_engine.pipeline.learned_state import unpack

from .learning import LearningFlow, question
from .support import TOPICS
from .test_learned import NO_AUDITS


async def shared_by_three() -> LearningFlow:
    """One is paid; a second asks the same, a third nearly the same."""
    flow = LearningFlow(NO_AUDITS)
    await flow.teach()
    await flow.start()
    for name, wording in (("paid", 1), ("exact", 1), ("near", 2)):
        await flow.ask(name, question("card", wording))
        await flow.settle()
    assert flow.tiers() == {"paid": "none", "exact": "exact", "near": "semantic"}
    return flow


@pytest.mark.parametrize("reported", ["paid", "exact", "near"])
async def test_whoever_reports_it_the_answer_leaves_both_caches_at_once(reported: str) -> None:
    flow = await shared_by_three()
    assert flow.shards.prompts == 1
    await flow.report_wrong(reported)
    assert flow.shards.prompts == 0
    flow.clock.ms += 1
    flow.provider.era = "new"
    for name, wording in (("same", 1), ("same-as-near", 2)):
        await flow.ask(name, question("card", wording))
        await flow.settle()
    assert flow.texts()["same"] == flow.texts()["same-as-near"] == {"new card"}
    assert len(flow.provider.asked) == 2  # the second one follows the new answer


async def test_an_answer_that_was_taken_back_stays_away_after_a_crash_with_everything_read_again() -> None:
    flow = await shared_by_three()
    await flow.report_wrong("near")
    flow.clock.ms += 1
    flow.provider.era = "new"
    await flow.start()
    for _, value in flow.broker.topics[TOPICS.vectors]:
        flow.shards.apply(0, value)
    assert flow.shards.prompts == 0
    flow.again(TOPICS.answers, 3)
    await flow.settle()
    await flow.ask("same", question("card", 1))
    await flow.ask("other", question("card", 3))
    await flow.settle()
    assert flow.texts()["same"] == flow.texts()["other"] == {"new card"}


async def test_the_answer_that_takes_its_place_is_shared_again() -> None:
    flow = await shared_by_three()
    await flow.report_wrong("paid")
    flow.clock.ms += 1
    await flow.ask("again", question("card", 1))
    await flow.settle()
    await flow.ask("later", question("card", 1))
    await flow.ask("near-later", question("card", 4))
    await flow.settle()
    tiers = flow.tiers()
    assert (tiers["again"], tiers["later"], tiers["near-later"]) == ("none", "exact", "semantic")


@pytest.mark.parametrize(("reported", "lessons"), [("near", [False]), ("paid", []), ("exact", [])])
async def test_only_a_shared_answer_teaches_that_the_two_do_not_agree(reported: str, lessons: list[bool]) -> None:
    flow = await shared_by_three()
    before = len(flow.learned._learners.of(0, Promised("local", "", 0.05)).learner.state().lessons)  # type: ignore[union-attr]
    await flow.report_wrong(reported)
    await flow.learned.close()
    state = unpack(flow.decisions.rows[0][Promised("local", "", 0.0).key])
    assert [lesson.agrees for lesson in state.lessons[before:]] == lessons


async def test_everyone_it_was_given_to_is_in_the_cost_rows_by_its_source() -> None:
    flow = await shared_by_three()
    correction = await flow.report_wrong("near")
    rows = flow.broker.members(TOPICS.costs)
    assert {row["request_id"] for row in rows if row.get("source_id") == correction.fingerprint} == {"paid", "exact", "near"}


def test_a_correction_that_is_not_understood_takes_nothing_back_and_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    corrections = Corrections([], TOPICS.corrections)
    corrections.apply(b'{"type": "correction", "v": 9}')
    corrections.apply(None)
    assert not corrections.made_before("f", 0)
    assert "may be given again" in capsys.readouterr().out

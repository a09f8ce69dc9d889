"""Learned on a real broker: who may share an answer, with the real embedder; what one is worth, from a model that grades it."""

import uuid
from collections.abc import Iterator

import pytest

from inference_engine.pipeline.grade_question import score_of
from inference_engine.schemas.ledger import Completion
from inference_engine.schemas.responses import ResponseLine

from .conftest import MakeEngine
from .engine import MODEL, Engine, row, text_of
from .provider import Provider
from .waiting import until

SUBJECTS = {
    "card": "my card was stolen",
    "fee": "the fee of a transfer abroad is too high",
    "pin": "the PIN is blocked after three tries",
    "parcel": "the parcel with my new phone is late",
}
BEGINNINGS = ("Hello,", "Hi there,", "Good morning,", "Excuse me,", "Dear team,", "Please help,", "Sorry to bother you,", "Listen,", "Hey,")
ENDINGS = ("what can I do?", "what should I do now?", "what do I do?", "what happens next?", "can you help me?", "please advise.")
WORDINGS = [(begin, end) for end in ENDINGS for begin in BEGINNINGS]


def asked(subject: str, number: int) -> str:
    begin, end = WORDINGS[number]
    return f"{begin} {SUBJECTS[subject]}, {end} [[answer:{subject}]]"


def ask(engine: Engine, begin: int, end: int) -> dict[str, ResponseLine]:
    """These wordings of every subject, a few at a time: what is known grows in between."""
    found: dict[str, ResponseLine] = {}
    for first in range(begin, end, 3):
        rows = [row(f"{s}-{n}", asked(s, n)) for n in range(first, min(first + 3, end)) for s in SUBJECTS]
        found |= engine.ask(f"from-{first}", rows)
    return found


@pytest.fixture
def learning(kafka: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    folder = tmp_path_factory.mktemp("learning")
    settings = {"CACHE_SEMANTIC_ENABLED": "true", "CACHE_ERROR_BOUND": "0.1", "CACHE_AUDIT_RATE": "0.5"}
    with Provider(folder, "--latency-ms", "20") as provider:
        engine = Engine.create(kafka, f"l-{uuid.uuid4().hex[:12]}.", folder / "home", provider, **settings)
        try:
            yield engine
        finally:
            engine.close()


def test_it_shares_once_it_has_learned_audits_some_of_that_and_goes_on_after_its_worker(learning: Engine) -> None:
    worker = learning.start_worker()
    answers = ask(learning, 0, 45)
    assert {name: text_of(line) for name, line in answers.items()} == {name: name.partition("-")[0] for name in answers}
    tiers = [line.engine.cache.tier for line in answers.values()]
    assert set(tiers[:60]) == {"none"}
    assert set(tiers) > {"none"}
    audits = [r for r in learning.ledger().records if isinstance(r, Completion) and r.purpose == "audit"]
    assert audits
    assert all(r.request.identity.custom_id in answers for r in audits)
    assert until(lambda: worker.health()["sharing"]["sharing"], "the learner shares", within_s=30) == 1
    assert worker.stop() == 0
    worker = learning.start_worker()
    until(lambda: worker.health()["prompts"] > 60, "the index is there again", within_s=60)
    after = ask(learning, 45, 54)
    assert "semantic" in {line.engine.cache.tier for line in after.values()}
    assert {name: text_of(line) for name, line in after.items()} == {name: name.partition("-")[0] for name in after}


def grades(engine: Engine) -> dict[str, Completion]:
    """By custom_id; one each."""
    found = [r for r in engine.ledger().records if isinstance(r, Completion) and r.purpose == "grade"]
    assert len({r.flight for r in found}) == len(found)
    return {r.request.identity.custom_id: r for r in found}


def test_a_model_grades_answers_once_each_the_router_learns_from_it_and_a_kill_changes_nothing(make_engine: MakeEngine) -> None:
    engine = make_engine(ROUTING_POLICY="learned", ROUTING_JUDGE_MODEL=MODEL, ROUTING_JUDGE_RATE="1", CALL_TIMEOUT_SECONDS="3")
    worker, sink = engine.start_worker(), engine.start_sink(wait=False)
    rows = [row(f"r{i}", f"what is the number {i}? [[grade:{i % 11}]]", model="auto") for i in range(30)]
    engine.ask("first", rows[:15])
    worker.kill()
    worker = engine.start_worker()
    engine.ask("second", rows[15:])
    found = until(lambda: graded if len(graded := grades(engine)) == len(rows) else None, "every answer is graded", within_s=120)
    assert {name: score_of(done.answer.body) for name, done in found.items()} == {f"r{i}": (i % 11) / 10 for i in range(30)}
    until(lambda: worker.health()["routing"].get("local", {}).get("lessons", 0) >= 20, "the router learns from grades", within_s=60)
    sink.ready()
    booked = "SELECT count(), any(model_used), sum(base_cost) > 0 FROM cost_events_raw FINAL WHERE purpose = 'grade' AND score IS NOT NULL"
    assert until(lambda: said if (said := engine.sink_sql(booked)[0])[0] == 30 else None, "the grades are booked")[1:] == [MODEL, 1]


def test_a_judge_decides_which_cheap_answers_are_given_and_all_that_was_paid_is_booked(make_engine: MakeEngine) -> None:
    engine = make_engine(ROUTING_CASCADE="judge", ROUTING_JUDGE_MODEL=MODEL, CALL_TIMEOUT_SECONDS="3")
    worker = engine.start_worker()
    hard = "Analyze, compare and prove the algorithm; explain the distributed protocol and its latency; write a detailed report"
    # Long enough an answer that the choice costs more than a cheap answer and its grade.
    more = {"max_tokens": 3_000}
    marks = ("9", "2", "none")
    rows = [row(f"r{i}", f"{hard}, {i} [[grade:{marks[i % 3]}]]", model="auto", body=more) for i in range(12)]
    first = engine.ask("judged", rows[:6])
    worker.kill()
    engine.start_worker()
    answers = {**first, **engine.ask("judged too", rows[6:], within_s=90)}
    given = {name: line.engine.model_used for name, line in answers.items()}
    cheap = {given[f"r{i}"] for i in range(0, 12, 3)}
    assert len(cheap) == 1
    assert cheap.isdisjoint(given[f"r{i}"] for i in range(12) if i % 3)
    accounts = until(lambda: found if not (found := engine.ledger()).open else None, "every intent has its outcome")
    checks = [r for r in accounts.records if isinstance(r, Completion) and r.purpose == "cascade"]
    assert {r.request.identity.custom_id for r in checks} == set(given)
    billed = sum(line.pico for line in engine.provider.bill())
    assert accounts.certain <= billed <= accounts.certain + accounts.caps

"""The semantic tier with the real embedder: what means the same in one scope shares an answer, and nothing else does."""

import json
import shutil
import socket
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from typing import Any

import orjson
import pytest

from inference_engine.schemas import packets

from .engine import MODEL, Engine, Process, row, text_of
from .provider import Provider
from .waiting import until

PASSWORD = ("How do I reset the password of my account?", "How can I reset the password of my account?")
CARD = ("My card was stolen, what should I do?", "My card has been stolen, what should I do?", "What should I do, my card was stolen?")
PARCEL = (
    *("When will my parcel arrive at home?", "When will the parcel arrive at my home?"),
    *("When will my parcel arrive at my home?", "When does my parcel arrive at home?"),
)


@pytest.fixture(scope="module")
def similar(kafka: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """An engine whose worker embeds. Its windows wait long: on a busy machine prompts that were sent at once are seen far apart."""
    folder = tmp_path_factory.mktemp("similar")
    with Provider(folder, "--latency-ms", "20") as provider:
        engine = Engine.create(kafka, f"s-{uuid.uuid4().hex[:12]}.", folder / "home", provider, CACHE_SEMANTIC_ENABLED="true",
                               CACHE_POLICY="static", BATCH_MAX_WAIT_MS="1500")  # fmt: skip
        try:
            engine.start_worker()
            yield engine
        finally:
            engine.close()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def posted(port: int, path: str, body: dict[str, Any]) -> dict[str, Any] | None:
    """None where nobody listens yet."""
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}{path}", data=orjson.dumps(body), headers={"content-type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            said: dict[str, Any] = orjson.loads(response.read())
    except urllib.error.HTTPError as error:
        raise AssertionError(error.read()) from error
    except urllib.error.URLError:
        return None
    return said


def worker_of(engine: Engine) -> Process:
    return next(process for process in engine.processes if process.alive)


def test_a_paraphrase_takes_the_answer_that_is_known(similar: Engine) -> None:
    first = similar.ask("first", [row("r0", PASSWORD[0])])["r0"]
    later = similar.ask("later", [row("r1", PASSWORD[1])])["r1"]
    assert text_of(later) == text_of(first)
    assert later.engine.cache.tier == "semantic"
    assert (later.engine.cache.similarity or 0) > 0.92
    assert similar.pico(later) == 0
    assert similar.provider.billed(MODEL, PASSWORD) == {PASSWORD[0]: 1}


def test_paraphrases_that_arrive_together_are_paid_once(similar: Engine) -> None:
    answers = similar.ask("together", [row(f"r{i}", text) for i, text in enumerate(CARD)])
    assert len({text_of(line) for line in answers.values()}) == 1
    assert sum(similar.provider.billed(MODEL, CARD).values()) == 1
    assert sorted(line.engine.cache.tier == "none" for line in answers.values()) == [False, False, True]


def test_another_scope_or_tenant_never_shares_even_the_same_words(similar: Engine) -> None:
    text, twin = "Where can I see the opening hours of the shop?", "Where can I see the opening hours of your shop?"
    system = [{"role": "system", "content": "You are a pirate."}, {"role": "user", "content": text}]
    for name, rows, tenant in (
        ("plain", [row("r0", text)], "local"),
        ("system", [row("r0", text, body={"messages": system})], "local"),
        ("parameters", [row("r0", text, body={"max_tokens": 40})], "local"),
        ("model", [row("r0", text, model="gpt-4o")], "local"),
        ("tenant", [row("r0", text)], "somebody-else"),
    ):
        found = similar.ask(name, rows, tenant=tenant)["r0"]
        assert found.engine.cache.tier == "none", name
    assert similar.provider.billed(MODEL, [text])[text] == 4
    assert similar.provider.billed("gpt-4o", [text])[text] == 1
    shared = similar.ask("somebody", [row("r1", twin)], tenant="somebody-else")["r1"]
    assert shared.engine.cache.tier == "semantic", "the other tenant's own answer is found: so its index was asked above"


def test_a_question_that_fails_hands_over_to_one_of_those_that_followed_it(similar: Engine) -> None:
    similar.provider.fail("400", match="parcel", count=1)
    answers = similar.ask("fails", [row(f"r{i}", text) for i, text in enumerate(PARCEL)])
    failed = [custom_id for custom_id, line in answers.items() if line.error is not None]
    assert len(failed) == 1
    others = [line for custom_id, line in answers.items() if custom_id not in failed]
    assert len({text_of(line) for line in others}) == 1
    assert sorted(line.engine.cache.tier == "none" for line in others) == [False, False, True]
    assert sum(similar.provider.billed(MODEL, PARCEL).values()) == 1


def test_an_index_that_was_deleted_is_rebuilt_from_the_topic(similar: Engine) -> None:
    questions = ("Is there a fee for using my card abroad?", "Is there any fee for using my card abroad?")
    similar.ask("before", [row("r0", questions[0])])
    worker = worker_of(similar)
    assert worker.stop() == 0, worker.tail()
    for folder in similar.home.glob("data/*/vectors"):
        shutil.rmtree(folder)
    kept = {v.fingerprint for found in similar.raw(similar.topics.vectors) for v in packets.vectors.decode(found.value) if not v.revoked}
    again = similar.start_worker()
    # It fills while requests flow: who asks earlier pays, and that is no fault.
    until(lambda: again.health()["prompts"] >= len(kept), "the index is filled from the topic")
    after = similar.ask("after", [row("r1", questions[1])])["r1"]
    assert after.engine.cache.tier == "semantic"
    assert sum(similar.provider.billed(MODEL, questions).values()) == 1


def test_a_wrong_answer_is_taken_back_on_the_running_worker_and_everyone_it_was_given_to_is_named(similar: Engine) -> None:
    texts = ("How do I order a new cheque book for my account?", "How can I order a new cheque book for my account?")
    similar.start_sink()
    similar.ask("cheque", [row("paid", texts[0])])
    shared = similar.ask("cheque-near", [row("near", texts[1])])["near"]
    assert shared.engine.cache.tier == "semantic"
    ended = similar.command("revoke", "cheque-near", "near", "--format", "json")
    assert ended.code == 0, ended.err
    assert [(r["job"], r["custom_id"], r["cache_tier"]) for r in json.loads(ended.out)] == [
        ("cheque", "paid", "none"),
        ("cheque-near", "near", "semantic"),
    ]
    until(lambda: worker_of(similar).health()["corrections"], "the worker has heard of it", within_s=30)
    again = [similar.ask(f"cheque-again-{i}", [row("r", text)])["r"].engine.cache.tier for i, text in enumerate(texts)]
    assert again == ["none", "semantic"]
    assert sum(similar.provider.billed(MODEL, texts).values()) == 2
    unknown = similar.command("revoke", "cheque-near", "nobody")
    assert unknown.code != 0
    assert "nothing was taken back" in unknown.err


def test_the_gateway_takes_a_wrong_answer_back_as_the_command_does(similar: Engine) -> None:
    texts = ("Where can I see the limit of my credit card?", "Where do I see the limit of my credit card?")
    if not (similar.home / "sink.json").exists():
        similar.start_sink()
    similar.ask("limit", [row("paid", texts[0])])
    assert similar.ask("limit-near", [row("near", texts[1])])["near"].engine.cache.tier == "semantic"
    heard = worker_of(similar).health()["corrections"]
    port = free_port()
    similar.start("gateway", "gateway", "--no-start", "--port", str(port))
    until(lambda: len(similar.sink_sql("SELECT request_id FROM cost_events WHERE startsWith(job, 'limit')")) == 2, "both are in the costs")
    said = until(lambda: posted(port, "/v1/revocations", {"job": "limit-near", "custom_id": "near"}), "the gateway listens", within_s=60)
    assert [(r["job"], r["custom_id"], r["cache_tier"]) for r in said["served"]] == [
        ("limit", "paid", "none"),
        ("limit-near", "near", "semantic"),
    ]
    until(lambda: worker_of(similar).health()["corrections"] > heard, "the worker has heard of it", within_s=30)
    again = [similar.ask(f"limit-again-{i}", [row("r", text)])["r"].engine.cache.tier for i, text in enumerate(texts)]
    assert again == ["none", "semantic"]

"""Records that can't be read, are too large, or come twice: none of them stops the others."""

from collections.abc import Iterator

import orjson

from ..e2e.engine import row
from .evidence import Asked
from .play import Fault, Scene
from .stage import MODEL, TENANTS

TOO_MANY_TOKENS = 1_700_000
"""6.8 MB, more than a record of the ledger may be."""
UNREADABLE: tuple[bytes | None, ...] = (
    None,
    b"",
    b"\xff\xfe\x00 not text",
    b'{"custom_id": "bad\xc3", "body": {}}',
    b"[" * 100_000,
    b'{"a":' * 50_000,
    b"null",
    b"[]",
    b'"text"',
    b"{}",
    b"1e999",
    orjson.dumps({f"field-{i}": i for i in range(100_000)}),
)
"""Of these nobody can be told: they are dead letters only."""


def refused() -> Iterator[tuple[str, bytes]]:
    """(custom_id, record): wrong, and it can be seen whose it is: a dead letter, and an error response."""
    wrong: dict[str, dict[str, object]] = {
        "no-body": {"body": None},
        "no-messages": {"body": {"model": MODEL}},
        "empty-messages": {"body": {"model": MODEL, "messages": []}},
        "unknown-model": {"body": {"model": "no-such-model", "messages": [{"role": "user", "content": "x"}]}},
        "other-url": {"url": "/v1/embeddings"},
        "text-for-messages": {"body": {"model": MODEL, "messages": "hello"}},
        "bad-role": {"body": {"model": MODEL, "messages": [{"role": "nobody", "content": "x"}]}},
        "too-large": {"body": {"model": MODEL, "messages": [{"role": "user", "content": "x" * 1_500_000}]}},
        "many-fields": {"body": {"model": MODEL, "messages": [], **{f"f{i}": i for i in range(100_000)}}},
    }
    for name, change in wrong.items():
        yield name, orjson.dumps({**row(name, "x", model=MODEL, job="faults"), **change})
    deep = b'{"a":' * 900 + b"1" + b"}" * 900
    yield (
        "deep",
        b'{"custom_id": "deep", "method": "POST", "url": "/v1/chat/completions", "engine": {"job": "faults"}, "body": ' + deep + b"}",
    )


def poison(scene: Scene) -> None:
    stage = scene.stage
    stage.start_sink()
    stage.start_worker(0)
    stage.ask(30)
    topic = stage.engine.topics.requests
    told = list(refused())
    stage.write(topic, [(None, value, [("tenant", TENANTS[0].encode())]) for value in UNREADABLE])
    stage.write(topic, [(None, b"{}", [("tenant", b"\xff\xfe")])])
    stage.write(topic, [(None, value, [("tenant", TENANTS[0].encode())]) for _, value in told])
    stage.asked += [Asked(TENANTS[0], "faults", name, MODEL, "x") for name, _ in told]
    stage.ask(30)
    stage.note()


def all_poison_is_a_dead_letter(scene: Scene) -> Iterator[str]:
    letters = scene.stage.raw(scene.stage.engine.topics.dead_letters)
    expected = len(UNREADABLE) + 1 + len(list(refused()))
    if len(letters) != expected:
        yield f"{expected} records can't be requests, {len(letters)} are dead letters"
    for letter in letters:
        names = {name for name, _ in letter.headers}
        if not {"error.class", "error.message", "source.topic", "source.partition", "source.offset"} <= names:
            yield f"the dead letter at {letter.offset} has only the headers {sorted(names)}"
    known = {value or b"" for value in (*UNREADABLE, b"{}", *(value for _, value in refused()))}
    if {letter.value or b"" for letter in letters} != known:
        yield "the bytes of some dead letters are not the original ones"


def poison_inside(scene: Scene) -> None:
    """Garbage on the internal topics: from another version, or a wrong program."""
    stage = scene.stage
    stage.start_sink()
    stage.start_worker(0)
    stage.ask(20)
    topics = stage.engine.topics
    for topic in (
        topics.lookups,
        topics.bulk_lookups,
        topics.answers,
        topics.costs,
        *(t for t in stage.worked if t.startswith((topics.prefix + "misses", topics.prefix + "calls"))),
    ):
        stage.write(topic, [(None, value, []) for value in (b"\xff", b"[{}]", b"{}", None)])
    stage.ask(20)
    stage.note()


def large_answers(scene: Scene) -> None:
    """Answers above Kafka's usual limit for a record are given; those above the engine's own are paid for, and refused with that reason."""
    stage = scene.stage
    stage.start_sink()
    stage.start_worker(0)
    stage.ask(20)
    for tokens in (400_000, TOO_MANY_TOKENS):
        stage.ask(2, mark=f"[[tokens:{tokens}]] ", repeats=0, body={"max_tokens": 2_000_000})
    stage.ask(20, repeats=0)
    stage.note()


def the_largest_are_refused(scene: Scene) -> Iterator[str]:
    stage = scene.stage
    told = {line.custom_id: line.error.code if line.error is not None else "" for line in stage.engine.responses()}
    for asked in stage.asked:
        expected = "answer_too_large" if f"[[tokens:{TOO_MANY_TOKENS}]]" in asked.text else ""
        if told[asked.custom_id] != expected:
            yield f"{asked.key} has the error {told[asked.custom_id]!r}, not {expected!r}"


def twice(scene: Scene) -> None:
    """Every record comes three times, and a worker is killed in between."""
    stage = scene.stage
    stage.start_sink()
    stage.start_workers(2)
    rows = stage.rows(80)
    stage.send(rows)
    stage.send(rows[:40])
    stage.wait_for(10)
    stage.workers[0].kill()
    stage.note()
    stage.send(rows)
    stage.start_worker(0)
    stage.send(rows[40:])


POISON = (
    Fault("answers above the limit of a record", large_answers, check=the_largest_are_refused),
    Fault("poison records", poison, check=all_poison_is_a_dead_letter),
    Fault("poison on the internal topics", poison_inside),
    Fault("every id three times", twice),
)

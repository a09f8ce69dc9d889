"""Bad input: a clear error each, nothing lost, the rest is answered."""

from pathlib import Path
from typing import Any

import orjson
import pytest

from .engine import Engine, read_rows, row, text_of, write_rows
from .waiting import until


def test_every_bad_row_gets_its_reason_in_its_place_and_the_others_are_answered(shared: Engine, tmp_path: Path) -> None:
    rows: list[dict[str, Any] | bytes] = [
        row("good", "a good question"),
        b"{not json",
        row("model", "who are you?", model="no-such-model"),
        {"custom_id": "no-messages", "body": {"model": "gpt-4o-mini"}},
        row("huge", "x" * (2 << 20)),
        row("nul", "a\0b"),
        b'{"custom_id": "lone", "body": {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "\\ud800"}]}}',
        b'{"custom_id": "latin", "body": {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "\xe9"}]}}',
        row("good", "another body under the same id"),
        row("tokens", "how many?", body={"max_tokens": -1}),
        row("role", "who?", body={"messages": [{"role": "wizard", "content": "who?"}]}),
        row("deep", "deep", body={"metadata": {"a": [[[[[[]]]]]]}}),
        row("deadline", "when?", deadline="tomorrow"),
        row("last", "the last question"),
    ]
    target, report = tmp_path / "out.jsonl", tmp_path / "report.json"
    ended = shared.run(write_rows(tmp_path / "in.jsonl", rows), target, "--json-report", str(report))
    assert ended.code == 1, ended.err
    lines = read_rows(target)
    assert [(line["custom_id"], (line["error"] or {}).get("code")) for line in lines] == [
        ("good", None),
        ("row-2", "invalid_json"),
        ("model", "unknown_model"),
        ("no-messages", "missing_messages"),
        ("huge", "request_too_large"),
        ("nul", "invalid_request"),
        ("lone", "invalid_json"),
        ("latin", "invalid_utf8"),
        ("good", "duplicate_custom_id"),
        ("tokens", "invalid_request"),
        ("role", "invalid_request"),
        ("deep", None),
        ("deadline", "invalid_request"),
        ("last", None),
    ]
    assert all(len(line["error"]["message"]) > 20 for line in lines if line["error"])
    numbers = orjson.loads(report.read_bytes())
    assert (numbers["requests"], numbers["answered"], numbers["failed"]) == (14, 3, 11)
    assert text_of(lines[0]) != text_of(lines[-1])


@pytest.mark.parametrize("what", ["missing", "folder"])
def test_a_file_that_cannot_be_read_is_said_before_anything_is_asked(shared: Engine, tmp_path: Path, what: str) -> None:
    source = tmp_path if what == "folder" else tmp_path / "nowhere.jsonl"
    ended = shared.run(source, tmp_path / "out.jsonl")
    assert ended.code == 2
    assert str(source) in ended.err
    assert "Traceback" not in ended.err
    assert not (tmp_path / "out.jsonl").exists()


def test_an_empty_file_is_a_job_of_no_rows(shared: Engine, tmp_path: Path) -> None:
    ended = shared.run(write_rows(tmp_path / "in.jsonl", [b"", b"  "]), tmp_path / "out.jsonl")
    assert "Traceback" not in ended.err
    assert ended.code == 0, ended.err
    assert (tmp_path / "out.jsonl").read_bytes() == b""


GARBAGE: list[tuple[bytes, str]] = [
    (b"\xff\xfe\x00 not utf-8", "invalid_json"),
    (b"{half", "invalid_json"),
    (b"[1, 2]", "invalid_request"),
    (b"[" * 5000, "invalid_json"),
    (b'{"custom_id": "x", "body": {"messages": [{"role": "user", "content": "\\ud800"}]}}', "invalid_json"),
    (orjson.dumps(row("big", "y" * (2 << 20), job="garbage")), "request_too_large"),
    (orjson.dumps(row("nul", "a\0b", job="garbage")), "invalid_request"),
    (orjson.dumps(row("model", "hello", model="no-such-model", job="garbage")), "unknown_model"),
    (b"", "empty_record"),
]


def test_what_raw_producers_write_by_mistake_is_kept_as_it_came_with_the_reason_beside_it(shared: Engine) -> None:
    shared.produce([value for value, _ in GARBAGE], tenant="garbage")
    shared.ask("after-garbage", [row("fine", "a question after the garbage")], tenant="garbage")

    def kept() -> list[Any] | None:
        found = [letter for letter in shared.raw(shared.topics.dead_letters) if ("tenant", b"garbage") in letter.headers]
        return found if len(found) >= len(GARBAGE) else None

    letters = until(kept, "all of it is in the dead letters")
    assert len(letters) == len(GARBAGE)
    by_value = {letter.value or b"": dict(letter.headers) for letter in letters}
    for value, code in GARBAGE:
        headers = by_value[value]
        assert headers["error.class"] == code.encode(), (value[:80], headers)
        assert headers["error.message"]
        assert headers["source.topic"] == shared.topics.requests.encode()
        assert headers["source.partition"].isdigit()
        assert headers["source.offset"].isdigit()
    told = shared.answers("garbage", {"big", "nul", "model"}, tenant="garbage")
    codes = {i: line.error.code for i, line in told.items() if line.error is not None}
    assert codes == {"big": "request_too_large", "nul": "invalid_request", "model": "unknown_model"}

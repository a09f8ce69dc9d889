"""Lines of the user's file: what is sent, what is refused, and that refusing never raises."""

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference_engine.cli.rows import (
    MAX_RECORD_BYTES,
    BadRow,
    Row,
    RowDefaults,
    custom_id_of,
    job_prefix,
    local_error_line,
    oversized_row,
    parse_row,
    repeat_digest,
    request_key,
)
from inference_engine.pipeline.ingest import MAX_BODY_BYTES
from inference_engine.schemas.record import Lane
from inference_engine.schemas.requests import Identity, RequestLine
from inference_engine.schemas.responses import ResponseLine

DEFAULTS = RowDefaults("job")
MESSAGES = [{"role": "user", "content": "hi"}]
texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(),
    lambda v: st.lists(v) | st.dictionaries(st.text(), v),
    max_leaves=8,
)


def good(line: bytes, defaults: RowDefaults = DEFAULTS) -> Row:
    row = parse_row(line, 1, defaults)
    assert isinstance(row, Row), row
    return row


def line(**fields: Any) -> bytes:
    return orjson.dumps({"custom_id": "a", "body": {"messages": MESSAGES, **fields.pop("body", {})}, **fields})


@given(st.binary(max_size=200) | json_values.map(orjson.dumps))
def test_any_bytes_become_a_row_or_a_reason(data: bytes) -> None:
    row = parse_row(data, 3, DEFAULTS)
    assert isinstance(row, Row) or (row.code and row.reason and row.custom_id)


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "custom_id": json_values | texts,
            "body": json_values | st.fixed_dictionaries({"messages": st.lists(json_values), "model": json_values}),
            "engine": json_values | st.dictionaries(st.text(), json_values),
            "prompt": json_values | texts,
        },
    )
)
def test_what_is_sent_is_a_request_line_with_the_job_and_the_id_of_its_key(data: dict[str, Any]) -> None:
    row = parse_row(orjson.dumps(data), 3, DEFAULTS)
    if isinstance(row, Row):
        sent = orjson.loads(row.value)
        assert sent["engine"]["job"] == "job"
        assert sent["custom_id"] == row.custom_id
        assert isinstance(sent["body"]["messages"], list)


def test_a_batch_line_of_openai_is_sent_as_it_is_and_the_engine_understands_it() -> None:
    sent = good(line(method="POST", url="/v1/chat/completions", body={"model": "gpt-4o", "temperature": 0.5}, engine={"user_id": "u"}))
    parsed = RequestLine.model_validate_json(sent.value)
    assert parsed.body == {"messages": MESSAGES, "model": "gpt-4o", "temperature": 0.5}
    assert (parsed.engine.job, parsed.engine.user_id) == ("job", "u")


def test_a_plain_prompt_becomes_a_message_and_is_named_by_its_row() -> None:
    row = parse_row(b'{"prompt": "hi", "temperature": 0}', 7, DEFAULTS)
    assert isinstance(row, Row)
    assert row.custom_id == "row-7"
    assert row.body == {"messages": MESSAGES, "temperature": 0, "model": "auto"}


def test_options_of_the_command_fill_in_and_the_model_replaces() -> None:
    defaults = RowDefaults("job", "sim-economy", Lane.BATCH, "2030-01-01T00:00:00Z", use_cache=False)
    row = good(line(body={"model": "gpt-4o"}, engine={"priority": "express"}), defaults)
    assert row.body["model"] == "sim-economy"
    assert row.engine == {"priority": "express", "job": "job", "deadline": "2030-01-01T00:00:00Z", "use_cache": False}


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"{", "invalid_json"),
        (b"[1]", "invalid_request"),
        (b'{"custom_id": "a"}', "missing_messages"),
        (b'{"custom_id": "a", "body": {"messages": []}}', "missing_messages"),
        (b'{"custom_id": 5, "body": {"messages": [{}]}}', "invalid_request"),
        (b'{"custom_id": "' + b"x" * 257 + b'", "body": {"messages": [{}]}}', "invalid_request"),
        (b'{"custom_id": "a", "url": "/v1/embeddings", "body": {"messages": [{}]}}', "invalid_request"),
        (b'{"custom_id": "a", "engine": 1, "body": {"messages": [{}]}}', "invalid_request"),
        (b'{"prompt": "a\\u0000b"}', "invalid_request"),
        (b'{"prompt": "\\udc00"}', "invalid_json"),
        (b'{"prompt": "\xff"}', "invalid_utf8"),
        (b'{"prompt": "' + b"x" * (2 << 20) + b'"}', "request_too_large"),
        (b"[" * 1000 + b"]" * 1000, "invalid_request"),
        (b'{"prompt": ' + b"[" * 500 + b"]" * 500 + b"}", "missing_messages"),
        (b'{"body": {"messages": [' + b"[" * 500 + b"]" * 500 + b"]}}", "invalid_json"),
    ],
)
def test_bad_rows_say_why(data: bytes, code: str) -> None:
    row = parse_row(data, 1, DEFAULTS)
    assert isinstance(row, BadRow)
    assert row.code == code


def test_a_backslash_before_the_escape_is_no_nul() -> None:
    assert good(b'{"prompt": "\\\\u0000"}').body["messages"][0]["content"] == "\\u0000"


def test_the_largest_row_that_is_sent_passes_the_engines_door() -> None:
    size = MAX_RECORD_BYTES - len(good(b'{"prompt": "x"}').value) + 1
    assert len(good(b'{"prompt": "' + b"x" * size + b'"}').value) == MAX_RECORD_BYTES < MAX_BODY_BYTES


def test_content_is_the_same_in_any_order_of_keys_and_differs_with_the_body() -> None:
    a = good(b'{"custom_id":"a","body":{"messages":[{"role":"user","content":"hi"}],"n":1}}')
    b = good(b'{"body":{"n":1,"messages":[{"content":"hi","role":"user"}]},"custom_id":"a"}')
    c = good(b'{"body":{"n":2,"messages":[{"content":"hi","role":"user"}]},"custom_id":"a"}')
    assert a.content_digest() == b.content_digest() != c.content_digest()


def test_only_repeats_at_a_temperature_without_variety_are_watched() -> None:
    hot = good(line(body={"temperature": 0.7}))
    assert repeat_digest(hot) == repeat_digest(good(line(body={"temperature": 0.7}, custom_id="b"))) is not None
    assert repeat_digest(good(line(body={"temperature": 0}))) is None
    assert repeat_digest(good(line())) is None
    assert repeat_digest(good(line(body={"temperature": 0.7}, engine={"use_cache": False}))) is None
    assert repeat_digest(good(line(body={"temperature": 0.7}, engine={"sample_index": 1}))) != repeat_digest(hot)


@given(texts, texts, texts, texts)
def test_the_key_gives_back_the_custom_id_to_its_own_job_only(tenant: str, job: str, custom_id: str, other: str) -> None:
    key = request_key(tenant, job, custom_id)
    assert key == Identity(tenant=tenant, job=job, custom_id=custom_id).key
    assert custom_id_of(key, job_prefix(tenant, job)) == custom_id
    if other != job:
        assert custom_id_of(key, job_prefix(tenant, other)) is None


def test_an_error_line_is_a_response_line_and_always_the_same() -> None:
    bad = BadRow("x", "invalid_json", "why")
    assert local_error_line("t", "j", bad) == local_error_line("t", "j", bad)
    parsed = ResponseLine.model_validate_json(local_error_line("t", "j", bad))
    assert parsed.error is not None
    assert (parsed.custom_id, parsed.error.code) == ("x", "invalid_json")


@pytest.mark.parametrize(
    ("data", "code", "custom_id"),
    [
        (b'{"custom_id": "mine", "prompt": "\\udc00"}', "invalid_json", "mine"),
        (b'{"custom_id": "mine", "prompt": "\xff"}', "invalid_utf8", "mine"),
        (b'{"prompt": "\xff", "x": {"custom_id": "of something else"}, "custom_id": "mine"}', "invalid_utf8", "mine"),
        (b'{"custom_id": "mi\xffne", "prompt": "hi"}', "invalid_utf8", "row-4"),
        (b'{"custom_id": "mi\\udc00ne", "prompt": "hi"}', "invalid_json", "row-4"),
        (b'{"custom_id": 5, "prompt": "\xff"}', "invalid_utf8", "row-4"),
        (b'{"custom_id": "mine", "prompt": "\xff', "invalid_utf8", "row-4"),
        (b"[" * 100_000 + b"\xff", "invalid_utf8", "row-4"),
    ],
)
def test_a_row_with_broken_characters_keeps_its_custom_id_where_that_is_whole(data: bytes, code: str, custom_id: str) -> None:
    row = parse_row(data, 4, DEFAULTS)
    assert isinstance(row, BadRow)
    assert (row.code, row.custom_id) == (code, custom_id)


def test_an_oversized_line_keeps_its_custom_id_where_the_head_shows_it() -> None:
    assert oversized_row(b'{"custom_id": "big", "body": "xxx', 4, 10**7).custom_id == "big"
    assert oversized_row(b'{"body": "xxx', 4, 10**7).custom_id == "row-4"

"""The door lets in what is valid and says what is wrong with the rest."""

import json
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference_engine.pipeline.ingest import BadRequest, Door, admit
from inference_engine.schemas.packets import lookups
from inference_engine.schemas.record import Lane
from inference_engine.schemas.requests import Lookup

from .support import NOW, body, catalogue

DOOR = Door(catalogue=catalogue(), default_ttl_s=3600)


def line(**more: Any) -> bytes:
    return orjson.dumps({"custom_id": "r1", "method": "POST", "url": "/v1/chat/completions", "body": body(), **more})


def refusal(raw: bytes | None, tenant: str = "t") -> BadRequest:
    with pytest.raises(BadRequest) as caught:
        admit(raw, tenant, NOW, DOOR)
    return caught.value


def test_an_openai_batch_line_is_admitted_as_it_is() -> None:
    request = admit(line(), "t", NOW, DOOR)
    assert (request.identity.tenant, request.identity.job, request.identity.custom_id) == ("t", "default", "r1")
    assert request.body == body()
    assert (request.model, request.lane, request.cache_ttl_s, request.shareable) == ("auto", Lane.STANDARD, 3600, True)


def test_the_engine_object_is_understood() -> None:
    engine = {"job": "j", "user_id": "u", "priority": "express", "deadline": 60, "cache_ttl_seconds": 5, "max_cost_usd": "0.01"}
    request = admit(line(engine=engine), "t", NOW, DOOR)
    assert (request.identity.job, request.dimensions.user_id, request.lane) == ("j", "u", Lane.EXPRESS)
    assert (request.deadline_ms, request.cache_ttl_s, request.max_cost_pico) == (NOW + 60_000, 5, 10**10)


@pytest.mark.parametrize(("said", "language"), [("de", "de"), ("pt-BR", "pt"), ("zh_Hant_TW", "zh"), (None, None)])
def test_a_language_is_named_by_its_code(said: str | None, language: str | None) -> None:
    assert admit(line(engine={"language": said}), "t", NOW, DOOR).language == language


def test_a_language_that_is_no_code_is_refused() -> None:
    assert "engine.language" in str(refusal(line(engine={"language": "German"})))


@pytest.mark.parametrize(("deadline", "seconds"), [("24h", 86400), ("2025-11-24T16:00:00Z", None), (1.5, 1.5), ("90", 90)])
def test_deadlines_are_seconds_spans_or_instants(deadline: Any, seconds: float | None) -> None:
    request = admit(line(engine={"deadline": deadline}), "t", NOW, DOOR)
    assert request.deadline_ms == (1_764_000_000_000 if seconds is None else NOW + int(seconds * 1000))


def test_a_request_that_opts_out_shares_with_nobody() -> None:
    one = admit(line(engine={"use_cache": False}), "t", NOW, DOOR)
    two = admit(line(custom_id="r2", engine={"use_cache": False}), "t", NOW, DOOR)
    assert len({one.fingerprint, two.fingerprint, admit(line(), "t", NOW, DOOR).fingerprint}) == 3
    assert not one.shareable


def test_tools_images_and_several_choices_are_not_shared_by_similarity() -> None:
    image = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}]
    for more in ({"tools": [{"type": "function"}]}, {"n": 2}, {"messages": image}):
        assert not admit(line(body=body(**more)), "t", NOW, DOOR).shareable


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (None, "empty_record"),
        (b"", "empty_record"),
        (b"{", "invalid_json"),
        (b'{"custom_id": "\xff"}', "invalid_json"),
        (b'{"custom_id": "a", "body": {"messages": [{"role": "user", "content": "\\ud800"}]}}', "invalid_json"),
        (b"[" * 100_000, "invalid_json"),
        (b"[]", "invalid_request"),
        (b'{"body": {}}', "invalid_request"),
        (line(body={}), "missing_messages"),
        (line(body={"messages": []}), "missing_messages"),
        (line(body={"messages": ["x"]}), "invalid_request"),
        (line(body=body("a\0b")), "invalid_request"),
        (line(custom_id="a\0b"), "invalid_request"),
        (line(body=body(model="gpt-99")), "unknown_model"),
        (line(body=body(max_tokens=0)), "invalid_request"),
        (line(engine={"deadline": "soon"}), "invalid_request"),
        (line(engine={"max_cost_usd": "much"}), "invalid_request"),
        (line(engine={"unknown": 1}), "invalid_request"),
        (line(url="/v1/embeddings"), "invalid_request"),
        (line(body=body("x" * 2_000_000)), "request_too_large"),
    ],
)
def test_bad_records_are_refused_with_a_code(raw: bytes | None, code: str) -> None:
    assert refusal(raw).code == code


def test_a_refusal_names_the_request_as_far_as_it_can_be_read() -> None:
    error = refusal(line(engine={"job": "j", "unknown": 1}))
    assert (error.job, error.custom_id) == ("j", "r1")
    assert "unknown" in str(error)


def test_a_request_without_a_tenant_is_refused() -> None:
    assert refusal(line(), tenant="").code == "no_tenant"


@given(st.binary(max_size=200))
def test_no_bytes_bring_the_door_down(raw: bytes) -> None:
    try:
        admit(raw, "t", NOW, DOOR)
    except BadRequest as error:
        assert str(error)  # noqa: PT017


WILD = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(), st.integers(min_value=2**63), st.floats(), st.text(max_size=8),
        st.sampled_from(["1e999999999", "1e5000", "inf", "24h", "0001-01-01T00:00:00+23:59", 1e300, 1e308]),
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip


@given(
    st.dictionaries(st.sampled_from(["seed", "temperature", "max_tokens", "n", "model", "tools", "x"]), WILD, max_size=3),
    st.dictionaries(st.sampled_from(["deadline", "max_cost_usd", "cache_ttl_seconds", "sample_index", "user_id"]), WILD, max_size=3),
    st.dictionaries(st.sampled_from(["role", "content", "name"]), WILD, max_size=2),
)
def test_whatever_a_record_says_it_is_refused_or_travels_on_whole(fields: Any, engine: Any, message: Any) -> None:
    """Any other exception would be tried again for ever and hold up its partition; a member that can't be read loses its packet."""
    messages = [{"role": "user", "content": "hi", **message}]
    raw = json.dumps({"custom_id": "r1", "body": {"messages": messages, **fields}, "engine": engine}).encode()
    try:
        request = admit(raw, "t", NOW, DOOR)
    except BadRequest:
        return
    (lookup,) = lookups.decode(lookups.encode([Lookup(request=request)]))
    assert lookup.request.fingerprint == request.fingerprint


@pytest.mark.parametrize("seed", ["1" * 30, "1e400", "[" * 150 + "]" * 150])
def test_numbers_and_depths_that_no_program_down_the_line_can_read_are_refused(seed: str) -> None:
    raw = b'{"custom_id": "r1", "body": {"messages": [{"role": "user", "content": "hi"}], "seed": %s}}' % seed.encode()
    error = refusal(raw)
    assert (error.code, error.custom_id) == ("invalid_request", "r1")

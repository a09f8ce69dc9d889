"""Prompts share a prefix exactly where they are equal, and marks change nothing but what is said about it."""

import copy
from collections import Counter
from dataclasses import replace
from datetime import date

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference_engine.connectors.models_toml import load_catalogue
from inference_engine.pipeline.prefix import Mark, Marks, Path, marked, may_be_cached, path_of, send_order, shared_tokens, terms_of
from inference_engine.pipeline.prices import rates
from inference_engine.schemas.record import JsonObject

CATALOGUE = load_catalogue()
DAY = date(2026, 11, 23)
MARK = Mark((0, 0), "5m", b"", 0)


def chat(*texts: str, **more: object) -> JsonObject:
    roles = ["system", *(["user", "assistant"] * len(texts))]
    return {"messages": [{"role": role, "content": text} for role, text in zip(roles, texts, strict=False)], **more}


def nodes(body: JsonObject, tenant: str = "t") -> list[bytes]:
    return [block.node for block in path_of(tenant, body)]


texts = st.lists(st.sampled_from(["a", "b", "ab", "", "é"]), min_size=1, max_size=4)


@given(texts, texts)
def test_two_prompts_share_as_many_nodes_as_leading_messages(one: list[str], two: list[str]) -> None:
    equal = next((i for i, (a, b) in enumerate(zip(one, two, strict=False)) if a != b), min(len(one), len(two)))
    shared = set(nodes(chat(*one))) & set(nodes(chat(*two)))
    assert len(shared) == equal


@given(texts)
def test_tokens_grow_with_every_block(parts: list[str]) -> None:
    tokens = [block.tokens for block in path_of("t", chat(*parts))]
    assert tokens == sorted(tokens)


@pytest.mark.parametrize(
    "other",
    [
        {"tools": [{"type": "function", "function": {"name": "f"}}]},
        {"response_format": {"type": "json_object"}},
        {"tool_choice": "none"},
    ],
)
def test_what_providers_read_before_the_messages_parts_two_prompts(other: JsonObject) -> None:
    assert not set(nodes(chat("a"))) & set(nodes(chat("a", **other)))


def test_tenants_share_nothing() -> None:
    assert not set(nodes(chat("a"), "one")) & set(nodes(chat("a"), "two"))


def test_what_does_not_change_the_cache_does_not_part_two_prompts() -> None:
    assert nodes(chat("a", "b")) == nodes(chat("a", "b", temperature=0.3, max_tokens=5, seed=1))


@pytest.mark.parametrize(
    "body",
    [
        chat("a", prompt_cache_key="mine"),
        chat("a", prompt_cache_options={"mode": "implicit"}),
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}}]}]},
    ],
)
def test_a_prompt_that_its_author_marks_is_left_alone(body: JsonObject) -> None:
    assert path_of("t", body) == ()


@pytest.mark.parametrize(
    "body",
    [
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "\ud800"}]}]},
        {"messages": [{"role": "user", "content": "a", "tool_calls": [{"id": 2**70}]}]},
        {"messages": [{"role": "user", "content": "a"}], "tools": [{"size": 2**70}]},
        {"messages": ["a"]},
    ],
)
def test_a_body_that_cannot_be_written_has_no_path_and_harms_nobody(body: JsonObject) -> None:
    assert path_of("t", body) == ()


def test_a_tool_call_can_carry_no_mark() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    body = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": None, "tool_calls": [call]}]}
    assert [block.at for block in path_of("t", body)] == [(0, 0), None]


# --- marks ---------------------------------------------------------------------------------------------------------------


def test_openais_marks_are_explicit_and_keyed() -> None:
    made = marked(chat("s", "q"), Marks("breakpoints", (MARK,), "k-0"))
    assert made["prompt_cache_options"] == {"mode": "explicit"}
    assert made["prompt_cache_key"] == "k-0"
    part = {"type": "text", "text": "s", "prompt_cache_breakpoint": {"mode": "explicit"}}
    assert made["messages"] == [{"role": "system", "content": [part]}, {"role": "user", "content": "q"}]


def test_without_readers_openai_is_told_not_to_write() -> None:
    """In its own mode it would mark the end of the last message, and charge for writing it."""
    assert marked(chat("s"), Marks("breakpoints")) == {**chat("s"), "prompt_cache_options": {"mode": "explicit"}}


def test_models_that_refuse_marks_get_only_a_key() -> None:
    assert marked(chat("s"), Marks("keyed", (), "k-0")) == {**chat("s"), "prompt_cache_key": "k-0"}


def test_servers_that_take_no_fields_get_none() -> None:
    assert marked(chat("s"), Marks("automatic", (), "k-0")) == chat("s")


def test_a_body_is_not_changed_where_it_stands() -> None:
    body = {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]}
    before = copy.deepcopy(body)
    made = marked(body, Marks("cache_control", (replace(MARK, at=(0, 1), lifetime="1h"),)))
    assert made["messages"][0]["content"][1]["prompt_cache_breakpoint"] == {"mode": "explicit", "ttl": "1h"}
    assert body == before


# --- terms ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "lifetimes", "read", "per_key"),
    [
        ("gpt-6-luna", [("30m", 1.25)], 0.1, 15),
        ("gpt-6.1-sol", [("30m", 1.25)], 0.05, 15),
        ("gpt-5", [("", 1.0)], 0.1, 15),
        ("claude-sonnet-5-5", [("5m", 1.25), ("1h", 2.0)], 0.05, None),
    ],
)
def test_terms_are_those_of_the_price_table(name: str, lifetimes: list[tuple[str, float]], read: float, per_key: int | None) -> None:
    terms = terms_of(CATALOGUE.get(name), rates(CATALOGUE.get(name), "standard", DAY).base)
    assert terms is not None
    assert [(x.name, x.write) for x in terms.lifetimes] == lifetimes
    assert (terms.read, terms.per_key_per_minute) == (read, per_key)


def test_a_model_without_a_cheaper_read_has_no_terms() -> None:
    assert terms_of(CATALOGUE.get("gpt-4"), rates(CATALOGUE.get("gpt-4"), "standard", DAY).base) is None


# --- the order -----------------------------------------------------------------------------------------------------------

jobs = st.lists(st.lists(st.sampled_from("abc"), min_size=1, max_size=4), min_size=1, max_size=12)


def paths(job: list[list[str]]) -> list[Path]:
    return [path_of("t", chat(*row)) for row in job]


@given(jobs)
def test_every_call_is_sent_once(job: list[list[str]]) -> None:
    assert sorted(send_order(paths(job))) == list(range(len(job)))


@given(jobs)
def test_calls_that_share_a_prefix_are_sent_in_one_stretch(job: list[list[str]]) -> None:
    found = paths(job)
    order = send_order(found)
    for node in {block.node for path in found for block in path}:
        places = [place for place, i in enumerate(order) if node in {block.node for block in found[i]}]
        assert places == list(range(places[0], places[0] + len(places)))


@given(jobs, st.data())
def test_a_group_is_sent_in_one_stretch_of_each_branch_and_breaks_no_stretch_of_a_prefix(job: list[list[str]], data: st.DataObject) -> None:
    found = paths(job)
    groups = data.draw(st.lists(st.sampled_from([None, "g", "h"]), min_size=len(job), max_size=len(job)))
    order = send_order(found, groups)
    assert sorted(order) == list(range(len(job)))
    counts = Counter(block.node for path in found for block in path)
    branches = [tuple(b.node for b in path if counts[b.node] > 1) for path in found]
    assert [branches[i] for i in order] == [branches[i] for i in send_order(found)]
    for what in {(branches[i], group) for i, group in enumerate(groups) if group is not None}:
        places = [place for place, i in enumerate(order) if (branches[i], groups[i]) == what]
        assert places == list(range(places[0], places[0] + len(places)))
        assert [i for i in order if (branches[i], groups[i]) == what] == [i for i in range(len(job)) if (branches[i], groups[i]) == what]


def test_the_longest_shared_prefix_comes_first() -> None:
    job = [["x"], ["s", "1"], ["s", "2"], ["a long shared prompt", "1"], ["y"], ["a long shared prompt", "2"]]
    assert [job[i][0] for i in send_order(paths(job))] == ["a long shared prompt"] * 2 + ["s"] * 2 + ["x", "y"]


@given(jobs, st.randoms())
def test_the_ceiling_does_not_depend_on_the_order(job: list[list[str]], random: object) -> None:
    found = paths(job)
    turned = found[::-1]
    assert sum(shared_tokens(found)) == sum(shared_tokens(turned))


@given(st.lists(st.one_of(st.text(max_size=60), st.just("a" * 40)), max_size=4), st.integers(0, 60), st.booleans())
def test_a_prompt_that_is_not_looked_at_has_too_few_tokens(texts: list[str], least: int, tools: bool) -> None:
    body: JsonObject = {"messages": [{"role": "user", "content": text} for text in texts], **({"tools": [{}]} if tools else {})}
    path = path_of("t", body)
    assert may_be_cached(body, least) or not path or path[-1].tokens < least

"""The simulated prompt caches keep the rules that the providers document."""

from typing import Any

import pytest

from inference_engine.connectors.simulated_cache import (
    Piece,
    Prompt,
    Rules,
    Served,
    SimulatedCache,
    prompt_of_chat,
    prompt_of_messages,
    rules_of,
)

ANTHROPIC, OPENAI, OLD = Rules("cache_control", 1024), Rules("breakpoints"), Rules("automatic")


def prompt(*pieces: tuple[str, int] | tuple[str, int, str], key: str | None = "k", implicit: bool = False) -> Prompt:
    return Prompt("m", tuple(Piece(p[0].encode(), p[1], *p[2:]) for p in pieces), key, implicit)


def served(cache: SimulatedCache, rules: Rules, asked: Prompt, now: float = 0.0) -> Served:
    """A call whose answer begins at once."""
    found = cache.begin(rules, asked, now)
    cache.began(found, now)
    return found


SHARED = ("s", 2000, "5m")
OPENAI_SHARED = ("s", 2000, "30m")


@pytest.mark.parametrize(("rules", "shared", "ttl"), [(ANTHROPIC, SHARED, "5m"), (OPENAI, OPENAI_SHARED, "30m")])
def test_what_is_marked_is_written_once_and_then_read(rules: Rules, shared: Any, ttl: str) -> None:
    cache = SimulatedCache()
    one, two = served(cache, rules, prompt(shared, ("a", 300))), served(cache, rules, prompt(shared, ("b", 300)))
    assert (one.read, one.written) == (0, {ttl: 2000})
    assert (two.read, two.written) == (2000, {})


def test_an_entry_can_be_read_only_once_the_first_answer_has_begun() -> None:
    cache = SimulatedCache()
    one = cache.begin(ANTHROPIC, prompt(SHARED, ("a", 300)), 0)
    two = cache.begin(ANTHROPIC, prompt(SHARED, ("b", 300)), 0.1)
    assert (two.read, two.written) == (0, {"5m": 2000})
    cache.began(one, 1.0)
    assert cache.begin(ANTHROPIC, prompt(SHARED, ("c", 300)), 1.0).read == 2000


@pytest.mark.parametrize(("ttl", "seconds"), [("5m", 300), ("1h", 3600)])
def test_an_entry_lives_its_time_since_it_was_last_used(ttl: str, seconds: int) -> None:
    cache = SimulatedCache()
    asked = prompt(("s", 2000, ttl), ("a", 300))
    served(cache, ANTHROPIC, asked, 0)
    assert served(cache, ANTHROPIC, asked, seconds - 1).read == 2000
    assert served(cache, ANTHROPIC, asked, 2 * seconds - 2).read == 2000
    assert served(cache, ANTHROPIC, asked, 4 * seconds).read == 0


@pytest.mark.parametrize("rules", [ANTHROPIC, OPENAI])
def test_a_short_prefix_is_neither_written_nor_read(rules: Rules) -> None:
    cache = SimulatedCache()
    asked = prompt(("s", 1023, "5m" if rules is ANTHROPIC else "30m"), ("a", 3000))
    assert [served(cache, rules, asked).written for _ in range(2)] == [{}, {}]


def test_each_stretch_is_written_at_the_price_of_its_own_mark() -> None:
    found = served(SimulatedCache(), ANTHROPIC, prompt(("s", 2000, "1h"), ("d", 1000, "5m"), ("q", 10)))
    assert found.written == {"1h": 2000, "5m": 1000}
    usage = found.usage(3010, 5)
    assert (usage.cache_write_1h_tokens, usage.cache_write_tokens) == (2000, 1000)


@pytest.mark.parametrize(
    ("pieces", "why"),
    [
        ([(str(i), 500, "5m") for i in range(5)], "maximum of 4"),
        ([("a", 2000, "5m"), ("b", 2000, "1h")], "must not come after"),
        ([("a", 2000, "30m")], "not supported"),
    ],
)
def test_marks_that_anthropic_refuses_are_refused(pieces: Any, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        SimulatedCache().begin(ANTHROPIC, prompt(*pieces), 0)


def test_anthropics_mark_finds_entries_up_to_twenty_blocks_before_it() -> None:
    for blocks, found in ((18, True), (25, False)):
        cache = SimulatedCache()
        served(cache, ANTHROPIC, prompt(SHARED))
        more = [(f"turn {i}", 10) for i in range(blocks)]
        assert bool(served(cache, ANTHROPIC, prompt(("s", 2000), *more, ("q", 10, "5m"))).read) is found


def test_openais_mark_finds_only_its_own_block() -> None:
    cache = SimulatedCache()
    served(cache, OPENAI, prompt(OPENAI_SHARED))
    assert served(cache, OPENAI, prompt(("s", 2000), ("q", 10, "30m"))).read == 0
    assert served(cache, OPENAI, prompt(OPENAI_SHARED, ("r", 10, "30m"))).read == 2000


def test_by_itself_openai_writes_the_end_of_every_prompt_and_reads_nothing_of_another_row() -> None:
    """The trap: rows that share their system prompt pay 1.25 times for each row."""
    cache = SimulatedCache()
    rows = [prompt(("s", 2000), (f"row {i}", 300), implicit=True) for i in range(3)]
    found = [served(cache, OPENAI, row) for row in rows]
    assert [(f.read, f.written) for f in found] == [(0, {"30m": 2300})] * 3


def test_explicit_mode_without_a_mark_caches_nothing() -> None:
    assert served(SimulatedCache(), OPENAI, prompt(("s", 2000), ("q", 300))) == Served()


def test_older_models_find_any_prefix_in_steps_of_128_tokens_and_write_for_nothing() -> None:
    cache = SimulatedCache()
    assert served(cache, OLD, prompt(("s", 2000), ("a", 300), implicit=True)).written == {}
    assert served(cache, OLD, prompt(("s", 2000), ("b", 300), implicit=True)).read == 1920


def test_older_models_refuse_marks() -> None:
    with pytest.raises(ValueError, match="not supported"):
        SimulatedCache().begin(OLD, prompt(OPENAI_SHARED, implicit=True), 0)


def test_calls_of_one_key_beyond_fifteen_a_minute_meet_another_cache() -> None:
    cache = SimulatedCache()
    reads = [served(cache, OPENAI, prompt(OPENAI_SHARED, (str(i), 10)), i * 0.1).read for i in range(31)]
    assert [i for i, read in enumerate(reads) if not read] == [0, 15, 30]
    assert served(cache, OPENAI, prompt(OPENAI_SHARED, ("later", 10)), 100.0).read == 2000


def test_another_key_is_another_machine() -> None:
    cache = SimulatedCache()
    served(cache, OPENAI, prompt(OPENAI_SHARED, key="one"))
    assert served(cache, OPENAI, prompt(OPENAI_SHARED, key="two")).read == 0


def test_a_text_is_the_same_prompt_as_a_part_with_that_text() -> None:
    plain = {"messages": [{"role": "system", "content": "a"}, {"role": "user", "content": "b"}]}
    parts = {"messages": [{"role": "system", "content": [{"type": "text", "text": "a"}]}, {"role": "user", "content": "b"}]}
    assert [p.content for p in prompt_of_chat("m", plain).pieces] == [p.content for p in prompt_of_chat("m", parts).pieces]
    assert [p.tokens for p in prompt_of_chat("m", plain).pieces] == [p.tokens for p in prompt_of_chat("m", parts).pieces]


def test_a_messages_request_reads_tools_then_system_then_turns() -> None:
    body = {
        "tools": [{"name": "f", "input_schema": {}, "cache_control": {"type": "ephemeral", "ttl": "1h"}}],
        "system": [{"type": "text", "text": "s", "cache_control": {"type": "ephemeral"}}],
        "messages": [{"role": "user", "content": "q"}],
    }
    assert [piece.ttl for piece in prompt_of_messages("m", body).pieces] == ["1h", "5m", None]


def test_rules_follow_the_model() -> None:
    assert [rules_of(m, "openai").kind for m in ("gpt-6-luna", "gpt-5", "gpt-4o", "gpt-4", "gpt-4-turbo", "gpt-3.5-turbo")] == [
        "breakpoints", "automatic", "automatic", "none", "none", "none",
    ]  # fmt: skip
    assert [rules_of(m, "anthropic").min_tokens for m in ("claude-haiku-4-5", "claude-sonnet-4-5", "claude-sonnet-5-5")] == [
        4096,
        1024,
        512,
    ]

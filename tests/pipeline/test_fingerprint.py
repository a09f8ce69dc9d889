"""Which requests may exchange answers."""

from hypothesis import given
from hypothesis import strategies as st

from inference_engine.pipeline.fingerprint import digest, fingerprint_and_scope, flight_id, partition_of

from .support import body, identity

texts = st.text(st.characters(codec="utf-8"), max_size=20)


def test_symbols_case_and_punctuation_make_different_questions() -> None:
    prompts = ["C", "C++", "c", "what is ()", "what is []", "yes?", "yes!", "a  b", "a b"]
    assert len({fingerprint_and_scope("t", "m", body(p), None)[0] for p in prompts}) == len(prompts)


def test_unicode_form_and_outer_white_space_are_folded() -> None:
    assert fingerprint_and_scope("t", "m", body(" caf\u00e9\n"), None) == fingerprint_and_scope("t", "m", body("cafe\u0301"), None)


def test_whole_numbers_are_equal_however_they_are_written() -> None:
    assert fingerprint_and_scope("t", "m", body(temperature=0.0), None) == fingerprint_and_scope("t", "m", body(temperature=0), None)


def test_what_changes_the_answer_changes_the_fingerprint_and_the_scope() -> None:
    base = ("t", "m", body(), None)
    others = [
        ("u", "m", body(), None),
        ("t", "n", body(), None),
        ("t", "m", body(temperature=1), None),
        ("t", "m", body(seed=1), None),
        ("t", "m", body(response_format={"type": "json_object"}), None),
        ("t", "m", body(tools=[{"type": "function", "function": {"name": "f"}}]), None),
        ("t", "m", body(), 0),
        ("t", "m", body(), 1),
    ]
    results = [fingerprint_and_scope(*args) for args in (base, *others)]
    assert len({r[0] for r in results}) == len(results)
    assert len({r[1] for r in results}) == len(results)


def test_fields_about_the_caller_do_not_change_the_fingerprint() -> None:
    assert fingerprint_and_scope("t", "m", body(user="u1", metadata={"a": "b"}, stream=True), None) == fingerprint_and_scope(
        "t", "m", body(), None
    )


def test_only_the_last_message_is_outside_the_scope() -> None:
    def chat(*contents: str) -> str:
        return fingerprint_and_scope("t", "m", {"messages": [{"role": "user", "content": c} for c in contents]}, None)[1]

    assert chat("a", "b") == chat("a", "c")
    assert chat("a", "b") != chat("x", "b")
    assert chat("a", "b") != chat("b")


@given(st.lists(st.binary(max_size=5), max_size=4), st.lists(st.binary(max_size=5), max_size=4))
def test_no_two_lists_of_fields_run_into_one_another(a: list[bytes], b: list[bytes]) -> None:
    assert (digest(a) == digest(b)) == (a == b)


@given(texts, texts, texts, texts)
def test_identities_never_share_a_key_or_a_flight(a: str, b: str, c: str, d: str) -> None:
    one, two = identity("x" + a, "j" + b), identity("x" + c, "j" + d)
    assert (one.key == two.key) == (one == two)
    assert (flight_id("00", one.key) == flight_id("00", two.key)) == (one == two)


@given(st.binary(min_size=32, max_size=32), st.integers(1, 64))
def test_a_partition_is_always_within_bounds(raw: bytes, partitions: int) -> None:
    assert 0 <= partition_of(raw.hex(), partitions) < partitions

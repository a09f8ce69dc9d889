"""Server-sent events: the same events however their bytes are cut."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference_engine.connectors.providers import sse
from inference_engine.connectors.providers.sse import Event, EventReader

STREAM = b': hello\n\nevent: a\ndata: {"x": 1}\nid: 7\n\ndata: one\r\ndata:two\r\n\r\nretry: 5\rdata: three\r\r\nevent: nothing\n\ndata\n\n'
EVENTS = [Event("a", b'{"x": 1}'), Event("", b"one\ntwo"), Event("", b"three"), Event("", b"")]


def read(pieces: list[bytes]) -> list[Event]:
    reader = EventReader()
    return [event for piece in pieces for event in reader.feed(piece)]


@given(st.lists(st.integers(0, len(STREAM)), max_size=12))
def test_any_cutting_of_the_bytes_gives_the_same_events(cuts: list[int]) -> None:
    ends = sorted({0, len(STREAM), *cuts})
    assert read([STREAM[a:b] for a, b in pairwise(ends)]) == EVENTS


def test_an_event_that_has_not_ended_is_none() -> None:
    assert read([b"data: half"]) == []
    assert read([b"data: half\n"]) == []


def test_an_event_that_never_ends_does_not_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "MOST_BYTES", 100)
    with pytest.raises(ValueError, match="100 bytes"):
        read([b"data: " + b"x" * 60, b"x" * 60])

"""Packets: what was made here is read back as what parsing would give."""

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from inference_engine.schemas.packets import PacketCodec, join
from inference_engine.schemas.requests import Miss

from ..pipeline.support import identity, request

texts = st.lists(st.text(max_size=30), min_size=1, max_size=5)


def misses(texts: Sequence[str]) -> list[Miss]:
    return [Miss(request=request(text, who=identity(f"r{i}"))) for i, text in enumerate(texts)]


def packed(codec: PacketCodec[Miss], members: Sequence[Miss]) -> bytes:
    return codec.pack(members, [codec.encode_one(member) for member in members])


@given(texts)
def test_what_is_remembered_is_what_would_be_parsed_and_only_once(texts: list[str]) -> None:
    codec, members = PacketCodec[Miss](Miss, remembered_bytes=1 << 20), misses(texts)
    raw = packed(codec, members)
    remembered, parsed = codec.decode(bytes(raw)), codec.decode(raw)
    assert remembered == parsed == members
    assert all(a is b for a, b in zip(remembered, members, strict=True))
    assert not any(a is b for a, b in zip(parsed, members, strict=True))


@given(texts)
def test_other_bytes_are_never_taken_for_a_packet_that_is_remembered(texts: list[str]) -> None:
    codec, members = PacketCodec[Miss](Miss, remembered_bytes=1 << 20), misses(texts)
    packed(codec, members)
    others = misses([text + "!" for text in texts])
    assert codec.decode(join(codec.encode_one(other) for other in others)) == others


@given(st.lists(texts, max_size=8), st.integers(0, 3_000))
def test_no_more_bytes_are_held_than_there_is_room_for(packets: list[list[str]], room: int) -> None:
    codec = PacketCodec[Miss](Miss, remembered_bytes=room)
    for texts in packets:
        packed(codec, misses(texts))
        assert sum(map(len, codec._remembered)) == codec._held <= room
    for texts in packets:
        codec.decode(join(codec.encode_one(member) for member in misses(texts)))
    assert codec._held == 0

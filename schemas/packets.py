"""Packets: one Kafka record carries up to a few hundred members of the same partition, as a JSON array.

A Kafka record costs a Faust hop whatever it holds; a member costs a few microseconds.
"""

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Any, Generic, TypeVar

from pydantic import TypeAdapter

from .answers import AnswerRecord, VectorRecord
from .costs import CostEvent
from .feedback import LessonRecord
from .ledger import LedgerRecord
from .record import Record
from .requests import Call, Lookup, Miss

R = TypeVar("R", bound=Record)


def join(members: Iterable[bytes]) -> bytes:
    """The packet of members that are encoded already."""
    return b"[" + b",".join(members) + b"]"


class PacketCodec(Generic[R]):
    """Encodes and decodes packets of one kind of member."""

    def __init__(self, member: Any, *, exclude_defaults: bool = True, remembered_bytes: int = 0) -> None:
        """`remembered_bytes`: of packets made here whose members are kept until they are read back."""
        self._one: TypeAdapter[R] = TypeAdapter(member)
        self._many: TypeAdapter[list[R]] = TypeAdapter(list[member])
        self._exclude_defaults = exclude_defaults
        self._remembered: OrderedDict[bytes, list[R]] = OrderedDict()
        self._most, self._held = remembered_bytes, 0

    def decode(self, raw: bytes) -> list[R]:
        """Raises `pydantic.ValidationError` where the bytes are not such a packet."""
        made_here = self._remembered.pop(raw, None)
        if made_here is not None:
            self._held -= len(raw)
            return made_here
        return self._many.validate_json(raw)

    def pack(self, members: Sequence[R], encoded: Sequence[bytes]) -> bytes:
        """The packet of these members, each with what `encode_one` made of it.

        A worker mostly reads what it wrote a moment ago: equal bytes have equal members, and parsing them took a tenth of its time.
        """
        raw = join(encoded)
        if len(raw) <= self._most and raw not in self._remembered:
            self._remembered[raw] = list(members)
            self._held += len(raw)
            while self._held > self._most:
                oldest, _ = self._remembered.popitem(last=False)
                self._held -= len(oldest)
        return raw

    def encode_one(self, member: R) -> bytes:
        return self._one.dump_json(member, exclude_defaults=self._exclude_defaults)

    def encode(self, members: Iterable[R]) -> bytes:
        return join(self.encode_one(m) for m in members)


_ROOM = 2 * 1024 * 1024

lookups: PacketCodec[Lookup] = PacketCodec(Lookup, remembered_bytes=_ROOM)
misses: PacketCodec[Miss] = PacketCodec(Miss, remembered_bytes=_ROOM)
calls: PacketCodec[Call] = PacketCodec(Call, remembered_bytes=_ROOM)
answers: PacketCodec[AnswerRecord] = PacketCodec(AnswerRecord, remembered_bytes=_ROOM)
vectors: PacketCodec[VectorRecord] = PacketCodec(VectorRecord)
costs: PacketCodec[CostEvent] = PacketCodec(CostEvent)
# The type of a ledger record is a field with a default: it must be written.
ledger: PacketCodec[LedgerRecord] = PacketCodec(LedgerRecord, exclude_defaults=False, remembered_bytes=_ROOM)
lessons: PacketCodec[LessonRecord] = PacketCodec(LessonRecord, exclude_defaults=False)

"""Packets: one Kafka record carries up to a few hundred members of the same partition, as a JSON array.

A Kafka record costs a Faust hop whatever it holds; a member costs a few microseconds.
"""

from collections.abc import Iterable
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

    def __init__(self, member: Any, *, exclude_defaults: bool = True) -> None:
        self._one: TypeAdapter[R] = TypeAdapter(member)
        self._many: TypeAdapter[list[R]] = TypeAdapter(list[member])
        self._exclude_defaults = exclude_defaults

    def decode(self, raw: bytes) -> list[R]:
        """Raises `pydantic.ValidationError` where the bytes are not such a packet."""
        return self._many.validate_json(raw)

    def encode_one(self, member: R) -> bytes:
        return self._one.dump_json(member, exclude_defaults=self._exclude_defaults)

    def encode(self, members: Iterable[R]) -> bytes:
        return join(self.encode_one(m) for m in members)


lookups: PacketCodec[Lookup] = PacketCodec(Lookup)
misses: PacketCodec[Miss] = PacketCodec(Miss)
calls: PacketCodec[Call] = PacketCodec(Call)
answers: PacketCodec[AnswerRecord] = PacketCodec(AnswerRecord)
vectors: PacketCodec[VectorRecord] = PacketCodec(VectorRecord)
costs: PacketCodec[CostEvent] = PacketCodec(CostEvent)
# The type of a ledger record is a field with a default: it must be written.
ledger: PacketCodec[LedgerRecord] = PacketCodec(LedgerRecord, exclude_defaults=False)
lessons: PacketCodec[LessonRecord] = PacketCodec(LessonRecord, exclude_defaults=False)

"""Answers on disk: a journal in the order of arrival, an index by row, and the answers file in the order of the input.

Memory does not grow with the job: a row is 16 bytes of `rows.idx`. A kill at any byte leaves files that can be gone on with:
the journal is written before the index points at it, and the index before the answers file shows it.
"""

import errno
import os
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

from ..pipeline.errors import EngineError
from .budget import MICRO

_ENTRY = struct.Struct("<QII")
_KIND_SHIFT = 56
_OFFSET_MASK = (1 << _KIND_SHIFT) - 1
_SCAN_ROWS = 4096

Share = Callable[[bytes], bytes]


class DiskFull(EngineError):
    """What is written so far is kept; the job can go on when there is room."""

    code = "disk_full"


class StateDamaged(EngineError):
    """The files of a job contradict each other."""

    code = "state_damaged"


@contextmanager
def disk_errors(what: str) -> Iterator[None]:
    """Turns 'no space left' into `DiskFull`."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise DiskFull(
                f"{what} can't be written: {error.strerror}. Everything answered so far is kept and nothing is paid twice; "
                "make room and run the same command again"
            ) from error
        raise


def write_all(fd: int, data: bytes) -> None:
    """`os.write` may take only a part."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


class Kind(IntEnum):
    """What is known of a row."""

    UNREAD = 0
    ASKED = 1
    """offset and length: of its line in the input."""
    ANSWERED = 2
    """offset and length: of its line in the journal."""
    FAILED = 3
    """The same, and the line is an error."""
    SAME_AS = 4
    """offset: the earlier row that asks for the same under the same custom_id."""
    HELD = 5
    """Not sent, since its cap does not fit the budget; as ASKED."""


_NO_LINE = frozenset({Kind.ASKED, Kind.HELD})


@dataclass(frozen=True, slots=True)
class Entry:
    kind: Kind
    offset: int = 0
    length: int = 0
    crc: int = 0
    """Of the line in the journal; of ASKED and HELD rows a cap in millionths of a dollar: the one told to the engine, the least that is
    needed. 0 where it is not known."""

    @classmethod
    def with_cap(cls, kind: Kind, offset: int, length: int, cap_pico: int) -> "Entry":
        """Of an ASKED or HELD row; caps beyond the room for them are not known then."""
        micros = -(-cap_pico // MICRO)
        return cls(kind, offset, length, micros if micros < 1 << 32 else 0)

    @property
    def cap_pico(self) -> int:
        return self.crc * MICRO if self.kind in _NO_LINE else 0


_KINDS = tuple(Kind)


class RowIndex:
    """`rows.idx`: one `Entry` of 16 bytes per row; rows never written are UNREAD."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)

    def get(self, row: int) -> Entry:
        raw = os.pread(self._fd, _ENTRY.size, row * _ENTRY.size)
        return _decode(raw) if len(raw) == _ENTRY.size else Entry(Kind.UNREAD)

    def put(self, row: int, entry: Entry) -> None:
        with disk_errors("the index of the answers"):
            os.pwrite(self._fd, _ENTRY.pack(entry.kind << _KIND_SHIFT | entry.offset, entry.length, entry.crc), row * _ENTRY.size)

    def scan(self, start: int = 0, stop: int | None = None) -> Iterator[tuple[int, Entry]]:
        """Rows in order, as far as any was written; constant memory."""
        row = start
        while stop is None or row < stop:
            want = _SCAN_ROWS if stop is None else min(_SCAN_ROWS, stop - row)
            raw = os.pread(self._fd, want * _ENTRY.size, row * _ENTRY.size)
            whole = len(raw) - len(raw) % _ENTRY.size
            if not whole:
                return
            for at in range(0, whole, _ENTRY.size):
                yield row, _decode(raw[at : at + _ENTRY.size])
                row += 1

    def resolve(self, entry: Entry) -> Entry:
        """The entry that has the line: a repeated row stands for an earlier one."""
        return self.get(entry.offset) if entry.kind is Kind.SAME_AS else entry

    def tally(self, stop: int | None = None) -> dict[Kind, int]:
        """Rows by kind, repeated rows counted as the row they stand for."""
        counts = dict.fromkeys(Kind, 0)
        for _, entry in self.scan(0, stop):
            counts[self.resolve(entry).kind] += 1
        return counts

    def sync(self) -> None:
        os.fsync(self._fd)

    def close(self) -> None:
        os.close(self._fd)


def _decode(raw: bytes) -> Entry:
    packed, length, crc = _ENTRY.unpack(raw)
    return Entry(_KINDS[packed >> _KIND_SHIFT], packed & _OFFSET_MASK, length, crc)


class Journal:
    """`spool.jsonl`: `<row> <tab> <line>` in the order of arrival, only ever appended to."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        self._end = self._cut_torn_tail()

    def _cut_torn_tail(self) -> int:
        """A kill or a full disk may have left half a line at the end."""
        end = os.fstat(self._fd).st_size
        at = end
        while at > 0:
            start = max(0, at - (1 << 16))
            found = os.pread(self._fd, at - start, start).rfind(b"\n")
            if found >= 0:
                at = start + found + 1
                break
            at = start
        if at != end:
            os.ftruncate(self._fd, at)
        return at

    @property
    def end(self) -> int:
        return self._end

    def append(self, lines: Sequence[tuple[int, bytes, bool]]) -> list[tuple[int, Entry]]:
        """Writes (row, line, ok) triples; returns the entries to be put into the index afterwards. Raises `DiskFull`."""
        parts: list[bytes] = []
        entries: list[tuple[int, Entry]] = []
        at = self._end
        for row, line, ok in lines:
            head = b"%d\t" % row
            kind = Kind.ANSWERED if ok else Kind.FAILED
            entries.append((row, Entry(kind, at + len(head), len(line), zlib.crc32(line))))
            parts += (head, line, b"\n")
            at += len(head) + len(line) + 1
        try:
            with disk_errors("the journal of the answers"):
                write_all(self._fd, b"".join(parts))
        except BaseException:
            self._end = self._cut_torn_tail()
            raise
        self._end = at
        return entries

    def read(self, entry: Entry) -> bytes:
        """The line of an ANSWERED or FAILED entry. Raises `StateDamaged` where it is not what was written."""
        line = os.pread(self._fd, entry.length, entry.offset)
        if len(line) != entry.length or zlib.crc32(line) != entry.crc:
            raise StateDamaged(
                "the journal of the answers is damaged (a power cut?): delete the .state folder beside the answers file and run "
                "again; answers that the engine still has are not paid again"
            )
        return line

    def scan(self, start: int) -> Iterator[tuple[int, int, bytes]]:
        """(row, offset of the line, line) from a journal offset to the end; constant memory."""
        at, rest = start, b""
        while block := os.pread(self._fd, 1 << 20, at + len(rest)):
            lines = (rest + block).split(b"\n")
            rest = lines.pop()
            for record in lines:
                number, _, line = record.partition(b"\t")
                yield int(number), at + len(number) + 1, line
                at += len(record) + 1

    def sync(self) -> None:
        with disk_errors("the journal of the answers"):
            os.fsync(self._fd)

    def close(self) -> None:
        os.close(self._fd)


class AnswersFile:
    """The user's file: the answered rows from the first one on without a gap, in input order, growing as they come."""

    def __init__(self, path: Path, rows: int, size: int) -> None:
        """Goes on after `rows` rows that take `size` bytes; what stands behind them is cut off.

        Begins again, from the journal, where the file is shorter than that.
        """
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        if os.fstat(self._fd).st_size < size:
            rows = size = 0
        os.ftruncate(self._fd, size)
        os.lseek(self._fd, size, os.SEEK_SET)
        self.rows, self.size = rows, size

    def advance(self, index: RowIndex, journal: Journal, total: int, *, share: Share = bytes, limit: int = 20_000) -> bool:
        """Writes what can be written now, at most `limit` rows. True where there may be more. `share`: what a repeat of a line says."""
        lines: list[bytes] = []
        pending = 0
        for _, entry in index.scan(self.rows, min(total, self.rows + limit)):
            source = index.resolve(entry)
            if source.kind not in (Kind.ANSWERED, Kind.FAILED):
                break
            line = journal.read(source)
            lines.append(line if source is entry else share(line))
            pending += len(lines[-1])
            if pending > 1 << 22:
                break
        self.write(lines)
        return bool(lines)

    def write(self, lines: Sequence[bytes]) -> None:
        """Appends whole lines. Raises `DiskFull`."""
        if not lines:
            return
        data = b"\n".join(lines) + b"\n"
        try:
            with disk_errors("the answers file"):
                write_all(self._fd, data)
        except BaseException:
            os.ftruncate(self._fd, self.size)
            os.lseek(self._fd, self.size, os.SEEK_SET)
            raise
        self.rows += len(lines)
        self.size += len(data)

    def sync(self) -> None:
        with disk_errors("the answers file"):
            os.fsync(self._fd)

    def close(self) -> None:
        os.close(self._fd)

"""The user's file, read lazily: rows are the lines that are not blank."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import BinaryIO

from ..pipeline.errors import ConfigError
from .rows import MAX_LINE_BYTES

_HEAD_BYTES = 4096
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class Line:
    """One row as it stands in the file."""

    row: int
    """From 0, blank lines not counted."""
    offset: int
    length: int
    """In bytes, line feed included."""
    data: bytes
    """Without line feed and outer white space; the head only, where `oversized`."""
    oversized: bool = False


@dataclass(frozen=True, slots=True)
class Measured:
    """What the whole file was when the job began."""

    rows: int
    size: int
    digest: str


def open_input(path: Path) -> BinaryIO:
    """Raises `ConfigError` with the reason where the file can't be read."""
    try:
        if path.is_dir():
            raise ConfigError(f"{path} is a folder: give a JSONL file, one request a line")
        return path.open("rb", buffering=1 << 20)
    except FileNotFoundError:
        raise ConfigError(f"{path} does not exist: give a JSONL file, one request a line") from None
    except OSError as error:
        raise ConfigError(f"{path} can't be read: {error.strerror}") from error


def read_lines(file: BinaryIO, *, row: int = 0, offset: int = 0, end: int | None = None) -> Iterator[Line]:
    """Rows from a row and the byte offset where it may begin, up to the byte `end`; one line in memory at a time."""
    if offset:
        file.seek(offset)
    at = offset
    while end is None or at < end:
        raw = file.readline(MAX_LINE_BYTES)
        if not raw:
            return
        length, oversized, more = len(raw), False, False
        if length == MAX_LINE_BYTES and not raw.endswith(b"\n"):
            skipped, more = _skip_line(file)
            length, oversized = length + skipped, True
        data = (raw.removeprefix(_BOM) if at == 0 else raw).strip()
        if data or more:
            yield Line(row, at, length, data[:_HEAD_BYTES] if oversized else data, oversized)
            row += 1
        at += length


def _skip_line(file: BinaryIO) -> tuple[int, bool]:
    """(bytes, whether they are more than white space) up to the end of the line."""
    skipped, content = 0, False
    while part := file.readline(1 << 20):
        skipped += len(part)
        content = content or bool(part.strip())
        if part.endswith(b"\n"):
            break
    return skipped, content


def read_line_at(fd: int, row: int, offset: int, length: int) -> Line:
    """One row again, by where it stood; leaves the file's position alone."""
    oversized = length >= MAX_LINE_BYTES
    raw = os.pread(fd, _HEAD_BYTES if oversized else length, offset)
    return Line(row, offset, length, (raw.removeprefix(_BOM) if offset == 0 else raw).strip(), oversized)


def measure(path: Path) -> Measured:
    """Counts the rows and takes the digest of the whole file in one pass. Raises `ConfigError`."""
    digest = blake2b(digest_size=16)
    rows, size, blank, first = 0, 0, True, True
    with open_input(path) as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
            size += len(chunk)
            if first:
                chunk, first = chunk.removeprefix(_BOM), False
            *whole, rest = chunk.split(b"\n")
            for line in whole:
                rows += not blank or bool(line.strip())
                blank = True
            blank = blank and not rest.strip()
    return Measured(rows + (not blank), size, digest.hexdigest())

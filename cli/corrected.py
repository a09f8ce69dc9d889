"""A requests file in which failed rows were put right after the job had ended: the other rows must still be what was answered."""

from pathlib import Path

from ..pipeline.errors import ConfigError
from .input_file import open_input, read_lines
from .rows import Row, RowDefaults, id_digest, oversized_row, parse_row
from .spool import Kind, RowIndex
from .state import JobDatabase

NOT_TO_BE_RETRIED = frozenset(
    {
        "invalid_json", "invalid_utf8", "invalid_request", "missing_messages", "request_too_large", "duplicate_custom_id", "unknown_model",
        "model_disabled",
    }
)  # fmt: skip
"""Errors of the row itself: asked again as it is, it fails again."""


def corrected_rows(input_file: Path, size: int, defaults: RowDefaults, index_file: Path, database: JobDatabase) -> list[int]:
    """The failed rows that ask for something else now, or had never asked for anything.

    Raises `ConfigError` where a row that was answered is another one now.
    """
    found: list[int] = []
    index = RowIndex(index_file)
    try:
        with open_input(input_file) as file:
            for line in read_lines(file, end=size):
                number = line.row + 1
                parsed = oversized_row(line.data, number, line.length) if line.oversized else parse_row(line.data, number, defaults)
                known = database.content(id_digest(parsed.custom_id)) if isinstance(parsed, Row) else None
                same = isinstance(parsed, Row) and known == parsed.content_digest()
                answered = index.resolve(index.get(line.row)).kind is Kind.ANSWERED
                if answered and not same:
                    raise ConfigError(
                        f"row {number} of {input_file.name} was answered and is another one now; only rows that failed may be changed: "
                        "restore it, or give the new rows a file and -o of their own"
                    )
                if not answered and not same:
                    found.append(line.row)
    finally:
        index.close()
    return found

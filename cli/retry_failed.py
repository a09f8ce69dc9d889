"""`--retry-failed`: the rows that failed become rows to be asked; all others keep their answers."""

from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path

from ..pipeline.errors import ConfigError
from .input_file import Line, read_lines
from .job import Job
from .job_files import JobFiles, output_lines
from .outcome import NotAResponse, Totals, read_outcome
from .rows import Row, RowDefaults, id_digest, parse_row
from .spool import Entry, Kind

_BATCH = 500
_NEEDS = "--retry-failed needs the answers file that `run` wrote for these requests"


def rebuild(files: JobFiles, defaults: RowDefaults, answers: Path, totals: Totals | None) -> Totals:
    """Fills an empty state from an answers file. `totals`: where they are known; else summed from its lines.

    Raises `ConfigError` where the file has other rows than the input.
    """
    summed = Totals()
    pairs = zip_longest(_rows(files), output_lines(answers))
    done = False
    while not done:
        with files.database.transaction():
            done = _rebuild_some(files, defaults, pairs, summed)
    kept = totals or summed
    files.save_checkpoint(kept, {}, files.load_seconds(), sync=True)
    with files.database.transaction():
        files.save_cursor((files.database.get("job")["rows"], files.input_size))
    return kept


def _rebuild_some(files: JobFiles, defaults: RowDefaults, pairs: Iterator[tuple[Line | None, bytes | None]], summed: Totals) -> bool:
    lines: list[tuple[int, bytes, bool]] = []
    for row, answer in pairs:
        if row is None or answer is None:
            raise ConfigError(f"the answers file and the requests file have not the same number of rows: {_NEEDS}")
        try:
            outcome = read_outcome(answer)
        except NotAResponse as error:
            raise ConfigError(f"line {row.row + 1} of the answers file is no response ({error}): {_NEEDS}") from error
        parsed = None if row.oversized else parse_row(row.data, row.row + 1, defaults)
        first = row.row
        if isinstance(parsed, Row):
            first, _ = files.database.claim(id_digest(parsed.custom_id), row.row, parsed.content_digest())
        if first == row.row:
            summed.add(outcome)
        lines.append((row.row, answer, outcome.ok))
        if len(lines) == _BATCH:
            break
    for number, entry in files.journal.append(lines):
        files.index.put(number, entry)
    return len(lines) < _BATCH


def reask_failed(job: Job) -> int:
    """Marks the failed rows to be asked again; how many. Rows that can't be sent stay failed."""
    files, defaults, marked = job.files, job.defaults, 0
    rows = _rows(files)
    cursor_row, _ = files.load_cursor()
    corrected = frozenset(files.database.get("corrected") or ())
    for number, entry in files.index.scan(0, cursor_row):
        line = next(rows)
        if entry.kind is not Kind.FAILED or line.oversized:
            continue
        parsed = parse_row(line.data, line.row + 1, defaults)
        if not isinstance(parsed, Row):
            continue
        content = parsed.content_digest()
        with files.database.transaction():
            first, first_content = files.database.claim(id_digest(parsed.custom_id), number, content)
        if first == number:
            if number in corrected:
                job.asks_anew(number)
            else:
                # What the failed tries took stays in the sums; the next response tells it once more.
                job.set_aside(number, read_outcome(files.journal.read(entry)).spent)
            files.index.put(number, Entry(Kind.HELD, line.offset, line.length))
            marked += 1
        elif first_content == content:
            files.index.put(number, Entry(Kind.SAME_AS, first))
    with files.database.transaction():
        files.database.put("rebuilding", False)
        files.database.put("corrected", [])
    return marked


def _rows(files: JobFiles) -> Iterator[Line]:
    """From the first row on; the iterator has the file's position while it is read."""
    files.input.seek(0)
    return read_lines(files.input, end=files.input_size)

"""`submit`: produces a file, or standard input, to the requests topic; returns when Kafka has acknowledged every request."""

import secrets
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import BinaryIO

from ..connectors.kafka_bulk import BulkConsumer, BulkProducer
from ..pipeline.errors import ConfigError, Rejected
from ..schemas.topics import Topics
from .input_file import Line, measure, open_input, read_lines
from .rows import BadRow, Row, RowDefaults, id_digest, local_error_line, oversized_row, parse_row, request_key
from .spool import disk_errors
from .state import JobDatabase
from .submitted import Submission, Submissions

FLUSH_S = 180.0


@dataclass(frozen=True, slots=True)
class SubmitResult:
    job: str
    sent: int
    repeated: int
    """Rows that ask for the same as an earlier one under the same custom_id: one request."""
    bad: int


@dataclass(frozen=True, slots=True)
class SubmitOptions:
    source: Path | None
    """None: standard input."""
    tenant: str
    defaults: RowDefaults
    """Its job is empty where a name is to be made."""


Tell = Callable[[str], None]


@contextmanager
def _opened(source: Path | None, stdin: BinaryIO) -> Iterator[BinaryIO]:
    if source is None:
        yield stdin
        return
    with open_input(source) as file:
        yield file


def job_name(options: SubmitOptions) -> str:
    """The same file is the same job, so that submitting it twice asks nothing twice; each standard input is a new one."""
    if options.defaults.job:
        return options.defaults.job
    if options.source is None:
        return f"stdin-{uuid.uuid4().hex[:12]}"
    stem = "".join(c if c.isalnum() or c in "-_." else "-" for c in options.source.stem)[:60]
    return f"{stem}-{measure(options.source).digest[:10]}"


def submit_job(options: SubmitOptions, brokers: str, topics: Topics, submissions: Submissions, stdin: BinaryIO, tell: Tell) -> SubmitResult:
    """Bad rows are told and kept for `collect`; they stop nothing. Raises `ConfigError`, `Unavailable` (submit again: it is safe)."""
    defaults = replace(options.defaults, job=job_name(options))
    responses = BulkConsumer(brokers, topics.responses)
    requests = BulkConsumer(brokers, topics.requests)
    producer = BulkProducer(brokers)
    try:
        requests.partitions()
        offsets, cluster = responses.end_offsets(), responses.cluster_id()
        known = submissions.load(options.tenant, defaults.job)
        goes_on = known is not None and known.cluster == cluster
        if known is not None and goes_on:
            offsets = {int(p): o for p, o in known.offsets.items()}  # answers of the first time count
        with _opened(options.source, stdin) as file:
            result, all_sent = _send_all(_Sender(options.tenant, defaults, producer, topics, tell), file, submissions, goes_on=goes_on)
        producer.flush(FLUSH_S)
        kept = Submission(options.tenant, defaults.job, all_sent, cluster, {str(p): o for p, o in offsets.items()})
        submissions.save(kept)
    finally:
        producer.close()
        requests.close()
        responses.close()
    return result


def _send_all(sender: "_Sender", file: BinaryIO, submissions: Submissions, *, goes_on: bool) -> tuple[SubmitResult, int]:
    """And how many requests of the job were sent in all. `goes_on`: requests of an earlier submission are part of it."""
    errors = submissions.errors_file(sender.tenant, sender.defaults.job)
    errors.parent.mkdir(parents=True, exist_ok=True)
    with disk_errors("the list of rows that were not sent"):
        database = JobDatabase(submissions.ids_file(sender.tenant, sender.defaults.job))
        try:
            if not goes_on:
                database.clear()
            # No transaction around them all: standard input may go on for hours, and another submission of the job beside it.
            with errors.open("wb") as kept:
                for line in read_lines(file):
                    bad = sender.send(line, database)
                    if bad is not None:
                        kept.write(local_error_line(sender.tenant, sender.defaults.job, bad) + b"\n")
            all_sent = database.claimed()
        finally:
            database.close()
    return SubmitResult(sender.defaults.job, sender.sent, sender.repeated, sender.bad), all_sent


@dataclass(slots=True)
class _Sender:
    tenant: str
    defaults: RowDefaults
    producer: BulkProducer
    topics: Topics
    tell: Tell
    base: int = field(default_factory=lambda: secrets.randbits(30) << 32)
    """Tells the rows of this submission from those of others of the job."""
    sent: int = 0
    repeated: int = 0
    bad: int = 0

    def send(self, line: Line, database: JobDatabase) -> BadRow | None:
        number = line.row + 1
        parsed = oversized_row(line.data, number, line.length) if line.oversized else parse_row(line.data, number, self.defaults)
        if isinstance(parsed, Row):
            parsed = self._send_row(line.row, parsed, database)
        if isinstance(parsed, BadRow):
            self.bad += 1
            self.tell(f"row {number} ({parsed.custom_id}): {parsed.reason}")
            return parsed
        return None

    def _send_row(self, row: int, parsed: Row, database: JobDatabase) -> Row | BadRow:
        content, digest, mine = parsed.content_digest(), id_digest(parsed.custom_id), self.base + row
        first, first_content = database.claim(digest, mine, content)
        ours = 0 <= first - self.base < 1 << 32
        if first_content != content:
            who = f"row {first - self.base + 1}" if ours else "an earlier submission of this job"
            return BadRow(parsed.custom_id, "duplicate_custom_id", f"{who} has this custom_id with another body; the row was not sent")
        if ours and first != mine:
            self.repeated += 1
            return parsed
        if not ours:
            database.reclaim(digest, mine, content)  # sent once more, since nobody knows whether it was
        key = request_key(self.tenant, self.defaults.job, parsed.custom_id)
        try:
            topic = self.topics.bulk_requests if parsed.bulk else self.topics.requests
            self.producer.produce(topic, key, parsed.value, headers=(("tenant", self.tenant.encode()),))
        except Rejected as error:
            database.release(digest)
            return BadRow(parsed.custom_id, error.code, f"{error}; the row was not sent")
        self.producer.poll(0)
        self.sent += 1
        return parsed


def standard_input(stream: BinaryIO) -> BinaryIO:
    """Refused where it is a terminal, that nobody types JSONL into. Raises `ConfigError`."""
    if stream.isatty():
        raise ConfigError("standard input is a terminal: pipe a JSONL file into `inference-engine submit -`")
    return stream

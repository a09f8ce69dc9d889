"""`collect`: the responses of one job, from the topic into a file, one line per custom_id. Asks nothing; that is `run`'s."""

import os
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import orjson

from ..connectors.kafka_bulk import BulkConsumer
from ..pipeline.errors import ConfigError
from ..schemas.topics import Topics
from .outcome import NotAResponse, Totals, read_outcome
from .rows import custom_id_of, id_digest, job_prefix
from .spool import Journal, disk_errors
from .state import JobDatabase, as_offsets
from .submitted import Submissions

READ_BATCH = 5_000


@dataclass(frozen=True, slots=True)
class CollectOptions:
    tenant: str
    job: str
    output: Path
    wait: bool | None = None
    """True: until all are there. False: only what is there now. None: until all, where their number is known, else until idle."""
    count: int | None = None
    """How many requests the job has, where `submit` did not run on this machine."""
    idle_s: float = 10.0
    timeout_s: float | None = None


@dataclass(frozen=True, slots=True)
class CollectResult:
    answered: int
    failed: int
    expected: int | None
    totals: Totals

    @property
    def missing(self) -> int:
        return max(0, (self.expected or 0) - self.answered - self.failed)

    @property
    def exit_code(self) -> int:
        return 0 if self.answered and not self.failed and not self.missing else 1


class Best:
    """The best response so far of each custom_id: an answer beats an error, else the first one stays. Constant memory."""

    def __init__(self, folder: Path) -> None:
        self._journal = Journal(folder / "spool.jsonl")
        self._ids = JobDatabase(folder / "ids.db")
        self._serial = 0
        self.answered = 0
        self.failed = 0

    def take(self, prefix: bytes, records: list[tuple[bytes | None, bytes | None]]) -> int:
        """Takes (key, value) pairs of the responses topic; how many of them were news of this job."""
        lines: list[tuple[int, bytes, bool]] = []
        with self._ids.transaction():
            for key, value in records:
                custom_id = None if key is None or value is None else custom_id_of(key, prefix)
                if custom_id is None or value is None:
                    continue
                try:
                    outcome = read_outcome(value)
                except NotAResponse:
                    continue  # the request is still without a response
                if self._is_news(custom_id, outcome.ok):
                    lines.append((self._serial, outcome.line, outcome.ok))
                    self._serial += 1
            self._journal.append(lines)
        return len(lines)

    def _is_news(self, custom_id: str, ok: bool) -> bool:
        digest, state = id_digest(custom_id), b"ok" if ok else b"error"
        first, known = self._ids.claim(digest, self._serial, state)
        if first != self._serial:
            if known == b"ok" or not ok:
                return False
            self._ids.reclaim(digest, self._serial, state)
            self.failed -= 1
        self.answered += ok
        self.failed += not ok
        return True

    def lines(self) -> Iterator[bytes]:
        """One line per custom_id, in the order of arrival."""
        for serial, _, line in self._journal.scan(0):
            if self._ids.holder(id_digest(orjson.loads(line)["custom_id"])) == serial:
                yield line

    def close(self) -> None:
        self._journal.close()
        self._ids.close()


def collect_job(options: CollectOptions, brokers: str, topics: Topics, submissions: Submissions) -> CollectResult:
    """Writes the file whole or not at all. Raises `ConfigError` (also of a job that nothing is known of), `Unavailable`, `DiskFull`: then
    an earlier file stands as it was.
    """
    known = submissions.load(options.tenant, options.job)
    expected = options.count if options.count is not None else (known.requests if known is not None else None)
    if options.wait and expected is None:
        raise ConfigError(f"how many requests the job {options.job!r} has is not known here: say --count N to wait for all of them")
    consumer = BulkConsumer(brokers, topics.responses)
    try:
        same = known is not None and known.cluster == consumer.cluster_id()
        consumer.assign(as_offsets(known.offsets) if known is not None and same else None)
        with disk_errors("the answers"), tempfile.TemporaryDirectory(dir=_parent(options.output), prefix=".collect-") as scratch:
            best = Best(Path(scratch))
            try:
                _read(options, consumer, best, expected)
                if expected is None and not best.answered + best.failed:
                    raise _unknown(options)
                return _write(options, best, expected, submissions.errors(options.tenant, options.job), Path(scratch))
            finally:
                best.close()
    finally:
        consumer.close()


def _unknown(options: CollectOptions) -> ConfigError:
    return ConfigError(
        f"the job {options.job!r} of tenant {options.tenant!r} is not known: it was not submitted from this machine and has no response "
        "yet; nothing was written. Check the name, or say --count N to wait for its requests"
    )


def _parent(output: Path) -> Path:
    if output.is_dir():
        raise ConfigError(f"{output} is a folder: -o names the file for the answers")
    if not output.absolute().parent.is_dir():
        raise ConfigError(f"the folder of {output} does not exist")
    return output.absolute().parent


def _read(options: CollectOptions, consumer: BulkConsumer, best: Best, expected: int | None) -> None:
    prefix = job_prefix(options.tenant, options.job)
    ends = consumer.end_offsets()
    began = news_at = time.monotonic()
    while True:
        now = time.monotonic()
        if expected is not None and best.answered + best.failed >= expected:
            return
        caught_up = consumer.caught_up(ends)
        if caught_up and options.wait is False:
            return
        if caught_up and expected is None and now - news_at >= options.idle_s:
            return
        if options.timeout_s is not None and now - began >= options.timeout_s:
            return
        if best.take(prefix, consumer.poll_batch(READ_BATCH, 0.2)) or not caught_up:
            news_at = time.monotonic()


def _write(options: CollectOptions, best: Best, expected: int | None, errors: Iterator[bytes], scratch: Path) -> CollectResult:
    part = scratch / "answers.jsonl"
    totals, unsent = Totals(), 0
    with part.open("wb", buffering=1 << 20) as file:
        for line in best.lines():
            totals.add(read_outcome(line))
            file.write(line + b"\n")
        for line in errors:
            file.write(line + b"\n")
            unsent += 1
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, options.output)
    return CollectResult(best.answered, best.failed + unsent, None if expected is None else expected + unsent, totals)

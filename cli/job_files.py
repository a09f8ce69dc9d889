"""The files of one `run`: input, answers, and the state between them; which of them make a new job, which one to go on with."""

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any, BinaryIO

import orjson

from ..pipeline.errors import ConfigError
from .corrected import corrected_rows
from .input_file import Measured, measure, open_input
from .outcome import Totals
from .rows import RowDefaults
from .spool import AnswersFile, Journal, RowIndex, disk_errors
from .state import STATE_VERSION, JobDatabase, StateFolder, as_offsets

_START_OVER = "to start over, delete {state} and {answers}, or choose another -o"


@dataclass(frozen=True, slots=True)
class Finished:
    """An earlier run answered every row, or ended with failed ones."""

    job: str
    requests: int
    failed: int
    seconds: float
    totals: Totals


@dataclass(slots=True)
class JobFiles:
    """Open files of a job; `close` lets go of them."""

    folder: StateFolder
    database: JobDatabase
    journal: Journal
    index: RowIndex
    answers: AnswersFile
    answers_path: Path
    input: BinaryIO
    input_size: int
    rewriting: bool
    """The answers file replaces an earlier one when the job ends."""
    _synced: float = field(default_factory=time.monotonic)

    def save_cursor(self, cursor: tuple[int, int]) -> None:
        self.database.put("cursor", cursor)

    def load_cursor(self) -> tuple[int, int]:
        row, offset = self.database.get("cursor", (0, 0))
        return int(row), int(offset)

    def save_checkpoint(self, totals: Totals, offsets: dict[int, int], seconds: float, *, sync: bool) -> None:
        """What is behind the checkpoint is read again after a kill. `sync`: to the disk, against power cuts."""
        if sync:
            self.journal.sync()
            self.index.sync()
            self.answers.sync()
        checkpoint = {
            "totals": totals.as_dict(),
            "journal_end": self.journal.end,
            "offsets": offsets,
            "answers": [self.answers.rows, self.answers.size],
            "seconds": seconds,
        }
        with self.database.transaction():
            self.database.put("checkpoint", checkpoint)

    def save_totals(self, totals: Totals) -> None:
        """Within a transaction: sums over all that is in the journal."""
        checkpoint = self.database.get("checkpoint") or {"offsets": {}, "answers": [0, 0], "seconds": 0.0}
        self.database.put("checkpoint", {**checkpoint, "totals": totals.as_dict(), "journal_end": self.journal.end})

    def load_totals(self) -> tuple[Totals, int]:
        """Sums up to a place in the journal."""
        checkpoint = self.database.get("checkpoint")
        if checkpoint is None:
            return Totals(), 0
        return Totals.from_dict(checkpoint["totals"]), int(checkpoint["journal_end"])

    def load_seconds(self) -> float:
        return float((self.database.get("checkpoint") or {}).get("seconds", 0.0))

    def load_offsets(self, cluster: str) -> dict[int, int] | None:
        """Where to read the responses on from; None where none are known of this Kafka."""
        stored = self.database.get("offsets") or {}
        if stored.get("cluster") != cluster:
            return None
        return {**as_offsets(stored["began"]), **as_offsets((self.database.get("checkpoint") or {}).get("offsets"))}

    def begin_at(self, cluster: str, offsets: dict[int, int]) -> None:
        """Responses of this job can't be before these offsets. Forgets where another Kafka was read."""
        checkpoint = self.database.get("checkpoint")
        with self.database.transaction():
            self.database.put("offsets", {"cluster": cluster, "began": offsets})
            if checkpoint is not None:
                self.database.put("checkpoint", {**checkpoint, "offsets": {}})

    def finish(self, finished: Finished) -> None:
        """The answers file is whole: puts it in its place; keeps the state while rows failed, for `--retry-failed`."""
        self.answers.sync()
        if self.rewriting:
            with disk_errors("the answers file"):
                os.replace(self.folder.rewrite, self.answers_path)
        with self.database.transaction():
            self.database.put("rewriting", False)
            self.database.put("finished", {"failed": finished.failed, "seconds": finished.seconds, "totals": finished.totals.as_dict()})
        if not finished.failed:
            self.database.clear()
            self.folder.drop_bulk()

    def show_unfinished(self) -> None:
        """Puts an answers file with rows that are not final in its place; the next run goes on from the journal."""
        self.answers.sync()
        if self.rewriting:
            with disk_errors("the answers file"):
                os.replace(self.folder.rewrite, self.answers_path)

    def close(self) -> None:
        for part in (self.answers, self.index, self.journal, self.database, self.input):
            part.close()
        self.folder.release()


@dataclass(frozen=True, slots=True)
class JobRequest:
    """What the command line asks for."""

    input: Path
    output: Path
    tenant: str
    defaults: RowDefaults
    """Its job is empty where the name follows from the files."""
    retry_failed: bool = False


@dataclass(frozen=True, slots=True)
class Opened:
    """A job to work on, or what became of it."""

    facts: dict[str, Any]
    defaults: RowDefaults
    total: int
    resumed: bool
    files: JobFiles | None
    finished: Finished | None = None
    rebuild: bool = False
    """`--retry-failed`, and all that is left of the first run is its answers file."""
    reask: bool = False
    """`--retry-failed`: the failed rows of the state are to be asked again."""


def open_job(request: JobRequest) -> Opened:
    """Finds or makes the job for these files. Raises `ConfigError` where they don't fit together."""
    folder = StateFolder(request.output)
    _check_output(request)
    with open_input(request.input):
        pass  # before a folder is made for a file that can't be read
    folder.take()
    try:
        database = JobDatabase(folder.database)
        return _open(request, folder, database)
    except BaseException:
        folder.release()
        raise


def _check_output(request: JobRequest) -> None:
    if request.output.is_dir():
        raise ConfigError(f"{request.output} is a folder: -o names the file for the answers")
    if request.output.exists() and request.output.samefile(request.input):
        raise ConfigError("the answers would overwrite the requests: choose another -o")


def _open(request: JobRequest, folder: StateFolder, database: JobDatabase) -> Opened:
    facts = database.get("job")
    finished = database.get("finished")
    if facts is not None and finished is not None and not request.output.exists():
        _forget(folder, database)  # the answers were taken away: they are wanted anew
        facts = finished = None
    measured = _measured(request, facts)
    if facts is None:
        _refuse_foreign_output(request)
        facts = _new_facts(request, measured)
        rebuild = request.retry_failed and request.output.exists()
        with database.transaction():
            database.put("job", facts)
            database.put("rewriting", rebuild)
            database.put("rebuilding", rebuild)
        return _opened(request, folder, database, facts, resumed=False, rebuild=rebuild)
    _check_unchanged(request, facts, measured if not _may_be_corrected(folder, facts, finished, measured) else None)
    if finished is not None and _differs(facts, measured):
        return _corrected(request, folder, database, facts, measured)
    if finished is not None and not request.retry_failed:
        return _already(database, folder, facts, finished)
    if request.retry_failed:
        rebuild = not folder.journal.exists()
        with database.transaction():
            database.put("rewriting", True)
            database.put("rebuilding", rebuild)
            database.put("finished", None)
        folder.drop(folder.rewrite)
        return _opened(request, folder, database, facts, resumed=True, rebuild=rebuild, reask=not rebuild)
    return _opened(request, folder, database, facts, resumed=True, rebuild=bool(database.get("rebuilding")))


def _differs(facts: dict[str, Any], measured: Measured) -> bool:
    return (measured.size, measured.digest) != (facts["size"], facts["digest"])


def _may_be_corrected(folder: StateFolder, facts: dict[str, Any], finished: dict[str, Any] | None, measured: Measured) -> bool:
    return finished is not None and finished["failed"] > 0 and folder.journal.exists() and measured.rows == facts["rows"]


def _corrected(request: JobRequest, folder: StateFolder, database: JobDatabase, facts: dict[str, Any], measured: Measured) -> Opened:
    """The job had ended, and failed rows were put right since: they are asked, all others keep their answers. Raises `ConfigError`."""
    defaults = replace(request.defaults, job=facts["job"])
    rows = corrected_rows(request.input, measured.size, defaults, folder.index, database)
    now = {"size": measured.size, "digest": measured.digest, "mtime_ns": request.input.stat().st_mtime_ns}
    with database.transaction():
        database.put("job", {**facts, **now})
        database.put("corrected", rows)
        database.put("rewriting", True)
        database.put("rebuilding", True)
        database.put("finished", None)
    folder.drop(folder.rewrite)
    return _opened(request, folder, database, {**facts, **now}, resumed=True, rebuild=True)


def _forget(folder: StateFolder, database: JobDatabase) -> None:
    folder.drop_bulk()
    database.clear()
    with database.transaction():
        database.forget_spent()
        for name in ("job", "finished", "checkpoint", "cursor", "offsets"):
            database.put(name, None)


def _measured(request: JobRequest, facts: dict[str, Any] | None) -> Measured:
    """The digest is taken again only where size or time of change differ."""
    status = request.input.stat()
    if facts is not None and (facts["size"], facts["mtime_ns"]) == (status.st_size, status.st_mtime_ns):
        return Measured(facts["rows"], facts["size"], facts["digest"])
    return measure(request.input)


def _refuse_foreign_output(request: JobRequest) -> None:
    if request.output.exists() and request.output.stat().st_size and not request.retry_failed:
        raise ConfigError(
            f"{request.output} exists and no job of ours is known to have written it: choose another -o, or delete it; to ask its failed "
            "rows again say --retry-failed"
        )


def _new_facts(request: JobRequest, measured: Measured) -> dict[str, Any]:
    defaults = request.defaults
    output = request.output.resolve()
    identity = blake2b(f"{measured.digest}\n{output}\n{defaults.model}".encode(), digest_size=5).hexdigest()
    name = defaults.job or (_job_of(output) if request.retry_failed and output.exists() else "")
    stem = "".join(c if c.isalnum() or c in "-_." else "-" for c in request.input.stem)[:60]
    return {
        "version": STATE_VERSION,
        "job": name or f"{stem}-{identity}",
        "tenant": request.tenant,
        "rows": measured.rows,
        "size": measured.size,
        "digest": measured.digest,
        "mtime_ns": request.input.stat().st_mtime_ns,
        "model": defaults.model,
        "priority": defaults.priority,
        "use_cache": defaults.use_cache,
        "deadline": defaults.deadline,
    }


def _job_of(answers: Path) -> str:
    """The job that wrote an answers file; empty where it does not say."""
    try:
        return str(orjson.loads(next(output_lines(answers), b""))["engine"]["job"])
    except (ValueError, KeyError, TypeError):
        return ""


def _check_unchanged(request: JobRequest, facts: dict[str, Any], measured: Measured | None) -> None:
    """`measured`: None where the rows may have been corrected."""
    over = _START_OVER.format(state=StateFolder(request.output).path.name, answers=request.output.name)
    if facts["version"] != STATE_VERSION:
        raise ConfigError(f"the job was begun by another version of this program: finish it with that one, or {over}")
    if measured is not None and _differs(facts, measured):
        raise ConfigError(
            f"{request.input.name} changed since the job {facts['job']!r} began ({facts['rows']:,} rows then, {measured.rows:,} now): "
            f"its answers would not fit its rows: restore the file to go on, or {over}"
        )
    defaults = request.defaults
    for option, then, now in (
        ("--tenant", facts["tenant"], request.tenant),
        ("--job", facts["job"], defaults.job or facts["job"]),
        ("--model", facts["model"], defaults.model),
        ("--priority", facts["priority"], defaults.priority),
        ("--no-cache", not facts["use_cache"], not defaults.use_cache),
    ):
        if then != now:
            raise ConfigError(f"the job {facts['job']!r} began with {option} {then}, not {now}: say it the same again to go on, or {over}")


def _already(database: JobDatabase, folder: StateFolder, facts: dict[str, Any], finished: dict[str, Any]) -> Opened:
    database.close()
    folder.release()
    done = Finished(facts["job"], facts["rows"], finished["failed"], finished["seconds"], Totals.from_dict(finished["totals"]))
    return Opened(facts, RowDefaults(facts["job"]), facts["rows"], resumed=True, files=None, finished=done)


def _opened(
    request: JobRequest,
    folder: StateFolder,
    database: JobDatabase,
    facts: dict[str, Any],
    *,
    resumed: bool,
    rebuild: bool = False,
    reask: bool = False,
) -> Opened:
    if rebuild:
        folder.drop_bulk()
        database.clear()
        with database.transaction():
            database.put("cursor", (0, 0))
    rewriting = bool(database.get("rewriting"))
    rows, size = (0, 0) if reask or rebuild else (database.get("checkpoint") or {}).get("answers", (0, 0))
    target = folder.rewrite if rewriting else request.output
    with disk_errors("the answers file"):
        try:
            answers = AnswersFile(target, rows, size)
        except PermissionError as error:
            raise ConfigError(f"{request.output} can't be written: {error.strerror}; choose another -o") from error
    files = JobFiles(
        folder=folder,
        database=database,
        journal=Journal(folder.journal),
        index=RowIndex(folder.index),
        answers=answers,
        answers_path=request.output,
        input=open_input(request.input),
        input_size=facts["size"],
        rewriting=rewriting,
    )
    given = request.defaults
    defaults = RowDefaults(facts["job"], given.model, given.priority, given.deadline or facts["deadline"], given.use_cache)
    return Opened(facts, defaults, facts["rows"], resumed, files, rebuild=rebuild, reask=reask)


def output_lines(path: Path) -> Iterator[bytes]:
    """The lines of an answers file, one at a time."""
    with path.open("rb", buffering=1 << 20) as file:
        for line in file:
            yield line.rstrip(b"\n")

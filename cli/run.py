"""`run`: a file of requests in, a file of answers out, by way of the topics `requests` and `responses`."""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from types import FrameType

from ..connectors.kafka_bulk import BulkConsumer, BulkProducer
from ..pipeline.errors import Rejected, Unavailable
from ..schemas.controls import Cancel
from ..schemas.record import Lane
from ..schemas.topics import Topics
from . import retry_failed
from .accounts import JobSummary
from .asking import FIRST_WAIT_S, Patience
from .budget import Budget
from .job import Ask, CapsOf, Job
from .job_files import Finished, JobFiles, JobRequest, Opened, open_job
from .outcome import Totals
from .progress import Progress, Snapshot
from .rows import Row, RowDefaults, request_key
from .spool import Kind

CHECKPOINT_EVERY_S = 1.0
SYNC_EVERY_S = 10.0
SILENCE_S = 60.0
UNREACHABLE_S = 600.0
POLL_S = 0.05
READ_BATCH = 5_000
PATIENT_FIRST_WAIT_S = 1800.0


@dataclass(frozen=True, slots=True)
class RunOptions:
    """What `run` was told."""

    input: Path
    output: Path
    tenant: str = "local"
    job: str | None = None
    model: str | None = None
    priority: Lane | None = None
    deadline: str | None = None
    """RFC 3339."""
    use_cache: bool = True
    max_cost_pico: int | None = None
    window: int = 5_000
    """Requests on their way at most."""
    retry_failed: bool = False
    first_wait_s: float = FIRST_WAIT_S

    @property
    def request(self) -> JobRequest:
        defaults = RowDefaults(self.job or "", self.model, self.priority, self.deadline, self.use_cache)
        return JobRequest(self.input, self.output, self.tenant, defaults, self.retry_failed)


@dataclass(frozen=True, slots=True)
class RunResult:
    """How a run ended."""

    job: str
    summary: JobSummary
    merged: int = 0
    """Rows that repeat an earlier row and share its line; part of answered and failed."""
    unsent: int = 0
    """Rows that are errors in the file and not final: a run with a higher --max-cost asks them."""
    least_needed_pico: int | None = None
    """The smallest amount that one of these rows needs to be free; None where it is not known."""
    to_be_corrected: int = 0
    """Of the failed rows: those that would fail again as they are."""
    interrupted: bool = False
    already: bool = False
    """An earlier run had finished; nothing was done."""
    cancelled: bool = False
    in_flight: int = 0

    @property
    def exit_code(self) -> int:
        if self.interrupted:
            return 130
        return 0 if self.summary.answered == self.summary.requests else 1


Connect = Callable[[], str]
"""Makes sure that an engine runs; returns its brokers."""


def _nobody_to_look_after() -> None:
    """Of an engine that this run did not start."""


def run_job(
    options: RunOptions,
    connect: Connect,
    topics: Topics,
    progress: Progress,
    caps_of: Callable[[], CapsOf],
    look_after: Callable[[], None] = _nobody_to_look_after,
) -> RunResult:
    """Answers every row, or stops in a state that the same command goes on from.

    `look_after`: called every second while it waits for answers. Raises `ConfigError` (nothing was done), `DiskFull`, `Unavailable`: the
    same command goes on.
    """
    opened = open_job(options.request)
    if opened.files is None:
        return _already(opened)
    try:
        brokers = connect()
        job = _job(options, opened, opened.files, caps_of)
        with _Wire(brokers, topics, job, options) as wire:
            return _Run(options, opened, job, wire, progress, look_after).run()
    finally:
        opened.files.close()


def _already(opened: Opened) -> RunResult:
    done = opened.finished
    assert done is not None
    answered = done.requests - done.failed
    summary = done.totals.summary(requests=done.requests, answered=answered, failed=done.failed, seconds=done.seconds)
    return RunResult(done.job, summary, already=True)


def _job(options: RunOptions, opened: Opened, files: JobFiles, caps_of: Callable[[], CapsOf]) -> Job:
    if opened.rebuild:
        known = files.database.get("checkpoint")
        retry_failed.rebuild(files, opened.defaults, options.output, Totals.from_dict(known["totals"]) if known else None)
    budget = Budget(options.max_cost_pico)
    caps = caps_of() if options.max_cost_pico is not None else _no_cap
    return Job(files, options.tenant, opened.total, opened.defaults, budget, caps)


def _no_cap(_row: Row) -> tuple[int, ...]:
    return (0,)


@dataclass(slots=True)
class _Wire:
    """The two topics of a job."""

    brokers: str
    topics: Topics
    job: Job
    options: RunOptions
    consumer: BulkConsumer = field(init=False)
    controls: BulkConsumer = field(init=False)
    producer: BulkProducer = field(init=False)
    trouble: str = ""
    _refused: list[tuple[str, str]] = field(default_factory=list)
    delivered_at: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self.consumer = BulkConsumer(self.brokers, self.topics.responses)
        self.controls = BulkConsumer(self.brokers, self.topics.controls)
        self.producer = BulkProducer(self.brokers)

    def __enter__(self) -> "_Wire":
        return self

    def __exit__(self, *_: object) -> None:
        self.producer.close()
        self.controls.close()
        self.consumer.close()

    def watch_controls(self) -> None:
        """Sees a cancellation from now on; an earlier one was meant for an earlier run."""
        self.controls.assign(self.controls.end_offsets())

    def was_cancelled(self) -> bool:
        key = Cancel.model_construct(tenant=self.options.tenant, job=self.job.name).key
        return any(found == key and value is not None for found, value in self.controls.poll_batch(100, 0))

    def check_topics(self) -> None:
        """Raises `ConfigError` where the requests can't be written."""
        requests = BulkConsumer(self.brokers, self.topics.requests)
        try:
            requests.partitions()
        finally:
            requests.close()

    def send(self, asks: list[Ask]) -> None:
        tenant, job = self.options.tenant, self.job.name
        headers = (("tenant", tenant.encode()),)
        for ask in asks:
            try:
                key = request_key(tenant, job, ask.custom_id)
                topic = self.topics.bulk_requests if ask.bulk else self.topics.requests
                self.producer.produce(topic, key, ask.value, self._reporter(ask.custom_id), headers)
            except Rejected as error:
                self._refused.append((ask.custom_id, str(error)))

    def _reporter(self, custom_id: str) -> Callable[[str | None], None]:
        def report(error: str | None) -> None:
            if error is None:
                self.delivered_at = time.monotonic()
                self.trouble = ""
            elif "size too large" in error.lower():
                self._refused.append((custom_id, error))
            else:
                self.trouble = f"Kafka did not take a request ({error}); it is sent again"
                self.job.ask_again_at(custom_id, time.monotonic() + 1)

        return report

    def end_refused(self) -> None:
        """Requests that no broker will take become error rows."""
        for custom_id, reason in self._refused:
            self.job.refuse(custom_id, "request_too_large", f"Kafka refuses the request ({reason}): shorten or split it; it was not sent")
        self._refused.clear()


@dataclass(slots=True)
class _Run:
    options: RunOptions
    opened: Opened
    job: Job
    wire: _Wire
    progress: Progress
    look_after: Callable[[], None]
    patience: Patience = field(init=False)
    began: float = field(default_factory=time.monotonic)
    seconds_before: float = 0.0
    done_before: int = 0
    stopped: bool = False
    _checkpointed: float = 0.0
    _synced: float = field(default_factory=time.monotonic)
    _heard: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        options = self.options
        unhurried = (options.priority is Lane.BATCH or self._has_time) and options.first_wait_s == FIRST_WAIT_S
        self.patience = Patience(PATIENT_FIRST_WAIT_S if unhurried else options.first_wait_s)

    @property
    def _has_time(self) -> bool:
        """Answers may come out of provider batches, hours after they were asked for."""
        deadline = self.options.deadline
        return deadline is not None and datetime.fromisoformat(deadline).timestamp() - time.time() > 4 * PATIENT_FIRST_WAIT_S

    @property
    def files(self) -> JobFiles:
        return self.job.files

    def run(self) -> RunResult:
        self._begin()
        with self._signals():
            while not self.stopped and not self.job.finished:
                self._turn()
        if self.stopped:
            self._checkpoint(sync=True)
            return self._result(interrupted=True)
        return self._end()

    def _begin(self) -> None:
        """Finds the place in the responses, and reads what came while nobody was here, before anything is asked."""
        files, wire, job = self.files, self.wire, self.job
        wire.check_topics()
        wire.watch_controls()
        cluster = wire.consumer.cluster_id()
        offsets = files.load_offsets(cluster)
        offsets_lost = offsets is None
        if offsets is None:
            if self.opened.resumed and files.database.get("offsets"):
                self.progress.note("this is another Kafka than the one the job began on: what was in flight there may be paid again")
            # Of a job of an earlier life, with the same files, the responses may be there already; of a resumed one, too.
            offsets = {} if self.opened.resumed else wire.consumer.end_offsets()
            files.begin_at(cluster, offsets)
        wire.consumer.assign(offsets)
        self.seconds_before = files.load_seconds()
        job.restore()
        if offsets_lost:
            job.forget_calls()
        if self.opened.resumed:
            self._catch_up()
        if self.opened.reask or self.opened.rebuild:
            retry_failed.reask_failed(job)
            job.recount()
        self.done_before = job.counts.final
        self._checkpoint(sync=True)

    def _catch_up(self) -> None:
        ends = self.wire.consumer.end_offsets()
        patience = time.monotonic() + UNREACHABLE_S
        while not self.wire.consumer.caught_up(ends):
            self.job.settle(self.wire.consumer.poll_batch(READ_BATCH, 0.2))
            if time.monotonic() > patience:
                raise Unavailable(f"the responses could not be read to their end: {self.wire.consumer.last_error or 'Kafka is silent'}")

    def _turn(self) -> None:
        job, wire = self.job, self.wire
        now = time.monotonic()
        room = self.options.window - len(job.outstanding)
        asks = job.take(room, due=now + self.patience.wait(1, len(job.outstanding))) if room > 0 else []
        wire.send(asks)
        wire.producer.poll(0)
        # Nothing waits while there is something to send.
        settled = job.settle(wire.consumer.poll_batch(READ_BATCH, 0 if asks else POLL_S))
        if settled:
            self._heard = time.monotonic()
        wire.end_refused()
        while job.write_answers():
            pass
        if now - self._checkpointed >= CHECKPOINT_EVERY_S:
            self._every_second(now)
        self._show()

    def _every_second(self, now: float) -> None:
        job = self.job
        self.look_after()
        self.patience.observe(now, job.counts.final)
        job.cancelled = job.cancelled or self.wire.was_cancelled()
        self.wire.send(job.due(now, lambda times: self.patience.wait(times, len(job.outstanding))))
        sync = now - self._synced >= SYNC_EVERY_S
        self._checkpoint(sync=sync)
        self._synced = now if sync else self._synced
        silent = min(now - self._heard, now - self.wire.delivered_at)
        if job.outstanding and silent > UNREACHABLE_S and (self.wire.trouble or self.wire.consumer.last_error):
            raise Unavailable(
                f"Kafka at {self.wire.brokers} took and gave nothing for {int(silent / 60)} minutes "
                f"({self.wire.trouble or self.wire.consumer.last_error}); run the same command again to go on, nothing is lost"
            )

    def _checkpoint(self, *, sync: bool) -> None:
        self._checkpointed = time.monotonic()
        self.job.checkpoint(self.wire.consumer.positions(), self._seconds(), sync=sync)

    def _seconds(self) -> float:
        return self.seconds_before + time.monotonic() - self.began

    def _trouble(self) -> str:
        if self.wire.trouble or self.wire.consumer.last_error:
            return self.wire.trouble or f"Kafka: {self.wire.consumer.last_error}"
        silent = time.monotonic() - self._heard
        if self.job.outstanding and silent > max(SILENCE_S, 2 * self.patience.first_wait if self._has_time else 0):
            return f"no response for {silent:.0f} s: is a worker running? See: inference-engine doctor"
        return ""

    def _show(self, *, last: bool = False) -> None:
        job = self.job
        for note in job.notes:
            self.progress.note(note)
        job.notes.clear()
        snapshot = Snapshot(
            job=job.name,
            total=job.total,
            answered=job.counts.answered,
            failed=job.counts.failed,
            merged=job.counts.merged,
            held=job.counts.held,
            in_flight=len(job.outstanding),
            cached=job.totals.cached,
            cost_pico=job.totals.cost_pico,
            saved_pico=job.totals.saved_total_pico,
            done_before=self.done_before,
            seconds=time.monotonic() - self.began,
            trouble=self._trouble(),
        )
        self.progress.update(snapshot, last=last)

    def _end(self) -> RunResult:
        job, files = self.job, self.files
        while job.write_answers():
            pass
        self._checkpoint(sync=True)
        self._show(last=True)
        result = self._result()
        if files.answers.rows < job.total:
            self._write_open_rows()
            files.show_unfinished()
        else:
            files.finish(Finished(job.name, job.total, result.summary.failed, self._seconds(), job.totals))
        return result

    def _write_open_rows(self) -> None:
        batch: list[bytes] = []
        for line in self.job.open_rows():
            batch.append(line)
            if len(batch) == 1000:
                self.files.answers.write(batch)
                batch.clear()
        self.files.answers.write(batch)

    def _result(self, *, interrupted: bool = False) -> RunResult:
        job = self.job
        kinds = self.files.index.tally()
        answered, failed = kinds[Kind.ANSWERED], kinds[Kind.FAILED]
        unsent = job.total - answered - failed
        failed_in_file = failed if interrupted else failed + unsent
        summary = job.totals.summary(requests=job.total, answered=answered, failed=failed_in_file, seconds=self._seconds())
        return RunResult(
            job.name,
            summary,
            merged=job.counts.merged,
            unsent=unsent,
            to_be_corrected=job.to_be_corrected() if failed else 0,
            least_needed_pico=job.least_needed() if unsent else None,
            interrupted=interrupted,
            cancelled=job.cancelled,
            in_flight=len(job.outstanding),
        )

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """The first Ctrl-C or SIGTERM ends the run in order; the second one at once."""

        def stop(_number: int, _frame: FrameType | None) -> None:
            if self.stopped:
                raise KeyboardInterrupt
            self.stopped = True

        if threading.current_thread() is not threading.main_thread():
            yield  # signals are the main thread's
            return
        before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

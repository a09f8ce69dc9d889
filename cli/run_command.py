"""`inference-engine run` from its options to its last line."""

import os
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from pathlib import Path

from rich.table import Column, Table

from ..agents.embedders import embedder_of, not_installed
from ..connectors.state_file import refused, write_atomically
from ..pipeline.errors import ConfigError, Rejected
from ..schemas.record import PICO_PER_USD, Lane
from .accounts import JobSummary
from .batches_shown import WithBatches, workers_of
from .caps import caps
from .display import console_of_output, dollars
from .engine import Engine, engine
from .estimate import OUTPUT_TOKENS, Embed, Estimate, Estimator
from .job import CapsOf
from .keeper import Keeper
from .progress import Progress, money, progress_for
from .rows import RowDefaults
from .run import RunOptions, RunResult, run_job
from .when import absolute_deadline, short_span


@dataclass(frozen=True, slots=True)
class RunArguments:
    """As typed."""

    input: Path
    output: Path | None
    tenant: str | None
    job: str | None
    model: str | None
    priority: Lane | None
    deadline: str | None
    use_cache: bool
    max_cost: str | None
    window: int
    retry_failed: bool
    quiet: bool
    start: bool
    json_report: Path | None


def pico_limit(text: str | None) -> int | None:
    """`5.00` or `$5.00` in pico-dollars. Raises `ConfigError`."""
    if text is None:
        return None
    try:
        amount = Decimal(text.removeprefix("$")) * PICO_PER_USD
    except InvalidOperation:
        raise ConfigError(f"--max-cost {text!r} is not an amount of dollars like 5.00") from None
    if not amount.is_finite() or amount < 0:
        raise ConfigError(f"--max-cost {text!r} must be zero or more")
    return int(amount)


def options_of(arguments: RunArguments, default_tenant: str, now: datetime) -> RunOptions:
    """Raises `ConfigError`."""
    if arguments.window < 1:
        raise ConfigError("--window must be 1 or more")
    return RunOptions(
        input=arguments.input,
        output=arguments.output or arguments.input.with_name(arguments.input.stem + ".answers.jsonl"),
        tenant=arguments.tenant or default_tenant,
        job=arguments.job,
        model=arguments.model,
        priority=arguments.priority,
        deadline=None if arguments.deadline is None else absolute_deadline(arguments.deadline, now),
        use_cache=arguments.use_cache,
        max_cost_pico=pico_limit(arguments.max_cost),
        window=arguments.window,
        retry_failed=arguments.retry_failed,
    )


def run(arguments: RunArguments) -> int:
    """The exit code."""
    found = engine()
    options = options_of(arguments, found.settings.default_tenant, datetime.now(UTC))
    _check_model(found, options)
    _check_report(arguments.json_report)
    progress = progress_for(quiet=arguments.quiet)
    if options.deadline is not None:
        progress = WithBatches(progress, workers_of(found.folder)).start()
    try:
        keeper = Keeper(found.stack_options, progress.note) if arguments.start else None
        look = [keeper.look] if keeper else []
        result = run_job(options, _connect(found, arguments, progress), found.settings.topics, progress, lambda: _caps(found), *look)
    finally:
        progress.close()
    _tell(result, options, quiet=arguments.quiet)
    if arguments.json_report is not None:
        _write_report(arguments.json_report, result)
    return result.exit_code


def _check_model(found: Engine, options: RunOptions) -> None:
    """An engine elsewhere may know other models."""
    if options.model is None or found.settings.kafka_brokers is not None:
        return
    try:
        found.catalogue().resolve(options.model)
    except Rejected as error:
        raise ConfigError(f"--model: {error}; nothing was sent") from None


def _check_report(path: Path | None) -> None:
    why = None if path is None else refused(path.absolute())
    if why is not None:
        raise ConfigError(f"--json-report {path} can't be written: {why}; choose another file. Nothing was sent")


def _write_report(path: Path, result: RunResult) -> None:
    try:
        write_atomically(path.absolute(), result.summary.as_json().decode() + "\n", private=False)
    except OSError as error:
        raise ConfigError(
            f"--json-report {path} could not be written: {error.strerror or error}. What the run did is told above; the same "
            "command with another file writes the report, and asks nothing again"
        ) from error


def _connect(found: Engine, arguments: RunArguments, progress: Progress) -> "_Connect":
    return _Connect(found, arguments.start, progress, arguments.quiet)


@dataclass(frozen=True, slots=True)
class _Connect:
    found: Engine
    start: bool
    progress: Progress
    quiet: bool

    def __call__(self) -> str:
        off = not_installed(self.found.settings) if self.start and self.found.settings.workers else None
        if off is not None:
            self.progress.note(f"the semantic tier is off: {off}")
        if not self.start:
            return self.found.running()
        return self.found.start(_silent if self.quiet else self.progress.note)


def _silent(_line: str) -> None:
    """Nobody wants to hear it."""


def _caps(found: Engine) -> CapsOf:
    return caps(found.catalogue(), datetime.now(UTC).date())


def _tell(result: RunResult, options: RunOptions, *, quiet: bool) -> None:
    if not quiet and not result.interrupted:
        console_of_output().print(summary_table(result))
    for line in closing_lines(result, options):
        print(line, file=sys.stderr)


def closing_lines(result: RunResult, options: RunOptions) -> list[str]:
    """What the user should know or do next."""
    lines: list[str] = []
    failed = result.summary.failed - (0 if result.interrupted else result.unsent)
    if result.interrupted:
        lines.append(
            f"Stopped: {result.summary.answered + result.summary.failed:,} of {result.summary.requests:,} rows are done, "
            f"{result.in_flight:,} are on their way and go on being answered. Run the same command again to go on; nothing is paid "
            f"twice. To give up what is on its way: inference-engine cancel {result.job}"
        )
        return lines
    if result.already:
        lines.append(f"The job {result.job} had ended before; nothing was asked.")
    if result.unsent and result.cancelled:
        lines.append(f"The job was cancelled: {_rows(result.unsent)} not sent. Run the same command again to go on.")
    elif result.unsent:
        lines.append(_stopped_at_max_cost(result))
    if failed:
        lines.append(
            f"{failed:,} row{'' if failed == 1 else 's'} failed; the reasons stand in {options.output}. {_what_to_do(result, failed)}"
        )
    return lines


def _what_to_do(result: RunResult, failed: int) -> str:
    correct = "and run the same command again: the answers that are there are kept"
    if result.to_be_corrected == failed:
        return f"Correct {'it' if failed == 1 else 'them'} in the requests file {correct}."
    again = "To ask them again: --retry-failed"
    if result.to_be_corrected:
        return f"{again}; {result.to_be_corrected:,} of them would fail again: correct those in the requests file {correct}."
    return again


def _stopped_at_max_cost(result: RunResult) -> str:
    needed = result.least_needed_pico
    amount = "" if needed is None else f": the cheapest needs {money(needed)} to be left, as an answer of the most tokens costs"
    return (
        f"Stopped at --max-cost: {_rows(result.unsent)} left unanswered, since the most that another call can cost does not fit{amount}. "
        "Run the same command with a higher --max-cost to go on. Rows with max_tokens, or a cheaper --model, need less: those are another "
        "job, with another -o."
    )


def _rows(count: int) -> str:
    return "1 row was" if count == 1 else f"{count:,} rows were"


def summary_table(result: RunResult) -> Table:
    """What came out and what it cost."""
    s = result.summary
    table = Table("", Column(justify="right"), "", title=f"Job {result.job}", title_justify="left", show_header=False)
    repeated = f", {result.merged:,} repeat a custom_id" if result.merged else ""
    table.add_row("requests", f"{s.requests:,}", f"{s.answered:,} answered, {s.failed:,} failed{repeated}")
    table.add_row("cached", f"{sum(s.cached.values()):,}", ", ".join(f"{name} {count:,}" for name, count in s.cached.items()))
    table.add_row("provider calls", f"{s.provider_calls:,}", "")
    pace = f"{s.answered / float(s.seconds):,.0f} requests/s" if s.seconds else ""
    table.add_row("time", short_span(float(s.seconds)), pace)
    table.add_section()
    table.add_row("without this engine", dollars(s.counterfactual_usd), "each request alone, at once, on the model asked for")
    for cause, amount in s.saved_usd.items():
        if amount:
            table.add_row(f"saved by {cause}", dollars(amount), share(amount, s))
    table.add_row("paid", dollars(s.cost_usd), "")
    if s.possibly_paid_usd:
        table.add_row(
            "possibly paid on top", dollars(s.possibly_paid_usd), "at most; calls whose bill is not known, not part of paid or saved"
        )
    table.add_row("saved", dollars(s.counterfactual_usd - s.cost_usd), share(s.counterfactual_usd - s.cost_usd, s))
    return table


LEARNS = "who may share is learned as answers come (CACHE_POLICY): no rate is known before; expected and high count on none"
ASSUMED_NEAR = 0.5
"""Of the distinct prompts, for the low cost: more than the learned policy shares on the streams that it is measured on."""


def share(amount: Decimal, summary: JobSummary) -> str:
    """Of the counterfactual, in percent."""
    whole = summary.counterfactual_usd
    return f"{100 * amount / whole:.1f} %" if whole else ""


# --- --estimate ------------------------------------------------------------------------------------------------------


def estimate(arguments: RunArguments) -> int:
    """Prints what the file would cost; sends nothing."""
    # Here, and not above: the router's libraries take half a second to load, and every `run` would wait for them.
    from ..agents.routing import route_with

    found = engine()
    options = options_of(arguments, found.settings.default_tenant, datetime.now(UTC))
    defaults = RowDefaults("estimate", options.model, options.priority, options.deadline, options.use_cache)
    settings, catalogue = found.settings, found.catalogue()
    embed, why_not = _embed(found) if settings.caching.policy == "static" else (None, _off(found) or LEARNS)
    threshold = settings.caching.similarity_threshold
    assumed = ASSUMED_NEAR if why_not == LEARNS else 0.0
    decide = route_with(settings, catalogue)
    estimator = Estimator(catalogue, datetime.now(UTC).date(), options.tenant, defaults, threshold, decide, embed, assumed)
    console = console_of_output()
    console.print(estimate_table(estimator.estimate(options.input), threshold, why_not))
    console.print(
        f"Assumed: input tokens are bytes / 4, answers of {OUTPUT_TOKENS[0]}, {OUTPUT_TOKENS[1]} and {OUTPUT_TOKENS[2]} tokens or what the "
        "row allows. Nothing was sent and nothing was paid; --max-cost sets a hard limit.",
        highlight=False,
    )
    return 0


def _off(found: Engine) -> str | None:
    """Why the semantic tier is off; None where it is on."""
    return not_installed(found.settings) if found.settings.caching.semantic_enabled else "CACHE_SEMANTIC_ENABLED is false"


def _embed(found: Engine) -> tuple[Embed | None, str]:
    os.environ.setdefault("TQDM_DISABLE", "1")  # its bars are not for our users
    embedder = embedder_of(found.settings)
    return (embedder.embedder.embed if embedder.embedder is not None else None), embedder.reason


def _routes(e: Estimate) -> str:
    if not e.routes:
        return ""
    whole = sum(e.routes.values())
    most_first = sorted(e.routes.items(), key=lambda pair: -pair[1])
    return ", `auto` as routed: " + ", ".join(f"{name} {100 * count / whole:.0f} %" for name, count in most_first)


def estimate_table(e: Estimate, threshold: float, why_not: str) -> Table:
    """Low, expected and high side by side with what they rest on."""
    table = Table("", Column(justify="right"), "", title="Estimate", title_justify="left", show_header=False)
    table.add_row("rows", f"{e.rows:,}", ", ".join(f"{name} {count:,}" for name, count in sorted(e.models.items())))
    if e.bad or e.unknown:
        table.add_row("will be errors", f"{e.bad + e.unknown:,}", f"{e.bad:,} bad rows, {e.unknown:,} of an unknown or unpriced model")
    good = e.rows - e.bad - e.unknown
    table.add_row("exact repeats", f"{e.exact_hits:,}", f"{100 * e.exact_hits / good:.1f} % of the rows, counted" if good else "")
    if e.semantic_rate is None:
        table.add_row("near repeats", "–", why_not or "too few distinct prompts")
    else:
        near = f"at least, of the distinct prompts: {e.sampled:,} sampled, cosine {threshold:g} or more"
        table.add_row("near repeats", f"{100 * e.semantic_rate:.1f} %", near)
    table.add_row("input tokens", f"{e.input_tokens:,}", "")
    table.add_section()
    measured = ", near repeats shared" if e.semantic_rate is not None else ""
    assumed = f", {100 * e.low_near:.0f} % near repeats" if not measured and e.low_near else measured
    table.add_row("cost, low", money(e.cost[0]), f"short answers{assumed}, `auto` on the cheapest model")
    table.add_row("cost, expected", money(e.cost[1]), f"middling answers{measured}{_routes(e)}")
    table.add_row("cost, high", money(e.cost[2]), "long answers, only exact repeats shared, `auto` on the premium model")
    table.add_row("without this engine", money(e.without_engine), "middling answers, every row paid")
    return table

"""`inference-engine`: the commands. Each imports its part only when it is called, so that help is quick and parts stand alone."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from ..pipeline.errors import ConfigError, EngineError

app = typer.Typer(
    name="inference-engine",
    help="Answers bulk LLM requests for the least money at a stated error bound, and can say where every cent went.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode=None,  # importing Rich takes longer than all the rest of a help page
)
topics_app = typer.Typer(help="The engine's topics on a Kafka cluster.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(topics_app, name="topics")
evaluate_app = typer.Typer(help="Measure decisions of this engine on data with known answers.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(evaluate_app, name="evaluate")

# The other module reads the arguments itself, `--help` too.
_FORWARD: dict[str, Any] = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}

Priority = Literal["express", "standard", "batch"]
"""As `schemas.record.Lane`, which is not worth its import for a help page."""
Tenant = Annotated[str | None, typer.Option(help="Whose requests these are; default: DEFAULT_TENANT.", show_default=False)]


def _forward(module: str, function: str, context: typer.Context) -> None:
    part = import_module(f".{module}", __package__)
    single = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
    single.command()(getattr(part, function))
    typer.main.get_command(single).main(args=context.args, prog_name=context.command_path, standalone_mode=True)


@app.command()
def run(
    prompts: Annotated[Path, typer.Argument(help='JSONL: OpenAI batch lines, or {"prompt": "..."}.')],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="The answers, in input order; default: <prompts>.answers.jsonl.", show_default=False),
    ] = None,
    max_cost: Annotated[str | None, typer.Option(metavar="USD", help="Hard stop: never more than this.", show_default=False)] = None,
    estimate: Annotated[bool, typer.Option("--estimate", help="Only say what it would cost; sends nothing.")] = False,
    deadline: Annotated[str | None, typer.Option(help="24h, seconds, or a time; more time, lower price.", show_default=False)] = None,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Ask only the failed rows of the answers again.")] = False,
    model: Annotated[str | None, typer.Option(help="For every row, in place of its own; `auto` chooses.", show_default=False)] = None,
    tenant: Tenant = None,
    job: Annotated[str | None, typer.Option(help="Its name; default: made from the files.", show_default=False)] = None,
    priority: Annotated[Priority | None, typer.Option(help="For rows that name none.", show_default=False)] = None,
    no_cache: Annotated[bool, typer.Option("--no-cache", help="A new answer for every row: no cache, no sharing.")] = False,
    window: Annotated[int, typer.Option(help="Requests on their way at most.", min=1)] = 5000,
    json_report: Annotated[Path | None, typer.Option(metavar="FILE", help="Counts and costs for programs.", show_default=False)] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Only warnings and errors.")] = False,
    start: Annotated[bool, typer.Option("--start/--no-start", help="Start the engine on this machine where none runs.")] = True,
) -> None:
    """Answer a file of prompts. Stopped at any point, the same command goes on where it was and pays nothing twice.

    Ends with 0 where every row was answered, 1 where rows failed, 2 where something must be put right first, 130 where interrupted.
    """
    from ..schemas.record import Lane
    from .run_command import RunArguments
    from .run_command import estimate as estimate_file
    from .run_command import run as run_file

    lane = Lane(priority) if priority else None
    arguments = RunArguments(
        prompts, output, tenant, job, model, lane, deadline, not no_cache, max_cost, window, retry_failed, quiet, start, json_report
    )
    raise typer.Exit(estimate_file(arguments) if estimate else run_file(arguments))


@app.command()
def submit(
    prompts: Annotated[str, typer.Argument(help="JSONL file; `-` reads standard input.")],
    job: Annotated[str | None, typer.Option(help="Its name; default: made from the file.", show_default=False)] = None,
    tenant: Tenant = None,
    model: Annotated[str | None, typer.Option(help="For every row, in place of its own.", show_default=False)] = None,
    priority: Annotated[Priority | None, typer.Option(help="For rows that name none.", show_default=False)] = None,
    deadline: Annotated[str | None, typer.Option(help="24h, seconds, or a time.", show_default=False)] = None,
    no_cache: Annotated[bool, typer.Option("--no-cache", help="A new answer for every row.")] = False,
    start: Annotated[bool, typer.Option("--start/--no-start", help="Start the engine on this machine where none runs.")] = True,
) -> None:
    """Write requests to the topic and return once Kafka has them; prints the job's name, for `collect`.

    A job may be submitted in parts; each custom_id (default: row-<number>) stands for one request in all of them.
    """
    from datetime import UTC, datetime

    from ..schemas.record import Lane
    from .engine import engine
    from .rows import RowDefaults
    from .submit import SubmitOptions, standard_input, submit_job
    from .when import absolute_deadline

    found = engine()
    until = None if deadline is None else absolute_deadline(deadline, datetime.now(UTC))
    source = None if prompts == "-" else Path(prompts)
    stdin = standard_input(sys.stdin.buffer) if source is None else sys.stdin.buffer
    lane = Lane(priority) if priority else None
    options = SubmitOptions(source, tenant or found.settings.default_tenant, RowDefaults(job or "", model, lane, until, not no_cache))
    brokers = found.start(_tell) if start else found.running()
    result = submit_job(options, brokers, found.settings.topics, found.submissions(), stdin, _tell)
    typer.echo(result.job)
    sent = f"{result.sent:,} request{'' if result.sent == 1 else 's'} sent"
    for count, what in ((result.repeated, "merged with an earlier one of the same custom_id"), (result.bad, "not sent")):
        sent += f", {count:,} row{'' if count == 1 else 's'} {what}" if count else ""
    _tell(sent)
    raise typer.Exit(1 if result.bad else 0)


@app.command()
def collect(
    job: Annotated[str, typer.Argument(help="As `submit` printed it.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="One line per custom_id, in the order of arrival.")],
    tenant: Tenant = None,
    wait: Annotated[
        bool | None,
        typer.Option("--wait/--no-wait", help="All, or only what is there now; default: all, where known.", show_default=False),
    ] = None,
    count: Annotated[int | None, typer.Option(help="Requests of a job that was submitted elsewhere.", min=1, show_default=False)] = None,
    idle: Annotated[float, typer.Option(help="Seconds without news after which it ends, where the number is not known.", min=0)] = 10.0,
    timeout: Annotated[float | None, typer.Option(help="Seconds to wait at most.", min=0, show_default=False)] = None,
) -> None:
    """Write the responses of a job to a file. Ends with 0 where all were answered."""
    from .collect import CollectOptions, collect_job
    from .engine import engine
    from .progress import money

    found = engine()
    options = CollectOptions(tenant or found.settings.default_tenant, job, output, wait, count, idle, timeout)
    result = collect_job(options, found.running(), found.settings.topics, found.submissions())
    missing = f", {result.missing:,} without a response yet" if result.missing else ""
    possibly = result.totals.ambiguous_cap_pico
    on_top = f", possibly {money(possibly)} on top" if possibly else ""
    _tell(
        f"{result.answered:,} answered, {result.failed:,} failed{missing}; paid {money(result.totals.cost_pico)}{on_top}, "
        f"saved {money(result.totals.saved_total_pico)}"
    )
    raise typer.Exit(result.exit_code)


@app.command()
def cancel(job: Annotated[str, typer.Argument(help="Its name.")], tenant: Tenant = None) -> None:
    """Stop paying for a job: what has no answer yet is answered with the error `cancelled`."""
    from .cancel import cancel_job, is_known
    from .engine import engine, now_ms
    from .where import costs_location

    found = engine()
    whose = tenant or found.settings.default_tenant
    cancel_job(whose, job, found.running(), found.settings.topics, now_ms())
    if is_known(whose, job, found.submissions(), costs_location()):
        _tell(f"The job {job} is cancelled; what a provider is already working on may still be answered, and paid.")
    else:
        _tell(
            f"No request of a job {job!r} of tenant {whose!r} is known here: check the name. Should there be some without an answer yet, "
            "what came in until now is not paid any more; what comes later is answered."
        )


@app.command()
def revoke(
    job: Annotated[str, typer.Argument(help="Of the request that got a wrong answer.")],
    custom_id: Annotated[str, typer.Argument(help="Of that request.")],
    tenant: Tenant = None,
    reason: Annotated[str, typer.Option(help="Kept with the correction.")] = "",
    output: Annotated[str, typer.Option("--format", "-f", help="Of the list: table, tsv, csv or json.")] = "table",
) -> None:
    """Take a wrong answer out of the caches, and list everyone it was given to."""
    from ..connectors.costs_access import open_costs
    from ..connectors.revocation import correction_of, served
    from ..connectors.revocation import revoke as take_back
    from ..schemas.requests import Identity
    from .engine import engine, now_ms
    from .sql import Format, print_result
    from .where import costs_location

    found = engine()
    with open_costs(costs_location()) as costs:
        reported = Identity(tenant=tenant or found.settings.default_tenant, job=job, custom_id=custom_id)
        correction = correction_of(costs, reported, reason, now_ms())
        take_back(correction, found.running(), found.settings.topics)
        print_result(*served(costs, correction), Format(output))
    _tell("The answer is not given again. Who asks under the same job and custom_id is told it still: it was paid for.")


@app.command()
def up() -> None:
    """Start the engine on this machine: Kafka, topics, the cost sink and workers."""
    from .engine import engine

    found = engine()
    brokers = found.start(_tell)
    typer.echo(f"KAFKA_BROKERS={brokers}")


@app.command()
def down() -> None:
    """Stop what `up` and `run` started on this machine."""
    from .engine import engine
    from .stack import down as stop_all

    if not stop_all(engine().folder, _tell):
        _tell("nothing was running")


@app.command()
def worker(
    state_file: Annotated[Path | None, typer.Option(help="Written when ready; default in the data folder.", show_default=False)] = None,
    index: Annotated[int, typer.Option(help="Of this worker on this machine: each has a data folder of its own.", min=0)] = 0,
) -> None:
    """Run one worker on KAFKA_BROKERS, until stopped."""
    import uvloop

    from ..agents.compose import run_worker
    from .engine import engine

    uvloop.run(run_worker(engine().settings, state_file=state_file, index=index))


@app.command(context_settings=_FORWARD)
def gateway(context: typer.Context) -> None:
    """Serve the OpenAI-compatible HTTP API in front of the topics."""
    _forward("gateway", "gateway_command", context)


@app.command(context_settings=_FORWARD)
def sink(context: typer.Context) -> None:
    """Store costs from their topic and answer SQL about them, until stopped."""
    _forward("sink", "sink_command", context)


@app.command(context_settings=_FORWARD)
def sql(context: typer.Context) -> None:
    """Ask the costs in SQL, read only: SELECT ... FROM cost_events."""
    _forward("sql", "sql_command", context)


@app.command(context_settings=_FORWARD)
def report(context: typer.Context) -> None:
    """What was paid, what was saved and why; on the terminal or as a page."""
    _forward("report", "report_command", context)


@app.command(context_settings=_FORWARD)
def experiment(context: typer.Context) -> None:
    """Compare the variants of an experiment: cost, latency and feedback, valid however often one looks."""
    _forward("experiment", "experiment_command", context)


@app.command("bootstrap-router", context_settings=_FORWARD)
def bootstrap_router(context: typer.Context) -> None:
    """Let the learned routing policy learn from scored answers: of a table, or of models that are asked, at a price told first."""
    _forward("bootstrap_router", "bootstrap_command", context)


@app.command(context_settings=_FORWARD)
def feedback(context: typer.Context) -> None:
    """Say what answers were worth, so that the learned routing policy learns from it."""
    _forward("feedback", "feedback_command", context)


@app.command("export-router", context_settings=_FORWARD)
def export_router(context: typer.Context) -> None:
    """Show and save what feedback taught the router."""
    _forward("feedback", "export_command", context)


@app.command("import-router", context_settings=_FORWARD)
def import_router(context: typer.Context) -> None:
    """Route a tenant by an exported router."""
    _forward("feedback", "import_command", context)


@app.command(context_settings=_FORWARD)
def doctor(context: typer.Context) -> None:
    """Check this machine and the engine, and say what to do."""
    _forward("doctor", "doctor_command", context)


@app.command(context_settings=_FORWARD)
def config(context: typer.Context) -> None:
    """Show all settings in force and where each comes from."""
    _forward("config", "config_command", context)


@evaluate_app.command("routing", context_settings=_FORWARD)
def evaluate_routing(context: typer.Context) -> None:
    """What each routing policy saves on a table of scored and priced answers, and at what quality."""
    _forward("evaluate_routing", "routing_command", context)


@evaluate_app.command("cache", context_settings=_FORWARD)
def evaluate_cache(context: typer.Context) -> None:
    """How often the semantic cache shares an answer on a stream with known answers, and how often wrongly."""
    _forward("evaluate_cache", "cache_command", context)


@topics_app.command("create")
def create() -> None:
    """Create the topics that are missing on KAFKA_BROKERS; existing ones are never changed."""
    from ..agents.names import specs
    from ..connectors.kafka_admin import create_topics
    from .engine import engine

    found = engine()
    settings = found.settings
    wanted = specs(settings)
    made = create_topics(found.running(), wanted, replication_factor=settings.kafka_replication_factor)
    for name in made:
        typer.echo(name)
    _tell(f"created {len(made)} of {len(wanted)} topics; the others were there")


@app.command()
def version() -> None:
    """Print the version."""
    from importlib.metadata import version as installed

    typer.echo(installed("inference-engine"))


def _tell(line: str) -> None:
    typer.echo(line, err=True)


@contextmanager
def _plain_errors(log_of: Callable[[BaseException], Path | None]) -> Iterator[None]:
    """No tracebacks for users: one message and an exit code that says what kind of end it is."""
    try:
        yield
    except EngineError as error:
        _tell(f"{'' if isinstance(error, ConfigError) else 'Stopped: '}{error}")
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        _tell("Interrupted; the same command goes on.")
        raise SystemExit(130) from None
    except BrokenPipeError:
        raise SystemExit(141) from None
    except ModuleNotFoundError as error:
        if not (error.name or "").startswith("inference_engine"):
            _tell(f"The package {error.name!r} is not installed; install inference-engine again.")
        else:
            _tell(f"This installation has no {error.name}; install a newer inference-engine.")
        raise SystemExit(2) from None
    except Exception as error:
        where = log_of(error)
        _tell(f"This should not have happened: {type(error).__name__}: {error}")
        _tell(f"The details are in {where}" if where else "The log could not be written.")
        raise SystemExit(70) from None


def _log(error: BaseException) -> Path | None:
    """Appends the traceback to the command line's log; None where that can't be written."""
    import traceback
    from datetime import UTC, datetime

    from ..connectors.data_folder import data_folder

    path = data_folder().log_file("cli")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write(f"--- {datetime.now(UTC).isoformat()} {' '.join(sys.argv[1:2])}\n")
            traceback.print_exception(error, file=file)
    except OSError:
        return None
    return path


def main() -> None:
    """The console script."""
    with _plain_errors(_log):
        app()


if __name__ == "__main__":
    main()

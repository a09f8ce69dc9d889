"""`inference-engine feedback`, `export-router`, `import-router`: what answers were worth goes in, what was learned from it comes out."""

import json
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from ..connectors.kafka_bulk import BulkConsumer, BulkProducer, write_record
from ..connectors.state_file import write_atomically
from ..connectors.taught_file import pack_router, told, unpack_router
from ..pipeline.errors import ConfigError, Rejected, Unavailable
from ..pipeline.feedback import line_of, read_feedback
from ..pipeline.ingest import DEFAULT_JOB
from ..pipeline.taught_router import TaughtRouter
from ..schemas.topics import Topics
from .engine import engine, now_ms

_FLUSH_S, _READ_S = 30.0, 60


def feedback_command(
    scores: Annotated[str, typer.Argument(help='JSONL: {"custom_id": "...", "job": "...", "score": 0..1}; `-` reads standard input.')],
    job: Annotated[str | None, typer.Option(help="For lines that name none.", show_default=False)] = None,
    tenant: Annotated[str | None, typer.Option(help="Whose answers these are; default: DEFAULT_TENANT.", show_default=False)] = None,
) -> None:
    """Write what answers were worth to the feedback topic. ROUTING_POLICY=learned learns from it.

    Said again, the last word about an answer counts. Ends with 1 where lines could not be understood.
    """
    found = engine()
    try:
        lines = sys.stdin.buffer.readlines() if scores == "-" else Path(scores).read_bytes().splitlines()
    except OSError as error:
        raise ConfigError(f"{scores} can't be read: {error.strerror or error}; nothing was sent") from error
    who, default = tenant or found.settings.default_tenant, job or DEFAULT_JOB
    sent, bad = send_feedback(lines, who, default, found.running(), found.settings.topics)
    for number, why in bad:
        typer.echo(f"line {number}: {why}", err=True)
    typer.echo(f"{sent:,} sent" + (f", {len(bad):,} not understood" if bad else ""))
    raise typer.Exit(1 if bad else 0)


def send_feedback(lines: Iterable[bytes], tenant: str, job: str, brokers: str, topics: Topics) -> tuple[int, list[tuple[int, str]]]:
    """How many were sent, and the lines that were not, with the reason. Raises `ConfigError`, `Unavailable` (send it all again)."""
    there, producer = BulkConsumer(brokers, topics.feedback), BulkProducer(brokers)
    sent, bad = 0, []
    try:
        there.partitions()
        for number, raw in enumerate(lines, start=1):
            if not raw.strip():
                continue
            try:
                rated = read_feedback(raw, tenant, job, now_ms())
            except Rejected as error:
                bad.append((number, str(error)))
                continue
            producer.produce(topics.feedback, rated.identity.key, line_of(rated), headers=(("tenant", tenant.encode()),))
            sent += 1
        producer.flush(_FLUSH_S)
    finally:
        producer.close()
        there.close()
    return sent, bad


def export_command(
    output: Annotated[Path | None, typer.Option("--output", "-o", metavar="FILE", help="Also save it, with its weights: .npz.")] = None,
    tenant: Annotated[str | None, typer.Option(help="Default: DEFAULT_TENANT.", show_default=False)] = None,
) -> None:
    """Print what feedback taught the router of a tenant, as JSON: version, status, what each model's answers are worth."""
    found = engine()
    who = tenant or found.settings.default_tenant
    raw = newest_router(who, found.running(), found.settings.topics)
    if raw is None:
        raise ConfigError(
            f"nothing was learned for tenant {who!r} yet: it takes ROUTING_POLICY=learned, `auto` requests and feedback on them"
        )
    typer.echo(json.dumps(told(*unpack_router(raw)), indent=2))
    if output is not None:
        try:
            write_atomically(output.absolute(), raw, private=False)
        except OSError as error:
            raise ConfigError(f"{output} can't be written: {error.strerror or error}; nothing was changed. Name another file") from error
        typer.echo(f"Wrote {output}", err=True)


def import_command(
    file: Annotated[Path, typer.Argument(help="As `export-router --output` wrote it.")],
    tenant: Annotated[str | None, typer.Option(help="For whom; default: DEFAULT_TENANT.", show_default=False)] = None,
) -> None:
    """Route a tenant by what was exported, until feedback on its own answers has taught enough (50 judged answers)."""
    found = engine()
    who = tenant or found.settings.default_tenant
    try:
        raw = file.read_bytes()
    except OSError as error:
        raise ConfigError(f"{file} can't be read: {error.strerror or error}; nothing was changed") from error
    state = import_router(raw, who, found.running(), found.settings.topics)
    typer.echo(f"tenant {who!r} is routed by {file} as version {state.version} ({state.status}, {state.lessons:,} judged answers)")


def import_router(raw: bytes, tenant: str, brokers: str, topics: Topics) -> TaughtRouter:
    """As it was published: the tenant's next version. Raises `ConfigError` where the bytes are something else, `Unavailable`."""
    try:
        _, exported = unpack_router(raw)
    except Rejected as error:
        raise ConfigError(f"{error}; nothing was changed") from error
    newest = newest_router(tenant, brokers, topics)
    version = 1 if newest is None else unpack_router(newest)[1].version + 1
    # Its drifts and times are those of other answers.
    state = replace(exported, version=version, since_ms=0, drifts=0)
    write_record(brokers, topics.routers, tenant.encode(), pack_router(tenant, state))
    return state


def newest_router(tenant: str, brokers: str, topics: Topics) -> bytes | None:
    """The last state on the topic; None where there is none. Raises `ConfigError`, `Unavailable`."""
    consumer = BulkConsumer(brokers, topics.routers)
    newest: bytes | None = None
    try:
        ends = consumer.end_offsets()
        consumer.assign()
        for _ in range(_READ_S):
            for key, value in consumer.poll_batch(1_000, 1.0) if not consumer.caught_up(ends) else ():
                newest = value if key == tenant.encode() else newest
            if consumer.caught_up(ends):
                return newest
    finally:
        consumer.close()
    raise Unavailable(f"{topics.routers} could not be read within {_READ_S} s; try again")

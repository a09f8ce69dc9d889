"""Everything that a run has left behind, read from the topics, the bill, the cost store and the logs."""

from collections.abc import Iterable, Iterator
from typing import Any

import orjson

from inference_engine.pipeline.exact import WAITER
from inference_engine.schemas import packets
from inference_engine.schemas.ledger import BatchPrepared
from inference_engine.schemas.record import Lane
from inference_engine.schemas.requests import Identity

from .evidence import Billed, Evidence, Placed, Stored
from .stage import SECRET, TENANTS, Stage


def gather(stage: Stage) -> Evidence:
    """As it is now."""
    engine, topics = stage.engine, stage.engine.topics

    def members(codec: Any, *names: str) -> tuple[Placed[Any], ...]:
        return tuple(placed for name in names for placed in stage.members(name, codec))

    return Evidence(
        asked=tuple(stage.asked),
        responses=tuple(engine.responses()),
        ledger=members(packets.ledger, topics.ledger),
        bill=tuple(bill(stage)),
        stored=stage.kept or (stored(stage) if stage.sink is not None else None),
        requests=tuple(asked(stage)),
        lookups=members(packets.lookups, topics.lookups, topics.bulk_lookups),
        rows=tuple(waiting(stage)),
        truncated=stage.truncated(),
        misses=members(packets.misses, *map(topics.misses, Lane)),
        calls=members(packets.calls, *map(topics.calls, Lane)),
        answers=members(packets.answers, topics.answers),
        replies=tuple(replies(stage)),
        costs=members(packets.costs, topics.costs),
        # Now that all is over, the claims have to hold for everything.
        snapshots=(*stage.snapshots, stage.snapshot(whole=True)),
        vectors=members(packets.vectors, topics.vectors),
        most_open=stage.provider.summary()["most_open"],
        permits=int(engine.settings["MAX_IN_FLIGHT"]),
        memory_mb=stage.memory_mb,
        words={**logs(stage), **stage.said, **letters(stage)},
        secrets=(SECRET,),
        canaries={tenant: stage.canary(tenant) for tenant in TENANTS},
        max_attempts=int(engine.settings["MAX_ATTEMPTS"]),
        files=files(stage),
    )


def bill(stage: Stage) -> Iterator[Billed]:
    path = stage.provider.bill_file
    for line in path.read_bytes().split(b"\n")[:-1] if path.exists() else ():
        d = orjson.loads(line)
        yield Billed(d["prompt"], d["model"], d["request_id"], d["client_id"], d["pico"])


def asked(stage: Stage) -> Iterator[Placed[Identity]]:
    known = {a.key for a in stage.asked}
    for door, found in [(topic, found) for topic in stage.doors for found in stage.raw(topic)]:
        tenant = dict(found.headers).get("tenant", b"local").decode(errors="replace")
        try:
            line = orjson.loads(found.value or b"")
            key = (tenant, line["engine"]["job"], line["custom_id"])
        except (ValueError, KeyError, TypeError):
            continue  # poison: what becomes of it is looked at by its own test
        if key in known:
            yield Placed(door, found.partition, found.offset, Identity(tenant=key[0], job=key[1], custom_id=key[2]))


def replies(stage: Stage) -> Iterator[Placed[Identity]]:
    topic = stage.engine.topics.responses
    for found in stage.raw(topic):
        line = orjson.loads(found.value or b"")
        who = Identity(tenant=line["engine"]["tenant"], job=line["engine"]["job"], custom_id=line["custom_id"])
        yield Placed(topic, found.partition, found.offset, who)


def waiting(stage: Stage) -> Iterator[Placed[bytes]]:
    for found in stage.raw(stage.rows_topic):
        if found.key is not None and found.value is not None and found.key[:1] == WAITER:
            yield Placed(stage.rows_topic, found.partition, found.offset, found.key)


def files(stage: Stage) -> tuple[str, ...]:
    """What was uploaded and prepared; a file whose worker died in between is not known to anybody, and expires."""
    records: Iterable[Placed[Any]] = stage.members(stage.engine.topics.ledger, packets.ledger)
    prepared = {r.file_id for placed in records if isinstance(r := placed.member, BatchPrepared)}
    listed = stage.provider.files() if prepared else []
    return tuple(name for name in listed if name in prepared or name.startswith(("file-out", "file-err")))


def letters(stage: Stage) -> dict[str, bytes]:
    """What dead letters say beside the bytes that they carry."""
    found = stage.raw(stage.engine.topics.dead_letters)
    return {f"headers of the dead letter {f.partition}@{f.offset}": b" ".join(value for _, value in f.headers) for f in found}


def stored(stage: Stage) -> tuple[Stored, ...]:
    columns = "event_id, kind, attempt_id, toString(base_cost), toString(ambiguous_cap), tenant_id, job, request_id"
    rows = stage.engine.sink_sql(f"SELECT {columns} FROM cost_events LIMIT 1000000")
    return tuple(Stored(r[0], r[1], r[2], _pico(r[3]), _pico(r[4]), (r[5], r[6], r[7])) for r in rows)


def logs(stage: Stage) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (stage.engine.home / "logs").glob("*.log")}


def _pico(dollars: str) -> int:
    whole, _, part = dollars.partition(".")
    return int(whole + part.ljust(12, "0"))

"""`POST /v1/revocations`: a caller reports that an answer was wrong.

    {"custom_id": "req-...", "job": "gateway", "reason": "..."}
    -> who was given the answer, from the costs, and a record on `corrections`, which takes it out of both caches

A caller takes back only what was given to a request of its own tenant, and hears only of its own tenant's requests: no answer is ever
shared between tenants. Whoever runs the engine takes back anybody's, by the command `revoke --tenant`.
"""

import asyncio
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..connectors.costs_access import CostReader
from ..connectors.revocation import correction_of, served
from ..schemas.corrections import Correction
from ..schemas.record import JsonObject
from ..schemas.requests import Identity, Name
from .openai_form import JOB
from .refusals import refused

Costs = Callable[[], AbstractContextManager[CostReader]]
"""Opens the costs. Raises `Unavailable`."""


class Reported(BaseModel):
    """What a caller says."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    custom_id: Name
    """The answer's `x-engine-request-id`, or the custom_id of a row."""
    job: Name = JOB
    reason: Annotated[str, Field(max_length=2000)] = ""


def read_report(payload: bytes, tenant: str) -> tuple[Identity, str]:
    """Which answer, and why. Raises `Refusal`."""
    try:
        reported = Reported.model_validate_json(payload)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"])) or "the body"
        raise refused("invalid_request", f"{where}: {first['msg']}; nothing was taken back") from None
    return Identity(tenant=tenant, job=reported.job, custom_id=reported.custom_id), reported.reason


async def look_up(costs: Costs, identity: Identity, reason: str, now_ms: int) -> tuple[Correction, list[JsonObject]]:
    """The record that takes the answer back, and everyone of its tenant who was given it. Raises `Rejected`, `Unavailable`."""

    def look() -> tuple[Correction, list[JsonObject]]:
        with costs() as reader:
            correction = correction_of(reader, identity, reason, now_ms)
            names, rows = served(reader, correction)
        return correction, [_shown(names, row) for row in rows]

    return await asyncio.to_thread(look)


def _shown(names: list[str], row: tuple[Any, ...]) -> JsonObject:
    found = dict(zip(names, row, strict=True))
    found.pop("tenant")
    return {**found, "timestamp": f"{found['timestamp'].isoformat(timespec='milliseconds')}Z"}

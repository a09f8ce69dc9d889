"""Takes back an answer that was wrong: who was given it, and the record that removes it from the caches of all workers."""

from typing import Any

from ..pipeline.errors import Rejected
from ..schemas.corrections import Correction
from ..schemas.requests import Identity
from ..schemas.topics import Topics
from .costs_access import CostReader
from .kafka_bulk import write_record

_SOURCE = """SELECT source_id, cache_tier, toUnixTimestamp64Milli(timestamp) FROM cost_events
  WHERE kind = 'answer' AND tenant_id = {tenant:String} AND job = {job:String} AND request_id = {request:String} AND source_id != ''
  ORDER BY timestamp DESC LIMIT 1"""
_SERVED = """SELECT tenant_id AS tenant, job, request_id AS custom_id, user_id, timestamp, cache_tier, similarity FROM cost_events
  WHERE kind = 'answer' AND source_id = {source:String} AND tenant_id = {tenant:String} ORDER BY timestamp"""


def correction_of(costs: CostReader, reported: Identity, reason: str, now_ms: int) -> Correction:
    """What is to be taken back, given the request whose response was wrong.

    Raises `Rejected` where no cost row of its own tenant knows of it: nobody takes back what was not given to them.
    """
    parameters = {"tenant": reported.tenant, "job": reported.job, "request": reported.custom_id}
    _, rows = costs.query(_SOURCE, parameters)
    if not rows:
        raise Rejected(
            f"no answer of request {reported.custom_id!r} in job {reported.job!r} of tenant {reported.tenant!r} is in the costs; nothing "
            "was taken back; look for its job and custom_id in cost_events, where an answer stands a few seconds after it was given",
            code="not_served",
        )
    source, tier, given_ms = rows[0]
    near = tier in ("semantic", "coalesced")
    # The workers' clocks may be ahead of this one's.
    at_ms = max(now_ms, int(given_ms))
    return Correction(fingerprint=source, reported=reported, by_similarity=near, reason=reason, at_ms=at_ms)


def revoke(correction: Correction, brokers: str, topics: Topics) -> None:
    """Returns when Kafka has acknowledged it. Raises `ConfigError` where there is no such topic, `Unavailable`."""
    write_record(brokers, topics.corrections, correction.key, correction.model_dump_json().encode())


def served(costs: CostReader, correction: Correction) -> tuple[list[str], list[tuple[Any, ...]]]:
    """Column names and rows: everyone who was given the answer, the request that paid for it and those that had it from a cache."""
    return costs.query(_SERVED, {"source": correction.fingerprint, "tenant": correction.reported.tenant})

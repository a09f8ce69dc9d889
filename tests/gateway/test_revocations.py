"""`POST /v1/revocations`: who may take back which answer, what is written, and who is named."""

import hashlib
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiokafka import AIOKafkaConsumer

from inference_engine.connectors.clickhouse import ClickHouseStore, open_embedded
from inference_engine.connectors.costs_access import CostsLocation, open_running
from inference_engine.gateway.keys import Keys
from inference_engine.pipeline.errors import Unavailable
from inference_engine.schemas.corrections import Correction
from inference_engine.schemas.costs import CostEvent
from inference_engine.schemas.requests import Identity
from inference_engine.schemas.topics import Topics

from .test_gateway import House, house


def served_row(tenant: str, custom_id: str, tier: str, at_ms: int, source: str = "f" * 64) -> CostEvent:
    return CostEvent.model_validate({
        "event_id": f"{tenant}-{custom_id}", "kind": "answer", "timestamp_ms": at_ms, "request_id": custom_id, "tenant_id": tenant,
        "job": "gateway", "user_id": "u1", "cache_tier": tier, "similarity": 0.97 if tier == "semantic" else None, "source_id": source,
    })  # fmt: skip


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClickHouseStore]:
    """Two tenants were given answers; "elsewhere" has one of the same fingerprint, as no tenant really has."""
    store = open_embedded(tmp_path_factory.mktemp("costs"))
    day = 1_780_000_000_000
    store.insert([
        served_row("acme", "paid", "none", day), served_row("acme", "near", "semantic", day + 1_500),
        served_row("acme", "other", "none", day, "e" * 64), served_row("elsewhere", "theirs", "exact", day),
    ])  # fmt: skip
    yield store
    store.close()


KEYS = Keys({hashlib.sha256(key.encode()).hexdigest(): tenant for key, tenant in (("key-of-acme", "acme"), ("key-of-other", "globex"))})


async def report(h: House, key: str, body: Any) -> tuple[int, dict[str, Any]]:
    async with (
        aiohttp.ClientSession(headers={"Authorization": f"Bearer {key}"}) as session,
        session.post(f"{h.url}/v1/revocations", json=body) as answer,
    ):
        return answer.status, await answer.json()


async def corrections(kafka: str, prefix: str) -> list[tuple[bytes, Correction]]:
    consumer = AIOKafkaConsumer(Topics(prefix).corrections, bootstrap_servers=kafka, auto_offset_reset="earliest")
    await consumer.start()
    try:
        found = (await consumer.getmany(timeout_ms=5_000)).values()
    finally:
        await consumer.stop()
    return [(record.key, Correction.model_validate_json(record.value)) for records in found for record in records]


async def test_a_wrong_answer_is_revoked_and_everyone_of_the_tenant_who_was_given_it_is_listed(
    kafka: str, topic_prefix: str, store: ClickHouseStore
) -> None:
    async with house(kafka, topic_prefix, lambda line: "hi", keys=KEYS, costs=lambda: nullcontext(store)) as h:
        status, said = await report(h, "key-of-acme", {"custom_id": "near", "reason": "not what I asked"})
    assert (status, said["object"], said["source_id"]) == (201, "revocation", "f" * 64)
    assert [(row["job"], row["custom_id"], row["cache_tier"], row["user_id"]) for row in said["served"]] == [
        ("gateway", "paid", "none", "u1"),
        ("gateway", "near", "semantic", "u1"),
    ]
    assert said["served"][1]["timestamp"] == "2026-05-28T20:26:41.500Z"
    [(key, correction)] = await corrections(kafka, topic_prefix)
    assert key == correction.key == b"f" * 64
    assert (correction.reported, correction.by_similarity, correction.reason) == (
        Identity(tenant="acme", job="gateway", custom_id="near"), True, "not what I asked",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("key", "body", "status"),
    [
        ("key-of-other", {"custom_id": "near"}, 404),
        ("key-of-acme", {"custom_id": "theirs"}, 404),
        ("key-of-acme", {"custom_id": "near", "job": "another"}, 404),
        ("key-of-acme", {"custom_id": "near", "tenant": "elsewhere"}, 400),
        ("key-of-acme", {"custom_id": ""}, 400),
        ("key-of-acme", [1], 400),
        ("key-of-nobody", {"custom_id": "near"}, 401),
    ],
)
async def test_nobody_revokes_what_was_not_given_to_them(
    kafka: str, topic_prefix: str, store: ClickHouseStore, key: str, body: Any, status: int
) -> None:
    async with house(kafka, topic_prefix, lambda line: "hi", keys=KEYS, costs=lambda: nullcontext(store)) as h:
        refused, said = await report(h, key, body)
    assert refused == status, said
    assert "elsewhere" not in str(said)
    assert await corrections(kafka, topic_prefix) == []


async def test_without_costs_nothing_is_revoked_and_that_is_said(kafka: str, topic_prefix: str) -> None:
    async with house(kafka, topic_prefix, lambda line: "hi", keys=KEYS) as h:
        status, said = await report(h, "key-of-acme", {"custom_id": "near"})
    assert (status, said["error"]["code"]) == (503, "sink_down")
    assert await corrections(kafka, topic_prefix) == []


def test_the_gateway_asks_the_sink_or_a_server_and_leaves_the_folder_alone(tmp_path: Path) -> None:
    folder = tmp_path / "costs"
    folder.mkdir()
    with pytest.raises(Unavailable, match="no sink runs"), open_running(CostsLocation(None, tmp_path / "sink.json", folder)):
        raise AssertionError("nothing was opened")
    assert list(folder.iterdir()) == []

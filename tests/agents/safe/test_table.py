"""Tables: durable when written, complete when recovered, refused when not ours."""

import asyncio
import shutil
from typing import Any, Literal

import pytest

from inference_engine.agents.safe import Delivered, OversizedRow, SafeApp, SafeTable, Stale
from inference_engine.agents.safe.claims import Lease
from inference_engine.agents.safe.stores import DamagedStore
from inference_engine.pipeline.errors import StoreFailed

from .conftest import Bench, until

Store = Literal["rocksdb", "memory"]


def worker(bench: Bench, name: str = "w1", **options: Any) -> tuple[SafeApp, SafeTable]:
    """A worker with the table `rows`; it reads the topic `in`, so that it owns partitions."""
    app = bench.app(name, **options)
    table = app.safe_table("rows", partitions=4)

    async def ignore(event: Delivered) -> None:
        pass

    bench.agent(app, "in", ignore)
    return app, table


@pytest.fixture
def topics(bench: Bench) -> str:
    """The topic `in` and the table's changelog, whose name it returns."""
    bench.create("in")
    name = f"{bench.topic('app')}-rows-changelog"
    bench.create_exactly(name, cleanup_policy="compact")
    return name


@pytest.mark.parametrize("store", ["rocksdb", "memory"])
async def test_write_outside_an_event_is_read_at_once_and_durable_on_return(bench: Bench, topics: str, store: Store) -> None:
    app, table = worker(bench, store=store)
    async with bench.running(app):
        writing = asyncio.create_task(table.write(1, {b"a": b"1", b"b": b"2"}))
        await asyncio.sleep(0)
        assert table.read(1, b"a") == b"1"
        assert table.read(2, b"a") is None
        await writing
        assert [(record.key, record.value) for record in await bench.read_exactly(topics)] == [(b"a", b"1"), (b"b", b"2")]
        await table.write(1, {b"a": None, b"b": b"3"})
        assert table.read(1, b"a") is None
        assert dict(table.scan(1)) == {b"b": b"3"}
        assert dict(table.scan(0)) == {}


@pytest.mark.parametrize("store", ["rocksdb", "memory"])
async def test_recovery_without_local_data_is_complete(bench: Bench, topics: str, store: Store) -> None:
    app, table = worker(bench, store=store)
    expected: list[dict[bytes, bytes]] = []
    async with bench.running(app):
        for number in range(4):
            await table.write(number, {b"%d" % n: b"%d" % (n + number) for n in range(300)})
            await table.write(number, {b"%d" % n: None for n in range(0, 300, 7)})
        expected = [dict(table.scan(number)) for number in range(4)]
    shutil.rmtree(bench.folder / "w1")
    app, table = worker(bench, store=store)
    async with bench.running(app):
        assert [dict(table.scan(number)) for number in range(4)] == expected
        assert len(expected[0]) == 300 - 43


async def test_local_rows_are_kept_and_only_the_rest_is_read_from_the_changelog(bench: Bench, topics: str) -> None:
    app, table = worker(bench)
    async with bench.running(app):
        await table.write(0, {b"a": b"1"})
        await table.write(0, {b"b": b"2"})
        assert table.rows_store.checkpoint(0) == 1
    await bench.feed(topics, [(b"c", b"3"), (b"a", None)], partition=0)
    app, table = worker(bench)
    async with bench.running(app):
        assert dict(table.scan(0)) == {b"b": b"2", b"c": b"3"}
        assert table.rows_store.checkpoint(0) == 3


async def test_oversized_row_is_refused_before_anything_is_written(bench: Bench, topics: str) -> None:
    """Plain Faust writes locally, then the worker exits, and would do so for ever."""
    app, table = worker(bench)
    async with bench.running(app):
        with pytest.raises(OversizedRow, match="nothing was written"):
            await table.write(0, {b"fits": b"1", b"big": b"x" * 2_000_000})
        assert dict(table.scan(0)) == {}
        assert await bench.read_exactly(topics) == []


async def test_lost_partition_is_stale_to_readers_writers_and_waiting_writes(bench: Bench, topics: str) -> None:
    app, table = worker(bench)
    other, _ = worker(bench, "w2")
    await bench.start(app)
    assert table.read(3, b"k") is None
    await bench.start(other)
    await until(lambda: app.ready.is_set() and len(app.partitions) == 2, "two partitions moved")
    lost = min(set(range(4)) - app.partitions)
    with pytest.raises(Stale):
        table.read(lost, b"k")
    with pytest.raises(Stale):
        await table.write(lost, {b"k": b"v"})
    with pytest.raises(Stale):
        list(table.scan(lost))


async def test_write_in_the_middle_of_a_rebalance_waits_for_its_outcome(bench: Bench, topics: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is sent while somebody else may already be recovering: it is sent if the partition was kept, else Stale."""
    app, table = worker(bench)
    other, _ = worker(bench, "w2")
    await bench.start(app)
    doubt, on_revoked = asyncio.Event(), app.membership.on_revoked

    async def tell() -> None:
        await on_revoked()
        doubt.set()

    monkeypatch.setattr(app.membership, "on_revoked", tell)
    starting = asyncio.create_task(bench.start(other))
    await doubt.wait()
    outcomes = await asyncio.gather(*(table.write(number, {b"k": b"v"}) for number in range(4)), return_exceptions=True)
    await starting
    kept = {number for number, outcome in enumerate(outcomes) if outcome is None}
    assert kept == app.partitions
    assert all(isinstance(outcome, Stale) for number, outcome in enumerate(outcomes) if number not in kept)
    assert {record.partition for record in await bench.read_exactly(topics)} == kept


async def test_a_row_is_durable_only_where_the_partition_is_still_ours_once_it_is_appended(
    bench: Bench, topics: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that stood still for longer than its session: its successor may have read the changelog before the row was there."""
    app, table = worker(bench)
    async with bench.running(app):
        claim, append = app.membership.claims[table.changelog_partition(0)], app.append_batch

        async def stand_still(*batch: Any) -> Any:
            appended = await append(*batch)
            monkeypatch.setattr(app.membership.lease, "_until", float("-inf"))
            return appended

        monkeypatch.setattr(app, "append_batch", stand_still)
        monkeypatch.setattr(Lease, "extend", lambda *_: None)
        writing = asyncio.create_task(table.write(0, {b"k": b"v"}))
        await until(lambda: table.rows_store.checkpoint(0) == 0, "the row is appended")
        claim.lose()
        with pytest.raises(Stale):
            await writing


async def test_failed_batch_is_sent_again_before_anything_younger(bench: Bench, topics: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Plain Faust's buffer gives up after 100 ms; here local rows and changelog end up alike, in the order of the writes."""
    app, table = worker(bench)
    async with bench.running(app):
        really, failures = app.append_batch, list[Any]()

        async def fail_twice(topic: str, partition: int, rows: Any) -> tuple[int, int]:
            if len(failures) < 2:
                failures.append(rows)
                raise ConnectionError("broker away")
            return await really(topic, partition, rows)

        monkeypatch.setattr(app, "append_batch", fail_twice)
        await asyncio.gather(*(table.write(0, {b"k": b"%d" % n}) for n in range(5)))
        assert table.read(0, b"k") == b"4"
        assert table.rows_store.read(0, b"k") == b"4"
    assert len(failures) == 2
    assert [record.value for record in await bench.read_exactly(topics)] == [b"%d" % n for n in range(5)]


async def test_write_returns_only_after_the_broker_acknowledged(bench: Bench, topics: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Readers see the row meanwhile; the local store does not hold it before the changelog does."""
    app, table = worker(bench)
    gate, really = asyncio.Event(), app.append_batch

    async def held(topic: str, partition: int, rows: Any) -> tuple[int, int]:
        await gate.wait()
        return await really(topic, partition, rows)

    async with bench.running(app):
        monkeypatch.setattr(app, "append_batch", held)
        writing = asyncio.create_task(table.write(0, {b"k": b"v"}))
        await asyncio.wait({writing}, timeout=0.1)
        assert not writing.done()
        assert table.read(0, b"k") == b"v"
        assert table.rows_store.read(0, b"k") is None
        gate.set()
        await writing
        assert table.rows_store.read(0, b"k") == b"v"


async def test_cancelled_writer_leaves_local_rows_and_changelog_alike(bench: Bench, topics: str) -> None:
    app, table = worker(bench)
    async with bench.running(app):
        writing = asyncio.create_task(table.write(0, {b"k": b"v"}))
        await asyncio.sleep(0)
        writing.cancel()
        await until(lambda: table.rows_store.read(0, b"k") == b"v", "durable all the same")
    assert [record.value for record in await bench.read_exactly(topics)] == [b"v"]


async def test_checkpoint_stays_before_a_record_that_was_not_applied_here(bench: Bench, topics: str) -> None:
    """A former owner's late record lies between ours: recovery reads it, in its place."""
    app, table = worker(bench)
    async with bench.running(app):
        await table.write(0, {b"a": b"1"})
        await app.append(topics, b"late", b"from a former owner", partition=0)
        await table.write(0, {b"b": b"2"})
        assert table.rows_store.checkpoint(0) == 0
    app, table = worker(bench)
    async with bench.running(app):
        assert dict(table.scan(0)) == {b"a": b"1", b"late": b"from a former owner", b"b": b"2"}
        assert table.rows_store.checkpoint(0) == 2


async def test_rows_of_a_changelog_made_anew_are_dropped(bench: Bench, topics: str) -> None:
    app, table = worker(bench)
    async with bench.running(app):
        await table.write(0, {b"a": b"1"})
        table.rows_store.apply(0, {}, 500)
    app, table = worker(bench)
    async with bench.running(app):
        assert dict(table.scan(0)) == {b"a": b"1"}
        assert table.rows_store.checkpoint(0) == 0


@pytest.mark.parametrize("damaged", ["CURRENT", "MANIFEST", ".log", "everything"])
async def test_damaged_local_rows_are_rebuilt_from_the_changelog(bench: Bench, topics: str, damaged: str) -> None:
    """The worker would not start again, ever; what it needs lies on the broker."""
    app, table = worker(bench)
    async with bench.running(app):
        await table.write(0, {b"%d" % n: b"x" * 100 for n in range(300)})
    for path in (bench.folder / "w1").rglob("*"):
        if path.is_file() and (damaged in path.name or damaged == "everything"):
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2] + b"garbage" * 100)
    app, table = worker(bench)
    async with bench.running(app):
        assert dict(table.scan(0)) == {b"%d" % n: b"x" * 100 for n in range(300)}


async def test_damage_that_is_found_while_running_ends_the_worker_and_the_next_one_rebuilds(
    bench: Bench, topics: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    app, table = worker(bench)
    await bench.start(app)
    await table.write(0, {b"k": b"v"})

    class Damaged:
        def get(self, key: bytes) -> bytes:
            raise Exception("Corruption: block checksum mismatch")

        def close(self) -> None:
            """As the real one."""

    real = table.rows_store._dbs.pop(0)  # type: ignore[attr-defined]
    real.close()
    table.rows_store._dbs[0] = Damaged()  # type: ignore[attr-defined]
    with pytest.raises(DamagedStore):
        table.read(0, b"k")
    with pytest.raises(DamagedStore):
        await asyncio.wait_for(bench._ends.pop(id(app))[1], 15)
    app, table = worker(bench)
    async with bench.running(app):
        assert table.read(0, b"k") == b"v"


async def test_a_disk_that_refuses_rows_ends_the_worker_and_the_next_one_has_them(
    bench: Bench, topics: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    app, table = worker(bench)
    await bench.start(app)
    await table.write(0, {b"k": b"v"})

    def full(*_: object) -> None:
        raise Exception("IO error: No space left on device")

    monkeypatch.setattr(table.rows_store, "apply", full)
    writing = asyncio.create_task(table.write(0, {b"k": b"w"}))
    with pytest.raises(StoreFailed, match="nothing is lost"):
        await asyncio.wait_for(bench._ends.pop(id(app))[1], 30)
    assert not writing.done() or writing.exception() is not None
    writing.cancel()
    app, table = worker(bench)
    async with bench.running(app):
        assert table.read(0, b"k") == b"w"


async def test_faust_mapping_writes_are_refused(bench: Bench) -> None:
    """They return before the row is durable."""
    _, table = worker(bench)
    with pytest.raises(TypeError, match="use write"):
        table[b"k"] = b"v"


async def test_changelog_with_other_partitions_is_refused(bench: Bench) -> None:
    bench.create("in")
    app, table = worker(bench)
    bench.create_exactly(table.changelog_spec.name, partitions=3)
    with pytest.raises(Exception, match="has 3 partitions, its table needs 4"):
        await bench.start(app)

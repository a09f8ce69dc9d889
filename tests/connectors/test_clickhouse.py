"""The cost store, on the real engine: embedded, over HTTP, and on a server where CLICKHOUSE_URL names one."""

import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import clickhouse_connect
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from inference_engine.connectors.clickhouse import ClickHouseStore, open_embedded, open_server
from inference_engine.connectors.clickhouse_guard import with_nullable_division
from inference_engine.connectors.clickhouse_schema import COLUMNS, MIGRATIONS, MONEY
from inference_engine.pipeline.errors import ConfigError, Rejected, Unavailable
from inference_engine.schemas.costs import CostEvent

from .clickhouse_http import clickhouse_http

NOVEMBER = 1_763_000_000_123  # 2025-11-13, UTC
BACKENDS = ["embedded", *(["server"] if os.environ.get("CLICKHOUSE_URL") else [])]


def event(event_id: str, **fields: object) -> CostEvent:
    known: dict[str, object] = {"kind": "answer", "timestamp_ms": NOVEMBER, "request_id": f"r-{event_id}", "tenant_id": "t", "job": "j"}
    return CostEvent.model_validate({"event_id": event_id, **known, **fields})


@pytest.fixture(params=BACKENDS)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ClickHouseStore]:
    if request.param == "embedded":
        opened = open_embedded(tmp_path / "chdb")
        yield opened
        opened.close()
        return
    url, database = os.environ["CLICKHOUSE_URL"], f"costs_{uuid.uuid4().hex}"
    admin = clickhouse_connect.get_client(dsn=url)
    admin.command(f"CREATE DATABASE {database}")
    opened = open_server(urlunsplit(urlsplit(url)._replace(path=f"/{database}")))
    yield opened
    opened.close()
    admin.command(f"DROP DATABASE {database}")
    admin.close()


def one(store: ClickHouseStore, sql: str) -> object:
    _, rows = store.query(sql)
    return rows[0][0]


def test_the_same_event_counts_once_and_the_highest_version_wins(store: ClickHouseStore) -> None:
    store.insert([event("a", base_cost_pico=5), event("b", base_cost_pico=7, version=1)])
    store.insert([event("a", base_cost_pico=5), event("b", base_cost_pico=9, version=2), event("b", base_cost_pico=7, version=1)])
    assert store.query("SELECT count(), sum(base_cost) FROM cost_events")[1] == [(2, Decimal("0.000000000014"))]


def test_the_same_event_in_two_months_counts_once(store: ClickHouseStore) -> None:
    """A redelivered event may carry a later time: another partition, the same event."""
    store.insert([event("a", base_cost_pico=5)])
    store.insert([event("a", base_cost_pico=6, version=1, timestamp_ms=NOVEMBER + 90 * 86_400_000)])
    assert store.query("SELECT count(), sum(base_cost) FROM cost_events")[1] == [(1, Decimal("0.000000000006"))]


def test_two_tenants_may_use_one_event_id(store: ClickHouseStore) -> None:
    store.insert([event("a", tenant_id="x"), event("a", tenant_id="y")])
    assert one(store, "SELECT count() FROM cost_events") == 2


def test_every_field_is_found_again_under_its_name(store: ClickHouseStore) -> None:
    given_event = event(
        "ev",
        kind="answer",
        user_id="u",
        feature_name="f",
        experiment_id="exp",
        experiment_variant="b",
        lane="batch",
        model_requested="auto",
        model_used="m",
        provider="p",
        cache_tier="semantic",
        similarity=0.97,
        source_id="src",
        attempt_id="att",
        tokens_input=11,
        tokens_output=12,
        tokens_cached=13,
        latency_ms=14,
        error_code="e",
        **{field: (i + 1) * 10**12 + i for i, field in enumerate(MONEY.values())},
    )
    store.insert([given_event])
    names, rows = store.query("SELECT * FROM cost_events")
    row = dict(zip(names, rows[0], strict=True))
    plain = ("user_id", "feature_name", "experiment_id", "experiment_variant", "lane", "model_requested", "model_used", "provider",
             "cache_tier", "similarity", "source_id", "attempt_id", "tokens_input", "tokens_output", "tokens_cached", "latency_ms",
             "error_code", "kind", "request_id", "tenant_id", "job", "event_id")  # fmt: skip
    assert {name: row[name] for name in plain} == {name: getattr(given_event, name) for name in plain}
    for column, field in MONEY.items():
        assert row[column] == Decimal(getattr(given_event, field)).scaleb(-12)
    assert row["cache_savings"] == row["exact_savings"] + row["semantic_savings"] + row["coalescing_savings"]
    assert row["cache_hit"]
    assert str(row["timestamp"]) == "2025-11-13 02:13:20.123000"
    assert str(row["date"]) == "2025-11-13"


def test_a_payment_that_answered_nothing_has_no_latency(store: ClickHouseStore) -> None:
    """So the average latency of the design document's queries is over requests."""
    store.insert([event("a", latency_ms=100), event("b", kind="audit"), event("c", kind="ambiguous", ambiguous_cap_pico=7)])
    assert one(store, "SELECT avg(latency_ms) FROM cost_events") == 100


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(costs=st.lists(st.integers(min_value=-(10**20), max_value=10**20), min_size=1, max_size=40))
def test_sums_are_exact_to_the_last_pico_dollar(store: ClickHouseStore, costs: list[int]) -> None:
    job = uuid.uuid4().hex
    store.insert([event(f"{job}-{i}", job=job, base_cost_pico=cost) for i, cost in enumerate(costs)])
    total = store.query("SELECT sum(base_cost) FROM cost_events WHERE job = {job:String}", {"job": job})[1][0][0]
    assert isinstance(total, Decimal)
    assert int(total * 10**12) == sum(costs)


def test_money_that_no_decimal_holds_is_rejected_not_rounded(store: ClickHouseStore) -> None:
    with pytest.raises(Rejected, match="can't be stored"):
        store.insert([event("a", base_cost_pico=10**39)])
    with pytest.raises(Rejected, match="can't be stored"):
        store.insert([event("a", base_cost_pico=10**30)])
    assert one(store, "SELECT count() FROM cost_events_raw") == 0


PER_USER = """SELECT user_id, SUM(base_cost)
       FROM cost_events
       WHERE date >= '2025-01-01'
       GROUP BY user_id
       ORDER BY SUM(base_cost) DESC"""
ROI = """SELECT
         feature_name,
         SUM(base_cost) as cost,
         SUM(cache_savings + routing_savings) as savings,
         (savings / cost) * 100 as roi_percent
       FROM cost_events
       GROUP BY feature_name"""
EXPERIMENT = """SELECT
         experiment_variant,
         COUNT(*) as requests,
         AVG(base_cost) as avg_cost,
         AVG(latency_ms) as avg_latency
       FROM cost_events
       WHERE experiment_id = 'exp_123'
       GROUP BY experiment_variant"""


def test_the_design_documents_queries_run_as_written(store: ClickHouseStore) -> None:
    store.insert(
        [
            event("1", user_id="ann", feature_name="search", base_cost_pico=2 * 10**12, saved_routing_pico=10**12),
            event("2", user_id="bob", feature_name="search", base_cost_pico=3 * 10**12, saved_semantic_pico=4 * 10**12),
            event("3", user_id="ann", feature_name="chat", base_cost_pico=4 * 10**12, experiment_id="exp_123",
                  experiment_variant="a", latency_ms=30),
            event("4", user_id="old", timestamp_ms=1_700_000_000_000, base_cost_pico=9, feature_name="chat"),
        ]
    )  # fmt: skip
    assert store.query(PER_USER)[1] == [("ann", Decimal(6)), ("bob", Decimal(3))]
    assert set(store.query(ROI)[1]) == {
        ("search", Decimal(5), Decimal(5), Decimal(100)),
        ("chat", Decimal("4.000000000009"), Decimal(0), Decimal(0)),
    }
    assert store.query(EXPERIMENT)[1] == [("a", 1, 4.0, 30.0)]


def test_a_feature_that_cost_nothing_has_no_return_on_investment_and_spoils_no_other(store: ClickHouseStore) -> None:
    store.insert([event("1", feature_name="paid", base_cost_pico=10), event("2", feature_name="free", saved_exact_pico=10)])
    assert {row[0]: row[3] for row in store.query(ROI)[1]} == {"paid": Decimal(0), "free": None}


@pytest.mark.parametrize(
    ("sql", "expected"),
    [
        ("SELECT a / b", "SELECT a / nullIf(b, 0)"),
        ("SELECT (a / sum(b / c)) * 100", "SELECT (a / nullIf(sum(b / nullIf(c, 0)), 0)) * 100"),
        ("SELECT a / (b + c), ' / '", "SELECT a / nullIf((b + c), 0), ' / '"),
        ("SELECT a / quantile(0.5)(t.b) AS x", "SELECT a / nullIf(quantile(0.5)(t.b), 0) AS x"),
        ("SELECT a / `b / c`", "SELECT a / nullIf(`b / c`, 0)"),
        ("SELECT (a / b) / c[1]", "SELECT (a / nullIf(b, 0)) / nullIf(c[1], 0)"),
    ],
)
def test_only_divisors_are_rewritten(sql: str, expected: str) -> None:
    assert with_nullable_division(sql) == expected


@pytest.mark.parametrize(
    "sql",
    [
        "INSERT INTO cost_events_raw (event_id) VALUES ('x')",
        "DROP TABLE cost_events_raw",
        "TRUNCATE TABLE cost_events_raw",
        "ALTER TABLE cost_events_raw DELETE WHERE 1",
        "OPTIMIZE TABLE cost_events_raw FINAL",
        "CREATE TEMPORARY TABLE x (a Int8)",
        "SET readonly = 0",
        "SELECT 1 SETTINGS readonly = 0",
        "USE system",
        "KILL QUERY WHERE 1",
        "GRANT SELECT ON *.* TO someone",
        "SELECT 1; DROP TABLE cost_events_raw",
        "SELECT * FROM file('/etc/passwd', 'LineAsString')",
        "SELECT * FROM url('http://127.0.0.1:1/', 'CSV')",
        "INSERT INTO FUNCTION file('x.tsv', 'TSV', 'a Int8') SELECT 1",
    ],
)
def test_a_query_can_only_read(store: ClickHouseStore, sql: str) -> None:
    store.insert([event("a")])
    with pytest.raises(Rejected):
        store.query(sql)
    assert one(store, "SELECT count() FROM cost_events") == 1


def test_no_query_writes_a_file(store: ClickHouseStore, tmp_path: Path) -> None:
    """The engine's own read-only mode lets INTO OUTFILE through."""
    target = tmp_path / "out.tsv"
    for sql in (
        f"SELECT 1 INTO OUTFILE '{target}'",
        f"SELECT 1 into/**/outfile '{target}' -- x",
        f"EXPLAIN SELECT 1 INTO OUTFILE '{target}'",
    ):
        with pytest.raises(Rejected, match="no file was written"):
            store.query(sql)
    assert not target.exists()


@pytest.mark.parametrize(
    "sql",
    ["SELECT 'INTO OUTFILE x; DROP' AS a", "SELECT 1;", "WITH 1 AS a SELECT a -- FORMAT JSON", "(SELECT 1) UNION ALL (SELECT 2)",
     "SHOW TABLES", "DESCRIBE cost_events", "EXPLAIN SELECT 1", "EXISTS cost_events", "SELECT format('{}', 'a\\'b\n\t') AS x"],
)  # fmt: skip
def test_harmless_queries_run(store: ClickHouseStore, sql: str) -> None:
    assert store.query(sql)[1]


@pytest.mark.parametrize(
    ("sql", "said"),
    [
        ("SELCT 1", "Syntax error"),
        ("SELECT nope FROM cost_events", "nope"),
        ("SELECT 1 FROM nowhere", "nowhere"),
        ("", "Empty query"),
        ("SELECT 1 FORMAT JSON", "--format"),
        ("SELECT 1; SELECT 2", "Multi-statements"),
    ],
)
def test_bad_sql_is_answered_with_what_is_wrong(store: ClickHouseStore, sql: str, said: str) -> None:
    with pytest.raises(Rejected, match=said):
        store.query(sql)
    assert one(store, "SELECT 1") == 1


def test_a_result_without_rows_still_has_its_columns(store: ClickHouseStore) -> None:
    assert store.query("SELECT user_id, base_cost FROM cost_events") == (["user_id", "base_cost"], [])


def test_costs_survive_a_restart_and_migrations_run_once(tmp_path: Path) -> None:
    for _ in range(2):
        store = open_embedded(tmp_path)
        store.insert([event("a", base_cost_pico=3)])
        assert store.query("SELECT (SELECT sum(base_cost) FROM cost_events), count() FROM schema_versions")[1] == [
            (Decimal("0.000000000003"), len(MIGRATIONS))
        ]
        store.close()


def test_costs_of_an_earlier_release_stay_and_get_the_new_columns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = [c for c in COLUMNS if c.name not in ("purpose", "score")]
    with monkeypatch.context() as earlier:
        earlier.setattr("inference_engine.connectors.clickhouse.MIGRATIONS", MIGRATIONS[:1])
        earlier.setattr("inference_engine.connectors.clickhouse._COLUMN_NAMES", [c.name for c in first])
        earlier.setattr(
            "inference_engine.connectors.clickhouse.columns_of",
            lambda events: [list(map(c.value, events)) for c in first],
        )
        store = open_embedded(tmp_path)
        store.insert([event("a", base_cost_pico=3)])
        store.close()
    store = open_embedded(tmp_path)
    store.insert([event("b", base_cost_pico=4, purpose="audit")])
    assert store.query("SELECT event_id, purpose, base_cost > 0 FROM cost_events ORDER BY event_id")[1] == [("a", "", 1), ("b", "audit", 1)]
    store.close()


def test_tables_of_a_newer_release_are_left_alone(tmp_path: Path) -> None:
    open_embedded(tmp_path).close()
    admin = clickhouse_connect.get_client(interface="chdb", path=str(tmp_path))
    admin.command("INSERT INTO schema_versions (version) VALUES (99)")
    admin.close()
    with pytest.raises(ConfigError, match="newer release"):
        open_embedded(tmp_path)
    open_embedded(tmp_path / "other").close()  # the refused one released the engine


def test_a_folder_that_another_process_owns_is_refused_with_the_way_out(tmp_path: Path) -> None:
    owner = open_embedded(tmp_path)
    program = (
        "import sys; from pathlib import Path; from inference_engine.connectors.clickhouse import open_embedded\n"
        "from inference_engine.pipeline.errors import ConfigError\n"
        "try: open_embedded(Path(sys.argv[1]))\n"
        "except ConfigError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, timeout=60, check=False)
    owner.close()
    assert "another process owns it" in done.stdout, done.stderr


def test_over_http_costs_are_stored_once_read_exactly_and_only_read(tmp_path: Path) -> None:
    """The way to a server: the client's requests, settings and errors over HTTP, answered by the real engine."""
    with clickhouse_http(tmp_path) as address:
        store = open_server(address)
        for _ in range(2):
            store.insert([event("a", base_cost_pico=5, user_id="it's \\n"), event("b", base_cost_pico=10**20)])
        assert store.query("SELECT count(), sum(base_cost) FROM cost_events")[1] == [(2, Decimal("100000000.000000000005"))]
        by_user = "SELECT event_id FROM cost_events WHERE user_id = {user:String}"
        assert store.query(by_user, {"user": "it's \\n"})[1] == [("a",)]
        assert store.query("SELECT user_id FROM cost_events WHERE 0") == (["user_id"], [])
        assert len(store.query(ROI)[1]) == 1
        for sql in ("DROP TABLE cost_events_raw", "SELECT 1 SETTINGS readonly = 0", "SELECT * FROM file('x', 'CSV')", "SELECT nope"):
            with pytest.raises(Rejected):
                store.query(sql)
        with pytest.raises(Rejected, match="can't be stored"):
            store.insert([event("c", base_cost_pico=10**30)])
        assert one(store, "SELECT count() FROM cost_events") == 2
        with pytest.raises(ConfigError, match="refused the connection"):
            open_server(address.replace("/default", "/nowhere"))
    with pytest.raises(Unavailable, match="did not answer"):
        store.insert([event("d")])
    with pytest.raises(Unavailable, match="did not answer"):
        store.query("SELECT 1")
    store.close()


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/default?nonsense=1", "http://127.0.0.1:port/", "ftp://127.0.0.1"])
def test_an_address_that_is_none_is_a_mistake_in_the_settings(url: str) -> None:
    with pytest.raises(ConfigError, match="CLICKHOUSE_URL"):
        open_server(url)


def test_a_server_that_is_not_there_means_wait_not_lose() -> None:
    with pytest.raises(Unavailable, match="can't be reached"):
        open_server("http://127.0.0.1:9/default")

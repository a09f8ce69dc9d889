"""Reports and SQL for people, over the real engine: every number is one that can be counted by hand."""

import json
import re
from collections.abc import Iterator
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from inference_engine.cli.accounts import JobSummary, job_summary
from inference_engine.cli.display import dollars
from inference_engine.cli.report import report_command
from inference_engine.cli.report_numbers import gather
from inference_engine.cli.report_page import render
from inference_engine.cli.sql import sql_command
from inference_engine.connectors.clickhouse import ClickHouseStore, open_embedded
from inference_engine.connectors.sink_http import decode_result, encode_result
from inference_engine.pipeline.errors import Rejected
from inference_engine.schemas.costs import CostEvent

CENT = 10**10  # pico-dollars
NOON = 1_763_035_200_000  # 2025-11-13 12:00:00 UTC


def event(event_id: str, **fields: object) -> CostEvent:
    known: dict[str, object] = {
        "kind": "answer", "timestamp_ms": NOON, "request_id": event_id, "tenant_id": "local", "job": "support", "lane": "standard",
        "model_used": "m1",
    }  # fmt: skip
    return CostEvent.model_validate({"event_id": event_id, **known, **fields})


EVENTS = [
    event("1", base_cost_pico=6 * CENT, counterfactual_pico=10 * CENT, saved_routing_pico=3 * CENT, saved_prefix_pico=CENT,
          latency_ms=2_000, user_id="ann", feature_name="chat", experiment_id="exp", experiment_variant="a"),
    event("2", cache_tier="exact", counterfactual_pico=10 * CENT, saved_exact_pico=10 * CENT, latency_ms=10, user_id="bob",
          timestamp_ms=NOON + 1_000, experiment_id="exp", experiment_variant="b"),
    event("3", cache_tier="semantic", counterfactual_pico=10 * CENT, saved_semantic_pico=10 * CENT, latency_ms=20, user_id="bob"),
    event("4", cache_tier="coalesced", counterfactual_pico=10 * CENT, saved_coalescing_pico=10 * CENT, latency_ms=30, lane="batch"),
    event("5", kind="error", error_code="invalid_request", model_used="", latency_ms=1),
    event("6", kind="audit", request_id="3", base_cost_pico=2 * CENT),
    event("7", kind="ambiguous", request_id="1", ambiguous_cap_pico=50 * CENT),
    event("8", job="other", base_cost_pico=1, counterfactual_pico=1, tenant_id="<script>alert(1)</script>", user_id="=cmd"),
]  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A data folder with the costs above, its store closed."""
    store = open_embedded(tmp_path / "costs")
    store.insert(EVENTS)
    store.close()
    return tmp_path


@pytest.fixture
def store(folder: Path) -> Iterator[ClickHouseStore]:
    opened = open_embedded(folder / "costs")
    yield opened
    opened.close()


def test_the_summary_of_a_job_counts_requests_once_and_every_cent(store: ClickHouseStore) -> None:
    assert job_summary(store, "support") == JobSummary(
        requests=5,
        answered=4,
        failed=1,
        cached={"exact": 1, "semantic": 1, "coalesced": 1},
        provider_calls=3,
        cost_usd=Decimal("0.08"),
        possibly_paid_usd=Decimal("0.5"),
        counterfactual_usd=Decimal("0.40"),
        saved_usd={
            "exact": Decimal("0.1"), "semantic": Decimal("0.1"), "coalescing": Decimal("0.1"), "routing": Decimal("0.03"),
            "prefix": Decimal("0.01"), "batch": Decimal(0),
        },
        seconds=Decimal(3),
    )  # fmt: skip


def test_a_request_that_failed_and_was_answered_when_asked_again_is_one_request(store: ClickHouseStore) -> None:
    store.insert([event("9", request_id="5", base_cost_pico=CENT, counterfactual_pico=CENT), event("10", kind="charged", request_id="5")])
    summary = job_summary(store, "support")
    assert (summary.requests, summary.answered, summary.failed, summary.provider_calls) == (5, 5, 0, 5)


def test_a_job_without_costs_is_all_zero(store: ClickHouseStore) -> None:
    assert job_summary(store, "nobody") == JobSummary()


def test_the_json_report_has_exact_numbers() -> None:
    text = JobSummary(cost_usd=Decimal("0.000000000001"), counterfactual_usd=Decimal("1E+2"), seconds=Decimal("1.500")).as_json().decode()
    assert '"cost_usd": 0.000000000001' in text
    assert '"counterfactual_usd": 100' in text
    report = json.loads(text, parse_float=Decimal)
    assert report["cost_usd"] == Decimal("0.000000000001")
    assert list(report) == [
        "requests",
        "answered",
        "failed",
        "cached",
        "provider_calls",
        "cost_usd",
        "possibly_paid_usd",
        "counterfactual_usd",
        "saved_usd",
        "seconds",
    ]
    assert list(report["saved_usd"]) == ["exact", "semantic", "coalescing", "routing", "prefix", "batch"]


def test_a_report_says_what_was_saved_and_shows_ambiguous_caps_apart(store: ClickHouseStore) -> None:
    report = gather(store, job="support")
    assert report.net_saved_usd == Decimal("0.32")
    assert report.net_saved_percent == 80.0
    assert (report.ambiguous, report.ambiguous_cap_usd) == (1, Decimal("0.5"))
    assert report.net_saved_at_least_usd == Decimal("-0.18")
    assert report.from_provider == 1
    by_title = {section.title: section for section in report.sections}
    assert by_title["By user, top 10 by cost"].rows[0][:2] == ("ann", 1)
    assert [row[:3] for row in by_title["By experiment"].rows] == [("exp", "a", 1), ("exp", "b", 1)]
    assert by_title["Latency by lane"].rows == (("batch", 1, 30, 30), ("standard", 4, 20, 2_000))
    assert [row[0] for row in by_title["Paid for more than answers"].rows] == ["audit", "ambiguous"]
    assert sum(bucket.paid_usd for bucket in report.timeline) == report.summary.cost_usd


def test_a_report_on_nothing_names_the_jobs_there_are(store: ClickHouseStore) -> None:
    with pytest.raises(Rejected, match=r"job 'nope'.*support"):
        gather(store, job="nope")


def test_the_page_is_self_contained_and_escapes_what_users_named(store: ClickHouseStore) -> None:
    page = render(gather(store), made_at=datetime(2025, 11, 14, tzinfo=UTC))
    assert not re.search(r"(src|href)\s*=|url\(|@import|<script", page)
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert 'title="0.080000000001 USD"' in page  # all digits, beside the rounded amount
    assert "prefers-color-scheme: dark" in page


def application() -> typer.Typer:
    app = typer.Typer()
    app.command("sql")(sql_command)
    app.command("report")(report_command)
    return app


def run(folder: Path, *arguments: str, stdin: str | None = None) -> tuple[int, str, str]:
    environment = {"INFERENCE_ENGINE_HOME": str(folder), "CLICKHOUSE_URL": ""}
    result = CliRunner().invoke(application(), list(arguments), env=environment, input=stdin)
    return result.exit_code, result.stdout, result.stderr


def test_sql_prints_exact_decimals_in_each_format(folder: Path) -> None:
    question = "SELECT job, sum(base_cost) AS cost FROM cost_events GROUP BY job ORDER BY cost DESC"
    assert run(folder, "sql", question)[1] == "job\tcost\nsupport\t0.080000000000\nother\t0.000000000001\n"
    assert run(folder, "sql", "-", "--format", "csv", stdin=question)[1] == "job,cost\nsupport,0.080000000000\nother,0.000000000001\n"
    assert json.loads(run(folder, "sql", question, "--format", "json")[1])[1] == {"job": "other", "cost": "0.000000000001"}
    assert "0.000000000001" in run(folder, "sql", question, "--format", "table")[1]


def test_tsv_keeps_one_row_a_line(folder: Path) -> None:
    assert run(folder, "sql", "SELECT 'a\\tb\\nc' AS x")[1] == "x\na\\tb\\nc\n"


def test_bad_sql_exits_with_the_reason_and_no_trace(folder: Path) -> None:
    code, out, err = run(folder, "sql", "SELECT nope FROM cost_events")
    assert (code, out) == (1, "")
    assert "nope" in err
    assert "DESCRIBE cost_events" in err


def test_nothing_recorded_yet_says_how_to_begin(tmp_path: Path) -> None:
    for command in (["sql", "SELECT 1"], ["report"]):
        code, _, err = run(tmp_path, *command)
        assert code == 1
        assert "run a job first" in err
    assert not list(tmp_path.iterdir())  # asking makes nothing


def test_report_prints_tables_or_writes_the_page(folder: Path, tmp_path: Path) -> None:
    code, out, _ = run(folder, "report", "--job", "support")
    assert code == 0
    for said in ("$0.3200", "80.0 %", "$0.5000 on top", "ann"):
        assert said in out
    page = tmp_path / "deep" / "report.html"
    assert run(folder, "report", "--html", str(page))[0] == 0
    assert page.read_text("utf-8").startswith("<!doctype html>")


def test_a_report_that_is_piped_breaks_no_name_of_a_model(tmp_path: Path) -> None:
    name = "claude-sonnet-5-5-20261007-eu-west"
    store = open_embedded(tmp_path / "costs")
    store.insert([event("1", model_used=name, base_cost_pico=CENT, counterfactual_pico=CENT, latency_ms=2_000)])
    store.close()
    code, out, _ = run(tmp_path, "report")
    assert code == 0
    assert name in out


def test_a_page_that_cannot_be_written_is_an_error_not_a_trace(folder: Path) -> None:
    (folder / "file").write_text("")
    code, _, err = run(folder, "report", "--html", str(folder / "file" / "report.html"))
    assert code == 1
    assert "could not be written" in err


@pytest.mark.parametrize(
    ("amount", "said"),
    [("0", "$0"), ("1234.567", "$1,234.57"), ("0.32", "$0.3200"), ("0.0000412345", "$0.0000412"), ("0.000000000001", "$0.000000000001"),
     ("-0.5", "-$0.5000"), ("0.0999999", "$0.1000")],
)  # fmt: skip
def test_dollars_keep_three_digits_of_small_amounts(amount: str, said: str) -> None:
    assert dollars(Decimal(amount)) == said


def test_results_come_through_the_sinks_door_as_they_were() -> None:
    rows: list[tuple[object, ...]] = [
        (Decimal("0.000000000001"), datetime.fromisoformat("2025-01-02T03:04:05.006"), date(2025, 1, 2), 2**100, None, "x", 1.5, True),
        (None, None, None, 5, None, None, None, False),
    ]
    columns = [f"c{index}" for index in range(8)]
    assert decode_result(encode_result(columns, rows)) == (columns, rows)

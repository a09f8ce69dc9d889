"""An experiment's numbers over the real engine: each can be counted by hand, and a difference that is there is told."""

import json
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from inference_engine.cli.experiment import as_object, experiment_command, notes
from inference_engine.cli.experiment_numbers import Compared, compare
from inference_engine.connectors.clickhouse import ClickHouseStore, open_embedded
from inference_engine.pipeline.errors import Rejected
from inference_engine.pipeline.feedback import event_of
from inference_engine.schemas.costs import CostEvent
from inference_engine.schemas.feedback import Rated

from ..pipeline.support import identity
from .test_report import CENT, NOON, event


def of(variant: str, custom_id: str, cents: int, **fields: object) -> CostEvent:
    known: dict[str, object] = {"job": "j", "experiment_id": "exp", "experiment_variant": variant, "base_cost_pico": cents * CENT,
                                "latency_ms": 100 * cents}  # fmt: skip
    return event(f"e-{custom_id}-{fields.get('kind', 'answer')}", request_id=custom_id, **{**known, **fields})


def said(custom_id: str, score: float, at_ms: int = NOON) -> CostEvent:
    return event_of(Rated(identity=identity(custom_id, "j", "local"), score=score, at_ms=at_ms))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ClickHouseStore]:
    opened = open_embedded(tmp_path / "costs")
    yield opened
    opened.close()


def ask(store: ClickHouseStore, unit: str = "request", **options: object) -> Compared:
    known = {"control": None, "tenant": None, "alpha": 0.05, "planned": 1_000}
    return compare(store, "exp", unit=unit, **{**known, **options})  # type: ignore[arg-type]


def mean(found: Compared, measure: str, variant: str) -> float | None:
    [rows] = [m.rows for m in found.measures if m.name == measure]
    [own] = [row.own for row in rows if row.variant == variant]
    return None if own is None else own.value


def test_every_payment_counts_and_what_a_cache_answered_is_counted_apart(store: ClickHouseStore) -> None:
    store.insert([
        of("a", "1", 2), of("a", "1", 4, kind="charged"), of("a", "2", 6), of("a", "3", 0, cache_tier="exact"),
        of("a", "4", 0, kind="error", error_code="x"), of("b", "5", 1), of("b", "6", 7, kind="ambiguous", ambiguous_cap_pico=CENT),
    ])  # fmt: skip
    found = ask(store)
    a, b = found.variants
    assert (a.requests, a.cached, a.failed, a.paid_usd, b.requests, b.paid_usd) == (4, 1, 1, Decimal("0.12"), 1, Decimal("0.01"))
    assert mean(found, "cost_usd", "a") == pytest.approx(0.04)
    assert mean(found, "failed", "a") == pytest.approx(1 / 3)
    assert mean(found, "latency_ms", "a") == pytest.approx(400)  # of answers


def test_the_last_word_about_an_answer_is_its_score_and_no_cost(store: ClickHouseStore) -> None:
    store.insert([of("a", "1", 2), of("a", "2", 2), of("b", "3", 2), said("1", 1.0), said("2", 0.0, NOON + 5_000), said("2", 1.0)])
    found = ask(store)
    assert (mean(found, "score", "a"), mean(found, "score", "b")) == (0.5, None)
    assert [v.judged for v in found.variants] == [2, 0]
    assert store.query("SELECT count() FROM cost_events")[1] == [(3,)]
    assert store.query("SELECT count(), sum(score) FROM feedback")[1] == [(2, 1.0)]


def test_by_user_the_units_are_users_and_those_without_a_user_are_left_out(store: ClickHouseStore) -> None:
    store.insert([of("a", str(i), 1, user_id=f"u{i % 3}") for i in range(9)] + [of("a", "x", 100)])
    found = ask(store, "user")
    assert [row.units for row in found.measures[0].rows] == [3]
    assert mean(found, "cost_usd", "a") == pytest.approx(0.01)


def test_a_difference_that_is_there_is_told_and_the_control_is_not_compared_with_itself(store: ClickHouseStore) -> None:
    random = np.random.default_rng(0)
    rows = [of(v, f"{v}{i}", 1 + int(random.integers(0, 3)) + 4 * (v == "b")) for i in range(150) for v in ("a", "b")]
    store.insert(rows)
    found = ask(store, control="b")
    assert found.control == "b"
    [cost] = [m for m in found.measures if m.name == "cost_usd"]
    assert cost.rows[0].difference is None
    assert cost.rows[1].difference is not None
    assert cost.rows[1].difference.high < -0.03
    assert "Cost of a request: a has less than b." in notes(found)
    assert as_object(found)["measures"]["cost_usd"][1]["difference"]["high"] == cost.rows[1].difference.high


def test_more_variants_are_compared_more_strictly(store: ClickHouseStore) -> None:
    random = np.random.default_rng(0)
    values = [(v, i, int(random.integers(1, 9))) for i in range(150) for v in ("a", "b")]
    store.insert([of(v, f"{v}{i}", c) for v, i, c in values])
    [before] = [m.rows[1].difference for m in ask(store).measures if m.name == "cost_usd"]
    store.insert([of("c", "c1", 1)])
    [after] = [m.rows[1].difference for m in ask(store).measures if m.name == "cost_usd"]
    assert before is not None
    assert after is not None
    assert after.high - after.low > before.high - before.low


def test_what_is_not_there_is_named_with_what_is(store: ClickHouseStore) -> None:
    store.insert([of("a", "1", 1, experiment_id="other")])
    with pytest.raises(Rejected, match="The latest experiments: other"):
        ask(store)
    store.insert([of("a", "2", 1)])
    with pytest.raises(Rejected, match="there are: a"):
        ask(store, control="z")


def test_the_command_shows_tables_and_json(store: ClickHouseStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store.insert([of(v, f"{v}{i}", 1 + i % 3) for i in range(120) for v in ("as-now", "small")])
    store.close()
    file = tmp_path / "experiments.toml"
    file.write_text('[exp]\nunit = "request"\nvariants = [{ name = "small", policy = "quantile" }, { name = "as-now" }]\n')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("INFERENCE_ENGINE_HOME", str(tmp_path))
    monkeypatch.setenv("EXPERIMENTS_FILE", str(file))
    app = typer.Typer()
    app.command()(experiment_command)
    shown = CliRunner().invoke(app, ["exp"])
    assert shown.exit_code == 0, shown.output
    assert "less small" in shown.output  # the file's first variant is the control
    told = json.loads(CliRunner().invoke(app, ["exp", "--json"]).stdout)
    assert told["variants"][0]["requests"] == 120
    assert CliRunner().invoke(app, ["nothing"]).exit_code == 1

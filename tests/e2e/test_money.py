"""Hard stops and accounts: by the provider's own bill."""

from decimal import Decimal
from pathlib import Path
from typing import Any

import orjson

from inference_engine.cli.display import dollars
from inference_engine.schemas.ledger import Unpaid

from .engine import MODEL, Engine, read_rows, row, write_rows
from .waiting import until


def usd(pico: int) -> str:
    return f"{Decimal(pico).scaleb(-12):f}"


def test_max_cost_is_never_passed_and_a_higher_one_goes_on_where_it_stopped(shared: Engine, tmp_path: Path) -> None:
    texts = [f"max-cost: question {i}" for i in range(30)]
    source, target = write_rows(tmp_path / "in.jsonl", [row(f"r{i}", text) for i, text in enumerate(texts)]), tmp_path / "out.jsonl"
    limit = 500_000_000  # half a thousandth of a dollar, in pico-dollars: about half of the rows
    ended = shared.run(source, target, "--max-cost", usd(limit))
    assert ended.code == 1, ended.err
    assert "--max-cost" in ended.err
    charged = shared.provider.charged(MODEL, texts)
    assert limit // 4 < charged <= limit
    lines = read_rows(target)
    assert [line["custom_id"] for line in lines] == [f"r{i}" for i in range(30)]
    answered = sum(line["error"] is None for line in lines)
    assert answered == sum(shared.provider.billed(MODEL, texts).values()) < 30
    assert {line["error"]["code"] for line in lines if line["error"]} == {"over_budget"}
    assert shared.run(source, target, "--max-cost", usd(10 * limit)).code == 0
    assert all(line["error"] is None for line in read_rows(target))
    assert set(shared.provider.billed(MODEL, texts).values()) == {1}


def turned_away(engine: Engine) -> list[str]:
    return [record.attempt for record in engine.ledger().records if isinstance(record, Unpaid)]


def test_cancel_stops_paying_and_says_so_for_every_row(shared: Engine, tmp_path: Path) -> None:
    texts = [f"cancel: question {i}" for i in range(50)]
    before = len(turned_away(shared))
    shared.provider.fail("429", match="cancel:", retry_after=3)
    shared.produce([row(f"r{i}", text, job="to-cancel") for i, text in enumerate(texts)], tenant="local")
    until(lambda: len(turned_away(shared)) > before, "the provider has turned some away")
    ended = shared.command("cancel", "to-cancel")
    assert ended.code == 0, ended.err
    shared.provider.heal()
    answers = shared.answers("to-cancel", {f"r{i}" for i in range(50)})
    codes = [line.error.code if line.error is not None else None for line in answers.values()]
    paid = sum(shared.provider.billed(MODEL, texts).values())
    assert codes.count("cancelled") == 50 - paid
    assert paid == 0
    again = shared.ask("to-cancel-again", [row("r0", texts[0])])
    assert again["r0"].error is None


def settled(engine: Engine) -> int | None:
    """The certain sum, once every intent has its outcome and every cost is stored."""
    accounts = engine.ledger()
    return accounts.certain if not accounts.open and engine.stored_cost() == accounts.certain else None


def test_bill_ledger_and_clickhouse_agree_to_the_last_digit_and_so_do_sql_report_and_json_report(shared: Engine, tmp_path: Path) -> None:
    texts = [f"accounts: question {i}" for i in range(40)]
    rows: list[dict[str, Any]] = [
        row(f"r{i}", texts[i % 40], model=MODEL if i % 2 else "gpt-4o", user_id=f"u{i % 3}", feature_name="accounts") for i in range(100)
    ]
    target, report = tmp_path / "out.jsonl", tmp_path / "report.json"
    assert shared.run(write_rows(tmp_path / "in.jsonl", rows), target, "--job", "accounts", "--json-report", str(report)).code == 0
    certain = until(lambda: settled(shared), "every cost is stored")
    bill = sum(line.pico for line in shared.provider.bill())
    assert certain <= bill <= certain + shared.ledger().caps
    charged = shared.provider.charged(MODEL, texts) + shared.provider.charged("gpt-4o", texts)
    assert shared.stored_cost("job = 'accounts'") == charged
    numbers = orjson.loads(report.read_bytes())
    assert int(Decimal(str(numbers["cost_usd"])).scaleb(12)) == charged
    [found] = shared.sql(
        "SELECT toString(sum(base_cost)) AS cost, toString(sum(counterfactual_cost)) AS alone, toString(sum(exact_savings)) AS exact, "
        "count() AS n, countIf(cache_tier = 'exact') AS hits FROM cost_events WHERE job = 'accounts'"
    )
    assert (found["n"], found["hits"]) == (numbers["requests"], numbers["cached"]["exact"]) == (100, 60)
    for name, value in (("cost", numbers["cost_usd"]), ("alone", numbers["counterfactual_usd"]), ("exact", numbers["saved_usd"]["exact"])):
        assert Decimal(found[name]) == Decimal(str(value)), name
    shown = shared.command("report", "--job", "accounts")
    assert shown.code == 0, shown.err
    for value in (numbers["cost_usd"], numbers["counterfactual_usd"], numbers["saved_usd"]["exact"]):
        assert dollars(Decimal(str(value))) in shown.out

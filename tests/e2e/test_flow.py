"""The whole flow: every request is answered once, with the answer to its own prompt, and paid once."""

from decimal import Decimal
from pathlib import Path

import orjson

from .conftest import MakeEngine
from .engine import MODEL, Engine, expected_answer, read_rows, row, text_of, times, write_rows


def prompts(tag: str, count: int) -> list[str]:
    return [f"{tag}: what is the answer number {i}?" for i in range(count)]


def test_every_request_gets_exactly_one_distinct_response_with_the_answer_to_its_prompt(shared: Engine) -> None:
    texts = prompts("once", 200)
    answers = shared.ask("once", [row(f"r{i}", text) for i, text in enumerate(texts)])
    again = shared.ask("once-again", [row(f"r{i}", text) for i, text in enumerate(reversed(texts))])
    assert all(len(found) == 1 for found in shared.distinct("once").values())
    assert shared.distinct("once").keys() == {f"r{i}" for i in range(200)}
    assert [text_of(answers[f"r{i}"]) for i in range(200)] == [expected_answer(text) for text in texts]
    assert [text_of(again[f"r{199 - i}"]) for i in range(200)] == [expected_answer(text) for text in texts]


def test_exact_repeats_are_paid_once_and_all_accounts_agree_to_the_last_digit(shared: Engine, tmp_path: Path) -> None:
    texts = prompts("repeats", 60)
    rows = [row(f"r{i}", texts[i % 60], user_id=f"u{i % 3}") for i in range(180)]
    source, target, report = write_rows(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl", tmp_path / "report.json"
    ended = shared.run(source, target, "--tenant", "repeats", "--json-report", str(report))
    assert ended.code == 0, ended.err
    lines = read_rows(target)
    assert [line["custom_id"] for line in lines] == [f"r{i}" for i in range(180)]
    assert all(text_of(lines[i]) == text_of(lines[i % 60]) for i in range(180))
    assert times(shared.provider.billed(MODEL, texts).elements()) == {1: 60}
    charged = shared.provider.charged(MODEL, texts)
    numbers = orjson.loads(report.read_bytes())
    assert int(Decimal(str(numbers["cost_usd"])).scaleb(12)) == charged


def test_another_engine_gives_the_same_answers_to_the_same_file(shared: Engine, make_engine: MakeEngine, tmp_path: Path) -> None:
    source = write_rows(tmp_path / "in.jsonl", [row(f"r{i}", text) for i, text in enumerate(prompts("same", 50) * 2)])
    assert shared.run(source, tmp_path / "one.jsonl").code == 0
    other = make_engine()
    other.start_worker()
    assert other.run(source, tmp_path / "two.jsonl").code == 0
    one, two = ([(line["custom_id"], text_of(line)) for line in read_rows(tmp_path / name)] for name in ("one.jsonl", "two.jsonl"))
    assert one == two
    assert len(other.provider.bill()) == 50


def test_retry_failed_asks_only_what_failed_again(shared: Engine, tmp_path: Path) -> None:
    texts = prompts("retry", 20)
    source, target = write_rows(tmp_path / "in.jsonl", [row(f"r{i}", text) for i, text in enumerate(texts)]), tmp_path / "out.jsonl"
    shared.provider.fail("400", match="retry:", count=7)
    assert shared.run(source, target).code == 1
    assert sum(line["error"] is not None for line in read_rows(target)) == 7
    assert shared.run(source, target, "--retry-failed").code == 0
    assert [text_of(line) for line in read_rows(target)] == [expected_answer(text) for text in texts]
    assert times(shared.provider.billed(MODEL, texts).elements()) == {1: 20}

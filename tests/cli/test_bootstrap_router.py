"""`bootstrap-router` on prompts: the price is told before anything is asked, and the answers become a table that can be learned from."""

from pathlib import Path
from typing import Any

import orjson
import pytest
import typer
from typer.testing import CliRunner

from inference_engine.cli import bootstrap_prompts
from inference_engine.cli.bootstrap_prompts import models_to_ask, plan, read_prompts
from inference_engine.cli.bootstrap_router import bootstrap_command, is_table
from inference_engine.cli.engine import engine
from inference_engine.cli.run_command import RunArguments
from inference_engine.connectors.models_toml import load_catalogue
from inference_engine.connectors.router_file import load_router
from inference_engine.pipeline.errors import ConfigError

MODELS = "sim-economy,sim-premium"


@pytest.fixture
def prompts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("INFERENCE_ENGINE_HOME", str(tmp_path))
    monkeypatch.setenv("CACHE_SEMANTIC_ENABLED", "false")
    path = tmp_path / "prompts.jsonl"
    rows = [{"custom_id": f"r{i}", "prompt": f"What is {i} plus {i}?", "expected": str(2 * i)} for i in range(60)]
    path.write_text("".join(orjson.dumps(row).decode() + "\n" for row in rows))
    return path


class Asked:
    """Stands for `run`: writes answers, and remembers what it was told. The cheap model errs on every third prompt."""

    def __init__(self) -> None:
        self.runs: list[RunArguments] = []

    def __call__(self, arguments: RunArguments) -> int:
        self.runs.append(arguments)
        cheap = arguments.model == "sim-economy"
        with open(arguments.output or "", "wb") as file:
            for line in arguments.input.read_bytes().splitlines():
                row = orjson.loads(line)
                number = int(row["custom_id"][1:])
                text = f"It is {2 * number + (cheap and number % 3 == 0)}."
                body = {"choices": [{"message": {"role": "assistant", "content": text}, "finish_reason": "stop"}]}
                told = {"model_used": arguments.model, "cost_usd": "0.0001" if cheap else "0.01", "ambiguous_cap_usd": "0"}
                file.write(orjson.dumps({"custom_id": row["custom_id"], "response": {"body": body}, "engine": told}) + b"\n")
        return 0


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    made = Asked()
    monkeypatch.setattr(bootstrap_prompts, "run_file", made)
    return made


def invoke(*arguments: str) -> Any:
    app = typer.Typer()
    app.command()(bootstrap_command)
    return CliRunner().invoke(app, [*arguments, "--no-embeddings", "--models", MODELS])


def test_without_a_terminal_nothing_is_asked_before_somebody_agrees(prompts: Path, asked: Asked) -> None:
    result = invoke(str(prompts))
    assert isinstance(result.exception, ConfigError)
    assert "--yes" in str(result.exception)
    assert "60 prompts are asked of 2 models" in result.output
    assert not asked.runs


def test_with_a_yes_every_model_is_asked_and_what_they_answered_is_learned_from(prompts: Path, asked: Asked) -> None:
    result = invoke(str(prompts), "--yes")
    assert result.exit_code == 0, (result.output, result.exception)
    assert [run.model for run in asked.runs] == ["sim-premium", "sim-economy"]
    assert {run.use_cache for run in asked.runs} == {False}
    lines = [orjson.loads(line) for line in (prompts.parent / "prompts.bootstrap" / "table.jsonl").read_bytes().splitlines()]
    assert [line["scores"] for line in lines[:2]] == [{"sim-premium": 1.0, "sim-economy": 0.0}, {"sim-premium": 1.0, "sim-economy": 1.0}]
    assert lines[0]["costs"] == {"sim-premium": 0.01, "sim-economy": 0.0001}
    state = load_router(prompts.parent / "router.npz")
    assert state is not None
    assert (state.rows, set(state.models)) == (60, {"sim-premium", "sim-economy"})


def test_a_limit_is_agreement_and_each_model_gets_what_the_others_left(prompts: Path, asked: Asked) -> None:
    assert invoke(str(prompts), "--max-cost", "0.65").exit_code == 0
    assert [run.max_cost for run in asked.runs] == ["0.650000000000", "0.050000000000"]


def test_a_table_is_learned_from_and_nothing_is_asked(prompts: Path, asked: Asked) -> None:
    assert invoke(str(prompts), "--yes").exit_code == 0
    table = prompts.parent / "prompts.bootstrap" / "table.jsonl"
    asked.runs.clear()
    assert is_table(table)
    assert not is_table(prompts)
    assert invoke(str(table)).exit_code == 0
    assert not asked.runs


def test_prompts_are_drawn_evenly_and_the_same_ones_again(prompts: Path) -> None:
    first, again = read_prompts(prompts, 20), read_prompts(prompts, 20)
    assert first == again
    assert len(first) == 20
    assert first[0].expected == str(2 * int(first[0].custom_id[1:]))
    assert b"expected" not in first[0].line
    (prompts.parent / "few.jsonl").write_text('{"prompt": "hi"}\nbroken\n')
    with pytest.raises(ConfigError, match="fewer than 10"):
        read_prompts(prompts.parent / "few.jsonl", 20)


def test_the_price_is_the_sum_over_models_of_what_run_would_estimate(prompts: Path) -> None:
    made = plan(engine(), prompts, prompts.parent / "work", ["sim-economy", "sim-premium"], 500)
    assert [model.name for model in made.models] == ["sim-premium", "sim-economy"]
    low, expected, high = made.costs["sim-premium"]
    assert 0 < low < expected < high
    assert expected > made.costs["sim-economy"][1]
    assert "Together about" in made.told()[-1]


def test_by_default_the_best_of_each_tier_is_asked_the_reference_first() -> None:
    models = models_to_ask(load_catalogue().for_providers(["openai"]), [])
    assert [model.tier for model in models] == ["premium", "standard", "economy"]
    with pytest.raises(ConfigError, match="two models"):
        models_to_ask(load_catalogue().for_providers(["simulated"]), ["sim-economy"])

"""`evaluate routing`: from a file of scored answers to a table, JSON and a picture; mistakes are named."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from typer.testing import CliRunner, Result

from inference_engine.agents.settings import Settings
from inference_engine.cli import prompt_embeddings
from inference_engine.cli.evaluate_routing import routing_command
from inference_engine.connectors.embedder import FoundEmbedder, HashEmbedder
from inference_engine.pipeline.errors import ConfigError

Evaluate = Callable[..., Result]
FIELDS = {"apgr", "cpt50", "cpt80", "saved_at_95", "saved_at_99", "saved_at_95_validated", "quality_vs_best", "intervals"}


@pytest.fixture(autouse=True)
def _hashed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A quick embedder, and a data folder that is nobody's."""
    monkeypatch.setenv("INFERENCE_ENGINE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(prompt_embeddings, "configured_embedder", lambda _: FoundEmbedder(HashEmbedder(64), "hashed"))


def evaluated(*arguments: str | Path) -> Result:
    app = typer.Typer()
    app.command()(routing_command)
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def written(path: Path, count: int = 120, **changes: Any) -> Path:
    """Odd prompts need the large model."""
    random = np.random.default_rng(len(path.name))
    lines = []
    for i in range(count):
        hard = i % 2
        prompt = ("Prove the theorem step by step: " if hard else "Translate into French: ") + f"{random.integers(10**6)} {i}"
        scores = {"small": float(random.random() < (0.1 if hard else 0.9)), "large": float(random.random() < 0.9)}
        lines.append({"prompt": prompt, "scores": scores, "costs": {"small": 0.001, "large": 0.01}} | changes)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_json_holds_every_policy_with_every_measure(tmp_path: Path) -> None:
    done = evaluated(written(tmp_path / "t.jsonl"), "--json")
    assert done.exit_code == 0, done.output
    made = json.loads(done.stdout)
    assert set(made) == {"random", "prompt_length", "best_single", "static_mix", "oracle", "heuristic", "quantile", "learned"}
    assert all(set(policy) >= FIELDS for policy in made.values())
    assert made["learned"]["apgr"] > 0.6
    low, high = made["learned"]["intervals"]["saved_at_95"]
    assert low <= made["learned"]["saved_at_95"] <= high


def test_the_table_names_models_policies_and_how_it_was_measured(tmp_path: Path) -> None:
    done = evaluated(written(tmp_path / "t.jsonl"), "--policy", "heuristic", "--policy", "quantile")
    assert done.exit_code == 0, done.output
    assert "120 prompts, 5 folds of prompts" in done.stdout
    assert all(name in done.stdout for name in ("small", "large", "best", "heuristic", "quantile", "oracle"))
    assert "learned" not in done.stdout


def test_a_train_table_is_learned_from_and_prompts_of_both_are_not(tmp_path: Path) -> None:
    test, train = written(tmp_path / "t.jsonl"), written(tmp_path / "train.jsonl", 300)
    with train.open("a") as file:
        file.write(test.read_text().splitlines()[0] + "\n")
    done = evaluated(test, "--train", train, "--policy", "learned")
    assert done.exit_code == 0, done.output
    assert "120 prompts, learned from 300 other prompts" in done.stdout
    assert "train.jsonl: 1 prompts are in t.jsonl too; nothing is learned from them" in done.stderr


def test_a_table_that_asks_one_prompt_again_and_again_is_refused_in_words(tmp_path: Path) -> None:
    same, other = written(tmp_path / "same.jsonl", prompt="What is 2 + 2?"), written(tmp_path / "other.jsonl")
    for arguments in ((same,), (other, "--train", same)):
        done = evaluated(*arguments)
        assert isinstance(done.exception, ConfigError)
        assert "same.jsonl has one prompt only, 120 times" in str(done.exception)


def test_a_reference_may_be_named_as_a_policy_and_no_number_is_a_negative_nothing(tmp_path: Path) -> None:
    path = written(tmp_path / "t.jsonl", scores={"small": 1.0, "large": 1.0})
    done = evaluated(path, "--policy", "random", "--policy", "static_mix", "--json")
    assert done.exit_code == 0, done.output
    assert set(json.loads(done.stdout)) == {"random", "prompt_length", "best_single", "static_mix", "oracle"}
    assert "-0.0" not in done.stdout


def test_tables_without_two_models_in_common_are_refused(tmp_path: Path) -> None:
    other = written(tmp_path / "other.jsonl", scores={"x": 1, "y": 0}, costs={"x": 1, "y": 1})
    done = evaluated(written(tmp_path / "t.jsonl"), "--train", other)
    assert isinstance(done.exception, ConfigError)
    assert "two models in common" in str(done.exception)


def test_a_png_is_drawn_and_bad_lines_are_named(tmp_path: Path) -> None:
    table = written(tmp_path / "t.jsonl", 60)
    table.write_text(table.read_text() + "{oops\n")
    done = evaluated(table, "--policy", "quantile", "--plot", tmp_path / "plot.png")
    assert done.exit_code == 0, done.output
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
    assert "line 61 is not JSON" in done.stderr


def test_without_the_extra_it_measures_on_features_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompt_embeddings, "configured_embedder", lambda _: FoundEmbedder(None, "no embedder: nothing is installed"))
    done = evaluated(written(tmp_path / "t.jsonl"), "--policy", "learned", "--json")
    assert done.exit_code == 0, done.output
    assert "no embedder: nothing is installed. Routing is measured on prompt features alone" in done.stderr
    assert json.loads(done.stdout)["learned"]["apgr"] > 0.6


def test_embeddings_are_made_once_for_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = written(tmp_path / "t.jsonl")
    first = evaluated(table, "--policy", "learned", "--json")
    monkeypatch.setattr(prompt_embeddings, "configured_embedder", lambda _: pytest.fail("the embeddings were there"))
    again = evaluated(table, "--policy", "learned", "--json")
    assert again.stdout == first.stdout


def test_embeddings_of_another_embedder_are_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = written(tmp_path / "t.jsonl")
    evaluated(table, "--policy", "learned", "--json")
    seen: list[int] = []

    def other(settings: Settings) -> FoundEmbedder:
        seen.append(settings.caching.embedding_dimension)
        return FoundEmbedder(HashEmbedder(32), "other")

    monkeypatch.setattr(prompt_embeddings, "configured_embedder", other)
    monkeypatch.setenv("EMBEDDING_DIMENSION", "32")
    assert evaluated(table, "--policy", "learned", "--json").exit_code == 0
    assert seen == [32]


def test_rows_of_the_embeddings_belong_to_their_prompts() -> None:
    prompts = [f"{'word ' * (i % 7)}{i}" for i in range(600)] * 2
    made = prompt_embeddings.embeddings_of(prompts, lambda line: None)
    assert made is not None
    np.testing.assert_allclose(made, HashEmbedder(64).embed(prompts), atol=1e-6)


def test_groups_are_held_out_where_the_table_has_them_and_may_be_ignored(tmp_path: Path) -> None:
    table = written(tmp_path / "t.jsonl")
    lines = [json.loads(line) | {"group": i % 4} for i, line in enumerate(table.read_text().splitlines())]
    table.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert "folds of groups" in evaluated(table, "--policy", "quantile").stdout
    assert "folds of prompts" in evaluated(table, "--policy", "quantile", "--split", "rows").stdout
    none = evaluated(written(tmp_path / "plain.jsonl"), "--split", "groups")
    assert isinstance(none.exception, ConfigError)
    assert "--split rows" in str(none.exception)

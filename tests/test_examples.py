"""The example requests: made again from their program, and with something to do for each stage."""

import json
import runpy
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from inference_engine.connectors.models_toml import load_catalogue
from inference_engine.pipeline.ingest import Door, admit

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.fixture(scope="module")
def lines() -> list[dict[str, Any]]:
    return [json.loads(line) for line in (EXAMPLES / "support.jsonl").read_text("utf-8").splitlines()]


def test_support_jsonl_is_what_its_program_writes() -> None:
    made = runpy.run_path(str(EXAMPLES / "make_support.py"))["render"]()
    assert made == (EXAMPLES / "support.jsonl").read_text("utf-8")


def test_every_line_passes_the_door(lines: list[dict[str, Any]]) -> None:
    door = Door(catalogue=load_catalogue().for_providers(["simulated"]), default_ttl_s=60)
    requests = [admit(json.dumps(line).encode(), "local", 0, door) for line in lines]
    assert len({r.identity.custom_id for r in requests}) == 1000


def test_each_stage_has_something_to_do(lines: list[dict[str, Any]]) -> None:
    bodies = Counter(json.dumps(line["body"]) for line in lines)
    assert len(lines) - len(bodies) == 150, "exact repeats"
    engine = [line["engine"] for line in lines]
    assert 10 <= len({e["user_id"] for e in engine}) <= 20
    assert {e["feature_name"] for e in engine} == {"faq", "chat", "triage", "advice"}
    assert {e.get("experiment_variant") for e in engine} == {None, "control", "concise"}
    assert {e.get("priority") for e in engine} == {None, "express", "batch"}
    models = Counter(line["body"]["model"] for line in lines)
    assert models["auto"] > 900
    assert len(models) > 3


def test_the_data_comes_with_its_source_and_licence() -> None:
    assert "Attribution 4.0 International" in (EXAMPLES / "data" / "LICENSE-banking77.txt").read_text("utf-8")
    note = (EXAMPLES / "data" / "README.md").read_text("utf-8")
    assert "PolyAI" in note
    assert "Creative Commons Attribution 4.0" in note

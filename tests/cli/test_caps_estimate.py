"""What a row can cost at most, and what a file will about cost."""

from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest

from inference_engine.agents.routing import route_with
from inference_engine.agents.settings import RoutingConfig, Settings
from inference_engine.cli.budget import MICRO
from inference_engine.cli.caps import caps
from inference_engine.cli.estimate import Embed, Estimate, Estimator
from inference_engine.cli.rows import Row, RowDefaults, parse_row
from inference_engine.connectors.models_toml import load_catalogue
from inference_engine.pipeline.billing import cap
from inference_engine.pipeline.errors import Rejected

CATALOGUE = load_catalogue().for_providers(["simulated"])
DAY = date(2026, 11, 23)


def row(**fields: Any) -> Row:
    parsed = parse_row(orjson.dumps({"prompt": "hello", "max_tokens": 10, **fields}), 1, RowDefaults("j"))
    assert isinstance(parsed, Row)
    return parsed


def rounded_up(pico: int) -> int:
    return -(-pico // MICRO) * MICRO


def test_auto_is_capped_by_each_model_that_it_may_choose() -> None:
    of = caps(CATALOGUE, DAY)
    asked = row(model="auto")
    choices = [m for m in CATALOGUE.models if m.enabled and m.auto]
    assert of(asked) == tuple(sorted({rounded_up(cap(m, asked.body, DAY)) for m in choices}))
    hidden = max((m for m in CATALOGUE.models if m.enabled and not m.auto), key=lambda m: cap(m, asked.body, DAY))
    assert rounded_up(cap(hidden, asked.body, DAY)) in of(row(model="auto", engine={"preferred_model": hidden.name}))


def test_a_named_model_is_capped_by_its_own_price_and_an_unknown_one_is_refused() -> None:
    of = caps(CATALOGUE, DAY)
    asked = row(model="sim-premium")
    assert of(asked) == (rounded_up(cap(CATALOGUE.get("sim-premium"), asked.body, DAY)),)
    with pytest.raises(Rejected, match="unknown model"):
        of(row(model="nobody"))


def test_a_disabled_model_is_capped_by_those_that_stand_in_for_it() -> None:
    real = load_catalogue().for_providers(["openai"])
    asked = row(model="claude-haiku-4-5")
    with pytest.raises(Rejected, match="ANTHROPIC_API_KEY"):
        caps(real, DAY)(asked)
    stood = caps(real.standing_in({"claude-haiku-4-5": ["gpt-6-luna", "gpt-6.1-sol"]}), DAY)
    assert stood(asked) == tuple(-(-cap(real.get(name), asked.body, DAY) // MICRO) * MICRO for name in ("gpt-6-luna", "gpt-6.1-sol"))


def estimate(tmp_path: Path, rows: list[dict[str, Any] | bytes], embed: Embed | None = None, model: str | None = "sim-premium") -> Estimate:
    path = tmp_path / "in.jsonl"
    path.write_bytes(b"".join((r if isinstance(r, bytes) else orjson.dumps(r)) + b"\n" for r in rows))
    decide = route_with(Settings(routing=RoutingConfig(policy="heuristic")), CATALOGUE)
    return Estimator(CATALOGUE, DAY, "t", RowDefaults("j", model), 0.92, decide, embed).estimate(path)


def test_repeats_are_counted_over_the_whole_file_and_paid_once(tmp_path: Path) -> None:
    once = estimate(tmp_path, [{"prompt": f"q{i}"} for i in range(10)])
    often = estimate(tmp_path, [{"prompt": f"q{i % 10}"} for i in range(50)])
    assert (once.exact_hits, often.exact_hits) == (0, 40)
    assert once.cost == often.cost
    assert often.without_engine == 5 * once.without_engine
    assert once.cost[0] < once.cost[1] < once.cost[2]


def test_rows_that_must_not_share_are_no_repeats(tmp_path: Path) -> None:
    assert estimate(tmp_path, [{"prompt": "q", "engine": {"use_cache": False}}] * 5).exact_hits == 0
    assert estimate(tmp_path, [{"prompt": "q", "engine": {"sample_index": i}} for i in range(5)]).exact_hits == 0


def test_bad_rows_are_told_apart_from_good_ones(tmp_path: Path) -> None:
    found = estimate(tmp_path, [b"broken", {"prompt": "q"}, {"body": {"messages": ["no message"]}}])
    assert (found.rows, found.bad) == (3, 2)
    assert estimate(tmp_path, []).cost == (0, 0, 0)


def test_likeness_is_measured_among_distinct_prompts_of_one_scope(tmp_path: Path) -> None:
    def embed(texts: Any) -> Any:
        return np.array([[1.0, 0.0] if "near" in text else [0.0, 1.0] for text in texts], dtype=np.float32)

    found = estimate(tmp_path, [{"prompt": p} for p in ("near 1", "near 2", "far", "near 1")], embed)
    assert found.sampled == 3
    assert found.semantic_rate == pytest.approx(1 / 3)
    apart = [{"body": {"messages": [{"role": "system", "content": s}, {"role": "user", "content": f"near {s}"}]}} for s in "ab"]
    assert estimate(tmp_path, [*apart], embed).semantic_rate == 0


def test_the_expected_cost_of_auto_is_that_of_the_models_the_router_chooses(tmp_path: Path) -> None:
    easy: list[dict[str, Any] | bytes] = [{"prompt": f"hello {i}"} for i in range(9)]
    hard = "Analyze and compare two algorithms step by step, prove which one is better and implement it: ```def f(x): return x```"
    found = estimate(tmp_path, [*easy, {"prompt": hard}], model=None)
    assert sorted(found.routes.values()) == [1, 9]
    cheapest = max(found.routes, key=lambda name: found.routes[name])
    named = [estimate(tmp_path, easy, model=cheapest).cost[1], estimate(tmp_path, [{"prompt": hard}], model=min(
        found.routes, key=lambda name: found.routes[name])).cost[1]]  # fmt: skip
    assert found.cost[1] == sum(named)
    assert found.cost[0] < found.cost[1] < found.cost[2]


def test_behind_the_first_thousand_rows_some_are_routed_and_stand_for_the_others(tmp_path: Path) -> None:
    found = estimate(tmp_path, [{"prompt": f"hello {i:04}"} for i in range(1_500)], model=None)
    assert 1_000 < sum(found.routes.values()) < 1_100
    one = estimate(tmp_path, [{"prompt": "hello 0000"}], model=None)
    assert found.cost == tuple(1_500 * cost for cost in one.cost)

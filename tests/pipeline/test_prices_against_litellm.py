"""Our price table beside litellm's, for every model, tier, kind of token and length that either knows; each difference is explained."""

import json
from collections.abc import Callable, Iterator
from datetime import date
from decimal import Decimal
from pathlib import Path

from inference_engine.connectors.models_toml import load_catalogue
from inference_engine.pipeline.errors import Unpriced
from inference_engine.pipeline.models import Model
from inference_engine.pipeline.prices import Rate, rates

TABLE = json.loads((Path(__file__).parents[1] / "data" / "litellm_prices.json").read_text())["usd_per_token"]
CATALOGUE = load_catalogue()
DAY = date(2026, 11, 23)
TIERS = {"standard": "", "flex": "_flex", "batch": "_batches", "priority": "_priority"}
KINDS = {
    "input": ("input_cost_per_token", ""),
    "output": ("output_cost_per_token", ""),
    "cache_read": ("cache_read_input_token_cost", ""),
    "cache_write": ("cache_creation_input_token_cost", ""),
    "cache_write_1h": ("cache_creation_input_token_cost", "_above_1hr"),
    "cache_write_12h": ("cache_creation_input_token_cost", "_above_12hr"),
}
Where = tuple[str, str, str, int]
"""(model, tier, kind of token, its price begins above so many input tokens)"""

EXPLAINED: dict[str, Callable[[Where], bool]] = {
    "litellm lists no batch price of one-hour writes; a batch halves every price, and so does genai-prices": lambda where: (
        where[0].startswith("claude-") and where[1] == "batch" and where[2] == "cache_write_1h" and not _of_sonnet_4_5_beyond(where)
    ),
    "litellm has no long-context price of claude-sonnet-4-5; we keep the dearer figures of genai-prices, and models.toml "
    "allows it 200,000 tokens of context, so that they are never met": lambda where: _of_sonnet_4_5_beyond(where),
    "litellm lists no batch price of the oldest models; genai-prices has half of the plain price": lambda where: (
        where[0] in ("gpt-3.5-turbo", "gpt-4", "gpt-4-turbo") and where[1] == "batch"
    ),
}


def _of_sonnet_4_5_beyond(where: Where) -> bool:
    return where[0] == "claude-sonnet-4-5" and where[3] == 200_000


def _ours(model: Model, tier: str) -> Iterator[tuple[Where, int]]:
    try:
        found = rates(model, tier, DAY)
    except Unpriced:
        return
    for start, rate in ((0, found.base), *found.steps):
        for kind in Rate._fields:
            price = getattr(rate, kind)
            if price is not None:
                yield (model.name, tier, kind, start), price


def _theirs(model: Model, tier: str) -> Iterator[tuple[Where, int]]:
    prices = TABLE[model.name]
    for kind, (field, kept) in KINDS.items():
        for start in (0, 100_000, 200_000, 272_000):
            above = f"_above_{start // 1000}k_tokens" if start else ""
            text = prices.get(f"{field}{kept}{above}{TIERS[tier]}")
            if text is not None:
                yield (model.name, tier, kind, start), int(Decimal(text).scaleb(12))


def differences() -> dict[Where, tuple[int | None, int | None]]:
    found: dict[Where, tuple[int | None, int | None]] = {}
    for name in TABLE:
        for tier in TIERS:
            ours, theirs = dict(_ours(CATALOGUE.get(name), tier)), dict(_theirs(CATALOGUE.get(name), tier))
            for where in ours.keys() | theirs.keys():
                if ours.get(where) != theirs.get(where):
                    found[where] = ours.get(where), theirs.get(where)
    return found


def test_where_both_tables_name_a_price_they_agree_to_the_pico_dollar() -> None:
    assert {where: prices for where, prices in differences().items() if None not in prices} == {}


def test_every_price_that_only_one_table_names_is_explained() -> None:
    unexplained = {where: prices for where, prices in differences().items() if not any(why(where) for why in EXPLAINED.values())}
    assert unexplained == {}


def test_no_explanation_outlives_its_difference() -> None:
    for text, why in EXPLAINED.items():
        assert any(why(where) for where in differences()), text


def test_litellm_knows_every_model_of_the_catalogue_that_is_paid_for() -> None:
    assert {m.name for m in CATALOGUE.models if m.provider in ("openai", "anthropic")} == set(TABLE)


def test_the_shortest_prefixes_that_are_cached_are_those_that_litellm_names() -> None:
    for name, prices in TABLE.items():
        if "prompt_cache_min_tokens" in prices:
            assert CATALOGUE.get(name).prompt_cache_min_tokens == prices["prompt_cache_min_tokens"]


def test_the_catalogue_says_how_each_cache_is_asked_where_reads_have_a_price() -> None:
    """Writes that are charged for want marks; a cache without marks costs nothing to write."""
    for model in CATALOGUE.models:
        rate: Rate = rates(model, "standard", DAY).base
        marked = model.prompt_cache in ("breakpoints", "cache_control")
        assert marked == (rate.cache_write is not None)
        assert (model.prompt_cache == "none") == (rate.cache_read is None)

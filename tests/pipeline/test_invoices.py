"""Invoices worked out by hand: what each provider reports, what it costs, and the arithmetic, in `invoices/*.toml`."""

import re
import tomllib
from dataclasses import replace
from datetime import date
from decimal import Decimal
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from inference_engine.connectors.models_toml import load_catalogue
from inference_engine.connectors.providers.anthropic import read_reply
from inference_engine.connectors.providers.chat_form import read_completion
from inference_engine.connectors.providers.responses_usage import read_responses_usage
from inference_engine.pipeline.billing import billed_tier, cost, counterfactual, split_savings
from inference_engine.pipeline.errors import Unpriced
from inference_engine.pipeline.models import Model, Prices
from inference_engine.schemas.answers import Usage

FOLDER = Path(__file__).parent / "invoices"
CATALOGUE = load_catalogue()
TERM = re.compile(r"(\d+) x (\d+(?:\.\d+)?)")


def _cases(kind: str) -> list[Any]:
    found = []
    for path in sorted(FOLDER.glob("*.toml")):
        cases = tomllib.loads(path.read_text("utf-8"), parse_float=Decimal).get(kind, [])
        found += [pytest.param(path.stem, case, id=case["name"]) for case in cases]
    return found


def _model(case: dict[str, Any]) -> Model:
    if "prices" not in case:
        return CATALOGUE.get(case["model"])
    prices = Prices(**{name: Decimal(value) for name, value in case["prices"].items()})
    return replace(CATALOGUE.get("sim-standard"), name=case["model"], provider="vllm", provider_model=case["model"], prices=prices)


def _read(protocol: str, model: Model, case: dict[str, Any]) -> tuple[Usage, str]:
    """Usage and service tier, as our readers of each protocol take them from a reply."""
    usage, tier = case["usage"], case["service_tier"]
    if protocol == "messages":
        answer = {"content": [{"type": "text", "text": "x"}], "stop_reason": "end_turn", "model": model.provider_model}
        reply = read_reply(model, {}, {**answer, "usage": {**usage, "service_tier": tier}}, "id", 0)
        return reply.usage, reply.service_tier
    body = {"model": model.provider_model, "choices": [{"message": {"content": "x"}, "finish_reason": "stop"}], "usage": usage}
    if protocol == "responses":
        # The reply's own reader is another module's matter; its usage and its tiers are what is billed.
        reply = read_completion("openai", model.provider_model, {**body, "usage": {"prompt_tokens": 0, "completion_tokens": 0}}, "id", tier)
        return read_responses_usage("openai", usage), reply.service_tier
    reply = read_completion("openai", model.provider_model, body, "id", tier)
    return reply.usage, reply.service_tier


def _worked_out(case: dict[str, Any]) -> Decimal:
    """The sum of the text's products, in USD: a token at 1 USD per million is a micro-dollar."""
    terms = case["arithmetic"].split(" + ")
    pairs = [TERM.fullmatch(term) for term in terms]
    assert all(pairs), case["arithmetic"]
    products = [int(pair[1]) * Decimal(pair[2]) for pair in pairs if pair is not None]
    assert products == [Decimal(p) for p in case["products"].split(" + ")]
    assert sum(products) == Decimal(case["micro_usd"])
    return sum(products, Decimal(0)).scaleb(-6)


@pytest.mark.parametrize(("protocol", "case"), _cases("invoice"))
def test_the_computed_bill_is_the_one_worked_out_by_hand(protocol: str, case: dict[str, Any]) -> None:
    model = _model(case)
    usage, tier = _read(protocol, model, case)
    computed = cost(model, usage, tier=tier, batch=case.get("batch", False), day=case["day"])
    assert abs(computed - _worked_out(case)) == 0


@pytest.mark.parametrize(("protocol", "case"), _cases("refused"))
def test_what_nobody_knows_the_price_of_is_not_billed_by_a_guess(protocol: str, case: dict[str, Any]) -> None:
    model = _model(case)
    usage, tier = _read(protocol, model, case)
    with pytest.raises(Unpriced):
        cost(model, usage, tier=tier, batch=case.get("batch", False), day=case["day"])


def test_every_combination_that_is_sold_has_an_invoice() -> None:
    """Protocols x tiers x kinds of cached tokens x long context; what is missing must be refused instead."""
    names = {str(param.id) for kind in ("invoice", "refused") for param in _cases(kind)}
    kinds = {
        "chat": ["read", "30m write"],  # chat completions don't say when something was written for longer
        "responses": ["read", "30m write", "12h write"],
        "messages": ["read", "5m write", "1h write"],
    }
    wanted = {
        f"{protocol}, {tier}, {kind}{long}"
        for protocol in kinds
        for tier, kind, long in product(("standard", "flex", "batch"), kinds[protocol], ("", ", long context"))
        if (protocol, tier) != ("messages", "flex")
    }
    assert wanted - names == set()
    assert "messages, flex" in names


@pytest.mark.parametrize("protocol", ["chat", "responses", "messages"])
def test_each_invoice_splits_into_causes_that_add_up(protocol: str) -> None:
    for param in _cases("invoice"):
        name, case = param.values
        if name == protocol and "prices" not in case:
            assert isinstance(case, dict)
            model = _model(case)
            usage, tier = _read(protocol, model, case)
            day: date = case["day"]
            tier = billed_tier(tier, batch=case.get("batch", False))
            split = split_savings(model, model, usage, tier, day)
            assert split.prefix + split.batch == split.saved == counterfactual(model, usage, day) - split.paid

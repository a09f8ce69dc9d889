"""Invoices worked out by hand, and the laws that every bill keeps."""

from dataclasses import replace
from datetime import date
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference_engine.connectors.models_toml import load_catalogue
from inference_engine.pipeline.billing import bill, cap, counterfactual, day_of, requested_tier, split_savings, unpriced
from inference_engine.pipeline.errors import Rejected, Unpriced
from inference_engine.pipeline.models import Model, Prices
from inference_engine.pipeline.prices import rates
from inference_engine.schemas.answers import Usage
from inference_engine.schemas.record import JsonObject

CATALOGUE = load_catalogue()
DAY = date(2026, 11, 23)
SIM = CATALOGUE.get("sim-premium")


def usage(plain: int, output: int, read: int = 0, write: int = 0, write_1h: int = 0, write_12h: int = 0) -> Usage:
    """`plain` input tokens besides the cached ones."""
    return Usage(
        input_tokens=plain + read + write + write_1h + write_12h,
        output_tokens=output,
        cache_read_tokens=read,
        cache_write_tokens=write,
        cache_write_1h_tokens=write_1h,
        cache_write_12h_tokens=write_12h,
    )


# --- invoices by hand: USD per million tokens times tokens, so 1 USD/M x 1 token = 1,000,000 pico-dollars ---------------

INVOICES = [
    # gpt-6-luna, plain: 300 x $0.10 + 2,000 read x $0.01 + 200 out x $0.50 = 30 + 20 + 100 = 150 (x 10^-6 USD)
    ("gpt-6-luna", "standard", usage(300, 200, read=2_000), 150_000_000),
    # the same, flex: half of every price: 300 x $0.05 + 2,000 x $0.005 + 200 x $0.25 = 15 + 10 + 50 = 75
    ("gpt-6-luna", "flex", usage(300, 200, read=2_000), 75_000_000),
    # priority: twice: 300 x $0.20 + 2,000 x $0.02 + 200 x $1.00 = 60 + 40 + 200 = 300
    ("gpt-6-luna", "priority", usage(300, 200, read=2_000), 300_000_000),
    # batch, with the prefix written: 300 x $0.05 + 2,000 x $0.0625 + 200 x $0.25 = 15 + 125 + 50 = 190
    ("gpt-6-luna", "batch", usage(300, 200, write=2_000), 190_000_000),
    # gpt-6.1-sol reads at 5 % of the input price, not 10: 300 x $2 + 2,000 x $0.10 + 200 x $10 = 600 + 200 + 2,000 = 2,800
    ("gpt-6.1-sol", "standard", usage(300, 200, read=2_000), 2_800_000_000),
    # up to 272,000 input tokens: 272,000 x $1 + 1,000 x $5 = 272,000 + 5,000 = 277,000
    ("gpt-6.1-terra", "standard", usage(272_000, 1_000), 277_000_000_000),
    # one more reprices all of them: 272,001 x $2 + 1,000 x $7.50 = 544,002 + 7,500 = 551,502
    ("gpt-6.1-terra", "standard", usage(272_001, 1_000), 551_502_000_000),
    # cached tokens count for the threshold: 72,001 x $2 + 200,000 x $0.10 + 1,000 x $7.50 = 144,002 + 20,000 + 7,500
    ("gpt-6.1-terra", "standard", usage(72_001, 1_000, read=200_000), 171_502_000_000),
    # gpt-4: 1,000 x $30 + 500 x $60 = 30,000 + 30,000; in a batch half
    ("gpt-4", "standard", usage(1_000, 500), 60_000_000_000),
    ("gpt-4", "batch", usage(1_000, 500), 30_000_000_000),
    # claude-sonnet-5-5: 300 x $2 + 2,000 written for 5 min x $2.50 + 200 x $10 = 600 + 5,000 + 2,000 = 7,600
    ("claude-sonnet-5-5", "standard", usage(300, 200, write=2_000), 7_600_000_000),
    # written for one hour x $4: 600 + 8,000 + 2,000 = 10,600
    ("claude-sonnet-5-5", "standard", usage(300, 200, write_1h=2_000), 10_600_000_000),
    # read x $0.10 (5 %): 600 + 200 + 2,000 = 2,800; in a batch 300 x $1 + 2,000 x $0.05 + 200 x $5 = 300 + 100 + 1,000
    ("claude-sonnet-5-5", "standard", usage(300, 200, read=2_000), 2_800_000_000),
    ("claude-sonnet-5-5", "batch", usage(300, 200, read=2_000), 1_400_000_000),
    # read, written for 5 min and for 1 h in one call: 100 x $1 + 50 x $0.10 + 40 x $1.25 + 30 x $2 + 10 x $5 = 100 + 5 + 50 + 60 + 50
    ("claude-haiku-4-5", "standard", usage(100, 10, read=50, write=40, write_1h=30), 265_000_000),
    # claude-haiku-5-5 above 100,000: 100,001 x $0.50 + 10 x $2.50 = 50,000.5 + 25 = 50,025.5
    ("claude-haiku-5-5", "standard", usage(100_001, 10), 50_025_500_000),
    # sim-premium, flex at half: (100 x $10 + 10 x $50) / 2 = (1,000 + 500) / 2 = 750
    ("sim-premium", "flex", usage(100, 10), 750_000_000),
]


@pytest.mark.parametrize(("name", "tier", "used", "pico"), INVOICES)
def test_invoice_worked_out_by_hand(name: str, tier: str, used: Usage, pico: int) -> None:
    assert bill(CATALOGUE.get(name), used, tier, DAY) == pico


def test_the_price_is_that_of_the_day() -> None:
    """gpt-5.6-luna cost $1 and $6 until 2026-07-29, and $0.20 and $1.20 from the next day."""
    model = Model("gpt-5.6-luna", "openai", "gpt-5.6-luna", "economy", 1_050_000, 128_000)
    used = usage(1_000, 100)
    assert bill(model, used, "standard", date(2026, 7, 29)) == 1_600_000_000  # 1,000 x $1 + 100 x $6
    assert bill(model, used, "standard", date(2026, 7, 30)) == 320_000_000  # 1,000 x $0.20 + 100 x $1.20


def test_day_of_is_the_utc_day() -> None:
    assert day_of(0) == date(1970, 1, 1)
    assert day_of(1_795_391_999_999) == date(2026, 11, 22)
    assert day_of(1_795_392_000_000) == date(2026, 11, 23)


# --- never a guess -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "tier", "used"),
    [
        ("gpt-6-luna", "scale", usage(1, 1)),  # a tier that nobody knows
        ("gpt-6-luna", "speed=fast", usage(1, 1)),
        ("gpt-4", "flex", usage(1, 1)),  # not sold; the package would answer with the standard price
        ("claude-sonnet-5-5", "flex", usage(1, 1)),
        ("claude-opus-5-5", "inference_geo=us", usage(1, 1)),
        ("gpt-4", "standard", usage(1, 1, read=1)),  # no price of reads
        ("gpt-4o", "standard", usage(1, 1, write=1)),  # nor of writes
        ("gpt-6-luna", "standard", usage(1, 1, write_1h=1)),  # nor of one-hour writes
        ("claude-opus-5-5", "standard", usage(1, 1, write_12h=1)),  # nor of writes for 12 hours
        ("gpt-4.1", "batch", usage(1, 1, read=1)),  # a batch price, but none of reads within a batch
        ("sim-premium", "priority", usage(1, 1)),
    ],
)
def test_what_has_no_price_is_an_error(name: str, tier: str, used: Usage) -> None:
    with pytest.raises(Unpriced):
        bill(CATALOGUE.get(name), used, tier, DAY)


def test_a_tier_has_no_price_before_its_first_day() -> None:
    with pytest.raises(Unpriced, match="batch"):
        bill(CATALOGUE.get("gpt-6-luna"), usage(1, 1), "batch", date(2026, 10, 13))


def test_an_unknown_model_has_no_price() -> None:
    with pytest.raises(Unpriced, match=r"gpt-9"):
        bill(replace(CATALOGUE.get("gpt-6-luna"), provider_model="gpt-9"), usage(1, 1), "standard", DAY)


@pytest.mark.parametrize("used", [Usage(input_tokens=1, output_tokens=1, cache_read_tokens=2), Usage(input_tokens=1, output_tokens=-1)])
def test_counts_that_cannot_be_are_an_error(used: Usage) -> None:
    with pytest.raises(Unpriced, match="can't be"):
        bill(SIM, used, "standard", DAY)


def test_every_built_in_model_has_a_price_today() -> None:
    assert unpriced(CATALOGUE, DAY) == {}


def test_standing_in_keeps_the_real_price() -> None:
    """With no key set, real names are served by the simulated provider and cost what they cost."""
    stand_in = CATALOGUE.for_providers(["simulated"]).get("gpt-6-luna")
    assert stand_in.provider == "simulated"
    assert bill(stand_in, usage(300, 200), "standard", DAY) == bill(CATALOGUE.get("gpt-6-luna"), usage(300, 200), "standard", DAY)


def test_prices_that_are_not_whole_pico_dollars_are_refused() -> None:
    odd = replace(SIM, prices=Prices(Decimal("0.0000001"), Decimal(1)))
    with pytest.raises(Unpriced, match="exactly"):
        bill(odd, usage(1, 1), "standard", DAY)


# --- laws ----------------------------------------------------------------------------------------------------------------

PRICED = [m for m in CATALOGUE.models if rates(m, "standard", DAY).base.cache_write_1h is not None]
models = st.sampled_from(PRICED)
counts = st.integers(0, 400_000)
usages = st.builds(usage, counts, counts, counts, counts, counts)


@given(models, usages, st.sampled_from(["plain", "output", "read", "write", "write_1h"]), st.integers(1, 1_000))
def test_more_tokens_never_cost_less(model: Model, used: Usage, kind: str, more: int) -> None:
    parts = {
        "plain": used.input_tokens - used.cache_read_tokens - used.cache_write_tokens - used.cache_write_1h_tokens,
        "output": used.output_tokens,
        "read": used.cache_read_tokens,
        "write": used.cache_write_tokens,
        "write_1h": used.cache_write_1h_tokens,
    }
    parts[kind] += more
    assert bill(model, usage(**parts), "standard", DAY) >= bill(model, used, "standard", DAY)


LAWFUL = [CATALOGUE.get(name) for name in ("gpt-6-luna", "gpt-6.1-sol", "sim-premium")]


@given(st.sampled_from(LAWFUL), st.sampled_from(["standard", "flex", "batch"]), st.lists(st.integers(0, 20_000), min_size=10, max_size=10))
def test_the_bill_of_two_calls_is_the_bill_of_their_tokens(model: Model, tier: str, counts: list[int]) -> None:
    """Additive as long as no call is long enough to be repriced: all kinds of tokens, all tiers."""
    one, two = counts[:5], counts[5:]
    both = [a + b for a, b in zip(one, two, strict=True)]

    def billed(c: list[int]) -> int:
        return bill(model, usage(c[0], c[1], read=c[2], write=c[3], write_12h=c[4]), tier, DAY)

    assert billed(one) + billed(two) == billed(both)


@given(st.sampled_from(LAWFUL), usages, st.integers(0, 1_000))
def test_reading_costs_least_and_writing_for_longer_costs_most(model: Model, used: Usage, more: int) -> None:
    """The same tokens by what the cache did with them."""
    kinds = ({"read": more}, {"plain": more}, {"write": more}, {"write_12h": more})
    bills = [bill(model, usage(**{"plain": 0, "output": used.output_tokens, **kind}), "standard", DAY) for kind in kinds]
    assert bills == sorted(bills)


@given(models, models, usages, st.sampled_from(["standard", "batch"]), st.sampled_from(["none", "exact", "semantic", "coalesced"]))
def test_each_saved_pico_dollar_has_one_cause(requested: Model, used: Model, tokens: Usage, tier: str, found: str) -> None:
    split = split_savings(requested, used, tokens, tier, DAY, found)  # type: ignore[arg-type]
    parts = (split.exact, split.semantic, split.coalescing, split.routing, split.prefix, split.batch)
    assert sum(parts) == split.saved == split.counterfactual - split.paid
    assert split.counterfactual == counterfactual(requested, tokens, DAY)
    if found != "none":
        assert split.paid == 0
        assert sorted(parts)[-1] == split.counterfactual


@given(usages)
def test_a_plain_call_of_the_requested_model_saves_nothing(tokens: Usage) -> None:
    plain = Usage(input_tokens=tokens.input_tokens, output_tokens=tokens.output_tokens)
    split = split_savings(SIM, SIM, plain, "standard", DAY)
    assert (split.saved, split.routing, split.prefix, split.batch) == (0, 0, 0, 0)


def test_savings_by_hand() -> None:
    """gpt-6-astra asked, gpt-6-luna used in a batch with 2,000 of 2,300 tokens read from the cache, 200 out.

    Asked: 2,300 x $10 + 200 x $50 = 33,000. Luna plain: 2,300 x $0.10 + 200 x $0.50 = 330. Luna cached: 150 (see above).
    Paid, in a batch: half of that, 75. So routing 32,670, prefix 180, batch 75.
    """
    split = split_savings(CATALOGUE.get("gpt-6-astra"), CATALOGUE.get("gpt-6-luna"), usage(300, 200, read=2_000), "batch", DAY)
    assert (split.counterfactual, split.paid) == (33_000_000_000, 75_000_000)
    assert (split.routing, split.prefix, split.batch) == (32_670_000_000, 180_000_000, 75_000_000)


def test_a_write_that_is_not_read_is_a_negative_saving() -> None:
    """2,000 tokens written at 1.25 x $1 cost 500 more than plain: shown, not hidden."""
    split = split_savings(CATALOGUE.get("sim-standard"), CATALOGUE.get("sim-standard"), usage(0, 0, write=2_000), "standard", DAY)
    assert split.prefix == split.saved == -500_000_000


# --- the most that a call can cost ------------------------------------------------------------------------------------


def body(text: str, **more: object) -> JsonObject:
    return {"messages": [{"role": "user", "content": text}], **more}


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=300)


@given(models, texts, st.integers(1, 5_000), st.integers(1, 4), st.data())
def test_no_billable_usage_of_a_body_exceeds_its_cap(model: Model, text: str, limit: int, choices: int, data: st.DataObject) -> None:
    """However the provider tokenises and caches it: at most a token a byte, at most max_tokens per choice."""
    asked = body(text, max_tokens=limit, n=choices)
    most = len(text.encode()) + 16
    read = data.draw(st.integers(0, most))
    write = data.draw(st.integers(0, most - read))
    used = usage(most - read - write, data.draw(st.integers(0, limit * choices)), read=read, write=write)
    for tier in ("standard", "batch"):
        assert bill(model, used, tier, DAY) <= cap(model, asked, DAY, tier)


@given(texts, texts)
def test_a_longer_body_never_has_a_lower_cap(text: str, more: str) -> None:
    assert cap(SIM, body(text + more, max_tokens=9), DAY) >= cap(SIM, body(text, max_tokens=9), DAY)


def test_cap_by_hand() -> None:
    """61 bytes of JSON, plus 16 for each message and 16 around them, at the price of writes."""
    asked = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 10}
    size = len(b'{"messages":[{"role":"user","content":"hi"}],"max_tokens":10}')
    assert size == 61
    assert cap(SIM, asked, DAY) == (61 + 32) * 12_500_000 + 10 * 50_000_000


def test_without_a_limit_the_models_maximum_bounds_the_output() -> None:
    assert cap(SIM, body("hi"), DAY) >= SIM.max_output_tokens * 50_000_000


def test_one_hour_writes_count_only_where_the_body_asks_for_them() -> None:
    marked = {
        "messages": [{"role": "user", "content": [{"type": "text", "text": "x", "cache_control": {"type": "ephemeral", "ttl": "1h"}}]}]
    }
    size = len(str(marked).replace(" ", "")) + 32
    assert cap(SIM, {**marked, "max_tokens": 1}, DAY) >= (size + len(',"max_tokens":1')) * 20_000_000


def test_flex_may_be_served_as_standard_so_its_cap_is() -> None:
    assert cap(SIM, body("hi", service_tier="flex"), DAY) >= cap(SIM, body("hi"), DAY)


def test_a_tier_is_read_from_the_body() -> None:
    assert [requested_tier({"service_tier": t}) for t in (None, "auto", "default", "flex", "fast")] == [
        "standard",
        "standard",
        "standard",
        "flex",
        "priority",
    ]
    with pytest.raises(Unpriced, match="scale"):
        requested_tier({"service_tier": "scale"})


def test_an_image_counts_by_the_models_rule_and_not_by_its_bytes() -> None:
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 1_000_000}}
    model = CATALOGUE.get("claude-sonnet-5-5")
    asked = {"messages": [{"role": "user", "content": [{"type": "text", "text": "what?"}, picture]}], "max_tokens": 1}
    assert 5_000 * 4_000_000 < cap(model, asked, DAY) < 6_000 * 4_000_000  # at the price of one-hour writes, which the engine may ask for
    with pytest.raises(Unpriced, match="image"):
        cap(CATALOGUE.get("gpt-6-luna"), asked, DAY)


@pytest.mark.parametrize(
    "asked",
    [
        body("hi", modalities=["text", "audio"]),
        body("hi", web_search_options={"search_context_size": "low"}),
        body("hi", tools=[{"type": "web_search"}]),
        body("hi", prompt_cache_options={"ttl": "12h"}),
        body("hi", messages=[{"role": "user", "content": [{"type": "text", "text": "x", "prompt_cache_breakpoint": {"ttl": "12h"}}]}]),
        {"messages": [{"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}]},
    ],
)
def test_what_cannot_be_bounded_is_refused_before_it_is_sent(asked: JsonObject) -> None:
    with pytest.raises(Unpriced):
        cap(SIM, asked, DAY)


def test_a_body_that_is_not_json_is_rejected() -> None:
    with pytest.raises(Rejected):
        cap(SIM, body("\ud800"), DAY)

"""What a token costs: one table of integer pico-dollars per token for a model, a service tier and a day.

The figures are those of the package `genai-prices`, or given in `models.toml`. That package answers an unknown tier or an
unpriced kind of token with the standard price; here both are `Unpriced`, because a guess would be a wrong invoice.

A price of USD per million tokens with up to six decimals is a whole number of pico-dollars per token, so all sums are exact.
"""

from dataclasses import dataclass
from datetime import UTC, date, datetime, time
from decimal import Decimal
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from .errors import Unpriced
from .models import Model, Prices, ProviderName

if TYPE_CHECKING:
    from genai_prices.types import ModelInfo, ModelPrice, PriceVariant

ServiceTier = Literal["standard", "flex", "batch", "priority"]

_CONTEXTS: dict[str, dict[str, str]] = {
    "flex": {"service_tier": "flex"},
    "priority": {"service_tier": "priority"},
    "batch": {"processing": "batch"},
}
_KEYS = ("input_mtok", "output_mtok", "cache_read_mtok", "cache_write_mtok", "cache_write_1h_mtok")
_OWN_KEY = "cache_write_12h_mtok"
"""Not in the package: given in `models.toml`."""


class Rate(NamedTuple):
    """Pico-dollars per token; None where this kind of token has no known price."""

    input: int
    output: int
    cache_read: int | None
    cache_write: int | None
    cache_write_1h: int | None
    cache_write_12h: int | None = None


@dataclass(frozen=True, slots=True)
class Rates:
    """The rate by the number of input tokens of a call: a long prompt reprices all of its tokens."""

    base: Rate
    steps: tuple[tuple[int, Rate], ...] = ()
    """(start, rate), longest first: it applies where input tokens > start."""

    def at(self, input_tokens: int) -> Rate:
        for start, rate in self.steps:
            if input_tokens > start:
                return rate
        return self.base


def day_of(epoch_ms: int) -> date:
    """The UTC day of a moment: the day a call is sent is the day it is billed by."""
    return date.fromordinal(719_163 + epoch_ms // 86_400_000)


def rates(model: Model, tier: str, day: date) -> Rates:
    """Prices of a model. Raises `Unpriced` where the model, the tier or the day has none."""
    found = _rates(model.priced_as, model.provider_model, model.prices, tier, day)
    factor = model.cache_write_12h_factor
    return found if factor is None else _with_12h(found, factor, model.name)


def embedding_rate(name: str, day: date) -> int:
    """Pico-dollars per token of an embedding model of OpenAI. Raises `Unpriced`."""
    price: Any = _find("openai", name).get_prices(datetime.combine(day, time(), UTC)).input_mtok
    pico = _pico(getattr(price, "base", price), name)
    if pico is None:
        raise Unpriced(f"the embedding model {name!r} has no price per token")
    return pico


@lru_cache(maxsize=4096)
def _with_12h(found: Rates, factor: Decimal, name: str) -> Rates:
    def priced(rate: Rate) -> Rate:
        price = rate.input * factor
        if price != int(price) or price < 0:
            raise Unpriced(
                f"cache_write_12h_factor = {factor} of {name!r} gives no whole number of pico-dollars a token; correct models.toml"
            )
        return rate._replace(cache_write_12h=int(price))

    return Rates(priced(found.base), tuple((start, priced(rate)) for start, rate in found.steps))


@lru_cache(maxsize=4096)
def _rates(provider: ProviderName, name: str, given: Prices | None, tier: str, day: date) -> Rates:
    if given is not None:
        return _given(given, tier, name)
    if tier != "standard" and tier not in _CONTEXTS:
        raise Unpriced(f"service tier {tier!r} of {provider} is not known, so a call of {name!r} there has no price; nothing more is paid")
    info = _find(provider, name)
    return _from_columns(_columns(info, provider, tier, day), f"{name} ({tier})")


def _given(prices: Prices, tier: str, name: str) -> Rates:
    factors = {"standard": Decimal(1), "batch": prices.batch_factor, "flex": prices.flex_factor, "priority": prices.priority_factor}
    factor = factors.get(tier)
    if factor is None:
        raise Unpriced(f"the prices given for {name!r} have no {tier!r} tier; add {tier}_factor to its prices in models.toml")
    fields = (prices.input, prices.output, prices.cache_read, prices.cache_write, prices.cache_write_1h, prices.cache_write_12h)
    values = [None if p is None else p * factor for p in fields]
    return _from_columns(dict(zip((*_KEYS, _OWN_KEY), values, strict=True)), name)


@lru_cache(maxsize=1024)
def _find(provider: ProviderName, name: str) -> "ModelInfo":
    # Imported here: the table takes half a second to load, and commands that price nothing need not wait for it.
    from genai_prices.data_snapshot import get_snapshot

    entry = next((p for p in get_snapshot().providers if p.id == provider), None)
    info = entry.find_model(name) if entry is not None else None
    if info is None:
        raise Unpriced(
            f"no price is known for model {name!r} of {provider}, so it is not called; give its prices in models.toml "
            f"or update the package genai-prices"
        )
    return info


def _columns(info: "ModelInfo", provider: ProviderName, tier: str, day: date) -> dict[str, Any]:
    moment = datetime.combine(day, time(), UTC)
    standard = info.get_prices(moment)
    if tier == "standard":
        return {key: getattr(standard, key) for key in _KEYS}
    active = [v for v in info.price_variants or () if v.when == _CONTEXTS[tier] and _active(v, moment)]
    if not active:
        raise Unpriced(f"model {info.id!r} of {provider} has no {tier} price on {day}; send it plain, or give its prices in models.toml")
    return _overlaid(standard, active)


def _overlaid(standard: "ModelPrice", active: "list[PriceVariant]") -> dict[str, Any]:
    """A tier's own prices; the standard ones only where the tier is listed without any figure (it costs the same)."""
    own: dict[str, Any] = {}
    for variant in active:
        for key, price in variant.prices.__dict__.items():
            if price is not None:
                own.setdefault(key, price)
    if not any(key in own for key in _KEYS):
        return {key: getattr(standard, key) for key in _KEYS}
    return {key: own.get(key) for key in _KEYS}


def _active(variant: "PriceVariant", moment: datetime) -> bool:
    return variant.constraint is None or variant.constraint.active(moment)


def _from_columns(columns: dict[str, Any], what: str) -> Rates:
    starts = sorted({t.start for c in columns.values() for t in getattr(c, "tiers", ())}, reverse=True)
    steps = tuple((start, _rate({k: _above(c, start) for k, c in columns.items()}, what)) for start in starts)
    return Rates(_rate({k: getattr(c, "base", c) for k, c in columns.items()}, what), steps)


def _above(column: Any, start: int) -> Decimal | None:
    price: Decimal | None = getattr(column, "base", column)
    for tier in getattr(column, "tiers", ()):
        if tier.start <= start:
            price = tier.price
    return price


def _rate(prices: dict[str, Decimal | None], what: str) -> Rate:
    values = [_pico(prices.get(key), what) for key in (*_KEYS, _OWN_KEY)]
    if values[0] is None or values[1] is None:
        raise Unpriced(f"{what} has no price per input and output token, so it is not called; give its prices in models.toml")
    return Rate(values[0], values[1], *values[2:])


def _pico(per_million: Decimal | None, what: str) -> int | None:
    if per_million is None:
        return None
    pico = per_million.scaleb(6)
    if pico != int(pico) or pico < 0:
        raise Unpriced(
            f"the price {per_million} of {what} can't be billed exactly; write USD per million tokens, not negative, 6 decimals at most"
        )
    return int(pico)

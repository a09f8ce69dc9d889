"""What a call cost, what it can cost at most, and which part of the engine saved what. Pure, in integer pico-dollars.

The day of a call is the UTC day on which it was sent; its cap and its bill are both made for that day.
"""

import unicodedata
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from typing import Any, Literal

import orjson

from ..schemas.answers import Usage
from ..schemas.record import JsonObject
from .errors import Rejected, Unpriced
from .models import Catalogue, Model
from .prices import Rate, ServiceTier, day_of, rates

__all__ = [
    "SavingsSplit", "ServiceTier", "bill", "billed_tier", "cap", "cost", "counterfactual", "day_of", "requested_tier", "split_savings",
    "unpriced",
]  # fmt: skip

MESSAGE_TOKENS = 16
"""More than any provider adds around one message."""
TOOLS_TOKENS = 2048
"""More than any provider's system prompt for tools."""

_REQUESTED: dict[Any, ServiceTier] = {
    None: "standard",
    "auto": "standard",
    "default": "standard",
    "standard_only": "standard",
    "flex": "flex",
    "priority": "priority",
    "fast": "priority",
}


def bill(model: Model, usage: Usage, tier: str, day: date) -> int:
    """What the call cost, in pico-dollars. `usage.input_tokens` includes cache reads and writes.

    Raises `Unpriced` for a model, tier or kind of token without a known price, and for counts that can't be.
    """
    read, write = usage.cache_read_tokens, usage.cache_write_tokens
    write_1h, write_12h = usage.cache_write_1h_tokens, usage.cache_write_12h_tokens
    plain = usage.input_tokens - read - write - write_1h - write_12h
    if min(plain, usage.output_tokens, read, write, write_1h, write_12h) < 0:
        raise Unpriced(f"the usage {usage!r} of a call of {model.name!r} can't be: cached tokens are part of the input tokens")
    rate = rates(model, tier, day).at(usage.input_tokens)
    total = plain * rate.input + usage.output_tokens * rate.output
    if read:
        total += read * _known(rate.cache_read, "cache reads", model, tier)
    if write:
        total += write * _known(rate.cache_write, "cache writes", model, tier)
    if write_1h:
        total += write_1h * _known(rate.cache_write_1h, "one-hour cache writes", model, tier)
    if write_12h:
        total += write_12h * _known(rate.cache_write_12h, "12-hour cache writes", model, tier)
    return total


def billed_tier(service_tier: str, *, batch: bool) -> str:
    """The price table of a call: lines of a provider's batch report the standard tier, and cost what a batch costs.

    Raises `Unpriced` for a batch line of another tier: nobody sells that, so nobody here knows its price.
    """
    if not batch:
        return service_tier
    if service_tier not in ("standard", "batch"):
        raise Unpriced(f"a batch line was served at the tier {service_tier!r}, which has no known price; nothing more is paid")
    return "batch"


def cost(model: Model, usage: Usage, *, tier: str = "standard", batch: bool = False, day: date) -> Decimal:
    """What a call cost in USD, exactly: `tier` is what the response says, `batch` what we remember of how it was sent.

    Provider and price table are the model's. Raises `Unpriced`, see `bill`.
    """
    return Decimal(bill(model, usage, billed_tier(tier, batch=batch), day)).scaleb(-12)


def _known(price: int | None, what: str, model: Model, tier: str) -> int:
    if price is None:
        raise Unpriced(f"{what} of {model.name!r} have no known {tier} price, so the call can't be billed; give its prices in models.toml")
    return price


def counterfactual(requested: Model, usage: Usage, day: date) -> int:
    """What the same tokens cost on the requested model, alone: sync, standard tier, nothing cached. Raises `Unpriced`."""
    rate = rates(requested, "standard", day).at(usage.input_tokens)
    return usage.input_tokens * rate.input + usage.output_tokens * rate.output


def unpriced(catalogue: Catalogue, day: date) -> dict[str, str]:
    """Enabled models without a price on that day, and why: to be shown before anything is sent."""
    found: dict[str, str] = {}
    for model in catalogue.models:
        if model.enabled:
            try:
                rates(model, "standard", day)
            except Unpriced as error:
                found[model.name] = str(error)
    return found


# --- the most that a call can cost -----------------------------------------------------------------------------------


def requested_tier(body: JsonObject) -> ServiceTier:
    """The service tier that a body asks for. Raises `Unpriced` for one that has no price table."""
    asked = body.get("service_tier")
    tier = _REQUESTED.get(asked) if asked is None or isinstance(asked, str) else None
    if tier is None:
        raise Unpriced(f"service_tier {asked!r} has no known price; use default, flex or priority")
    return tier


def cap(model: Model, body: JsonObject, day: date, tier: ServiceTier | None = None) -> int:
    """The most that one call of `body` (an OpenAI chat completion request) can cost, in pico-dollars.

    A token is at least one byte of text, so the bytes of the JSON body bound its input tokens; images count by
    `model.image_tokens`; `max_completion_tokens`, `max_tokens` or the model's maximum bounds each of `n` outputs.
    Raises `Unpriced` where the body asks for something that is billed and can't be bounded, `Rejected` where it isn't JSON.
    """
    _refuse_unbounded(body)
    raw = _dump(body)
    if b'"ttl":"12h"' in raw:
        raise Unpriced("a chat completion does not say how long its cache writes are kept, so 12h can't be billed; use 30m")
    input_tokens = _input_bound(model, body, raw)
    output_tokens = output_bound(model, body)
    asked = tier or requested_tier(body)
    # The engine itself may ask for an hour where the model's cache offers it.
    hour = b'"1h"' in raw or model.prompt_cache == "cache_control"
    # A synchronous call may be served, and billed, at the standard tier in place of the requested one.
    tiers = {asked} if asked == "batch" else {asked, "standard"}
    return max(_at_most(rates(model, t, day).at(input_tokens), input_tokens, output_tokens, hour) for t in tiers)


def _at_most(rate: Rate, input_tokens: int, output_tokens: int, hour: bool) -> int:
    per_input = max(rate.input, rate.cache_read or 0, rate.cache_write or 0, (rate.cache_write_1h or 0) if hour else 0)
    return input_tokens * per_input + output_tokens * rate.output


def input_bound(model: Model, body: JsonObject) -> int:
    """No provider counts more input tokens than this for `body`. Raises `Unpriced` for content that can't be bounded."""
    return _input_bound(model, body, _dump(body))


def _input_bound(model: Model, body: JsonObject, raw: bytes) -> int:
    size = len(raw)
    if model.priced_as == "anthropic" and not raw.isascii():
        # Compatibility forms may be unfolded before counting, and some grow.
        size = max(size, len(unicodedata.normalize("NFKC", raw.decode()).encode()))
    messages = body.get("messages") or ()
    size += MESSAGE_TOKENS * (len(messages) + 1)
    tools = body.get("tools") or body.get("functions")
    if tools:
        # Providers render the schemas in their own notation: allow twice the bytes.
        size += TOOLS_TOKENS + 2 * len(_dump(tools))
    if body.get("response_format"):
        size += TOOLS_TOKENS + 2 * len(_dump(body["response_format"]))
    return size + sum(_parts_bound(model, message) for message in messages)


def _parts_bound(model: Model, message: Any) -> int:
    content = message.get("content") if isinstance(message, dict) else None
    if not isinstance(content, list):
        return 0
    extra = 0
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind in ("text", "refusal"):
            continue
        if kind != "image_url":
            raise Unpriced(f"content of type {kind!r} has no bound on its cost; only text and images can be sent")
        if model.image_tokens is None:
            raise Unpriced(
                f"the most that an image costs on {model.name!r} is not known; set its image_tokens in models.toml, or leave images out"
            )
        extra += model.image_tokens - _image_bytes(part)
    return extra


def _image_bytes(part: dict[str, Any]) -> int:
    """Bytes of the body that are the picture itself: those are not text."""
    image = part.get("image_url")
    url = image.get("url") if isinstance(image, dict) else image
    return len(url.encode()) if isinstance(url, str) and url.startswith("data:") else 0


def output_bound(model: Model, body: JsonObject) -> int:
    """No provider counts more output tokens than this for `body`: all `n` choices together."""
    limits = [v for v in (body.get("max_completion_tokens"), body.get("max_tokens")) if isinstance(v, int) and not isinstance(v, bool)]
    each = max(limits) if limits else model.max_output_tokens
    choices = body.get("n")
    total = each * (choices if isinstance(choices, int) and choices > 1 else 1)
    if body.get("prediction"):
        # Rejected parts of a prediction are billed as output.
        total += len(_dump(body["prediction"]))
    return total


def _refuse_unbounded(body: JsonObject) -> None:
    modalities = body.get("modalities")
    if (modalities and modalities != ["text"]) or body.get("audio"):
        raise Unpriced("audio output has no bound on its cost here; ask for text")
    for name in ("web_search_options", "moderation", "plugins"):
        if body.get(name):
            raise Unpriced(f"{name!r} is billed apart from tokens and has no known price here; leave it out")
    for tool in body.get("tools") or ():
        if not isinstance(tool, dict) or tool.get("type") not in ("function", "custom"):
            raise Unpriced("tools that the provider runs itself are billed apart from tokens; only functions of your own can be sent")
    options = body.get("prompt_cache_options")
    ttl = options.get("ttl") if isinstance(options, dict) else None
    if ttl not in (None, "30m"):
        raise Unpriced(f"cache writes kept for {ttl!r} have no known price; use 30m")


def _dump(value: Any) -> bytes:
    try:
        return orjson.dumps(value)
    except orjson.JSONEncodeError as error:
        raise Rejected(f"the body can't be written as JSON ({error}), so it can't be sent; correct it and ask again") from None


# --- who saved what --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SavingsSplit:
    """Pico-dollars: counterfactual - paid, by cause. A part is negative where a choice cost more than it saved."""

    counterfactual: int
    paid: int
    exact: int = 0
    semantic: int = 0
    coalescing: int = 0
    routing: int = 0
    prefix: int = 0
    batch: int = 0

    @property
    def saved(self) -> int:
        return self.counterfactual - self.paid


def split_savings(
    requested: Model,
    used: Model,
    usage: Usage,
    tier: str,
    day: date,
    found: Literal["none", "exact", "semantic", "coalesced"] = "none",
) -> SavingsSplit:
    """Credits each saved pico-dollar to one cause, in the order of the flow; the parts sum to `saved` exactly.

    A hit (`found`) pays nothing and is credited with the whole counterfactual of the source call's usage. A call is
    credited to routing (requested to used model, both plain), then prefix (uncached to cached), then batch (the tier).
    Raises `Unpriced`.
    """
    return split_paid(requested, used, usage, bill(used, usage, tier, day), day, found)


def split_paid(
    requested: Model,
    used: Model,
    usage: Usage,
    paid: int,
    day: date,
    found: Literal["none", "exact", "semantic", "coalesced"] = "none",
) -> SavingsSplit:
    """`split_savings` for a call whose bill is known: `paid` pico-dollars."""
    whole = counterfactual(requested, usage, day)
    if found == "exact":
        return SavingsSplit(whole, 0, exact=whole)
    if found == "semantic":
        return SavingsSplit(whole, 0, semantic=whole)
    if found == "coalesced":
        return SavingsSplit(whole, 0, coalescing=whole)
    plain = counterfactual(used, usage, day)
    cached = bill(used, usage, "standard", day)
    return SavingsSplit(whole, paid, routing=whole - plain, prefix=plain - cached, batch=cached - paid)

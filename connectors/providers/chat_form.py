"""Reads an OpenAI chat completion: usage, finish reason, service tier, and whether it can be billed by what it says."""

from typing import Any

from ...pipeline.errors import Charged
from ...pipeline.ports import ProviderReply
from ...schemas.answers import Usage
from ...schemas.record import JsonObject
from .failures import refuse_unknown, same_model, unreadable

LIFETIMES = frozenset({"ttl_30m_tokens", "ttl_12h_tokens"})
PROMPT_DETAILS = frozenset(
    {"cached_tokens", "cache_write_tokens", "cache_write_tokens_details", "audio_tokens", "image_tokens", "text_tokens"}
)
COMPLETION_DETAILS = frozenset(
    {"reasoning_tokens", "accepted_prediction_tokens", "rejected_prediction_tokens", "audio_tokens", "image_tokens", "text_tokens"}
)
"""Kinds of tokens that are part of the totals and cost what the totals cost, or are read below."""

_TIERS = {None: "standard", "default": "standard", "auto": "standard", "fast": "priority"}


def read_completion(provider: str, asked: str, body: JsonObject, request_id: str, tier_from: Any) -> ProviderReply:
    """The reply of a chat completion. `tier_from`: the service tier as the provider names it.

    Raises `Ambiguous` where usage is missing or can't be priced, or another model answered; `Charged` where usage is
    readable and no choice is.
    """
    usage = read_usage(provider, body.get("usage"))
    if not same_model(asked, body.get("model")):
        raise unreadable(provider, f"as model {str(body.get('model'))[:80]!r} in place of {asked!r}", "wrong_model")
    finish = _finish(body)
    if finish is None:
        said = f"{provider} billed an answer without a readable choice; ask again"
        raise Charged(said, usage=usage, service_tier=tier_named(tier_from), request_id=request_id)
    return ProviderReply(body, usage, finish, request_id, tier_named(tier_from))


def tier_named(tier_from: Any) -> str:
    """The service tier that a reply names, as prices know it."""
    tier = tier_from if tier_from is None or isinstance(tier_from, str) else "unreadable"
    return _TIERS.get(tier) or str(tier)


def read_usage(provider: str, usage: Any) -> Usage:
    """Usage in the engine's terms; OpenAI counts cached tokens within the prompt's. Raises `Ambiguous`."""
    if not isinstance(usage, dict):
        raise unreadable(provider, "without usage", "usage_missing")
    details = usage.get("prompt_tokens_details") or {}
    if details.get("audio_tokens") or (usage.get("completion_tokens_details") or {}).get("audio_tokens"):
        raise unreadable(provider, "with audio tokens, which have no price here", "usage_unpriced")
    refuse_unknown(provider, details, PROMPT_DETAILS)
    refuse_unknown(provider, usage.get("completion_tokens_details"), COMPLETION_DETAILS)
    prompt, completion = usage.get("prompt_tokens"), usage.get("completion_tokens")
    return counted(provider, prompt, completion, details)


def chat_usage(usage: Usage) -> JsonObject:
    """Usage as a chat completion shows it."""
    written = usage.cache_write_tokens + usage.cache_write_1h_tokens + usage.cache_write_12h_tokens
    return {
        "prompt_tokens": usage.input_tokens,
        "completion_tokens": usage.output_tokens,
        "total_tokens": usage.input_tokens + usage.output_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cache_read_tokens, "cache_write_tokens": written},
    }


def counted(provider: str, total: Any, output: Any, details: JsonObject) -> Usage:
    """Usage of these counts; OpenAI's `details` say what of the input was cached, and perhaps for how long. Raises `Ambiguous`.

    Without `cache_write_tokens_details` every write was made for the default of 30 minutes.
    """
    read, written = details.get("cached_tokens") or 0, details.get("cache_write_tokens") or 0
    kept = details.get("cache_write_tokens_details") or {"ttl_30m_tokens": written}
    refuse_unknown(provider, kept, LIFETIMES)
    short, long = kept.get("ttl_30m_tokens") or 0, kept.get("ttl_12h_tokens") or 0
    counts = (total, output, read, written, short, long)
    if not all(type(n) is int and n >= 0 for n in counts) or short + long != written or read + written > total:
        raise unreadable(provider, "with usage that can't be", "usage_unreadable")
    return Usage(input_tokens=total, output_tokens=output, cache_read_tokens=read, cache_write_tokens=short, cache_write_12h_tokens=long)


def _finish(body: JsonObject) -> str | None:
    """The finish reason of all choices: `stop` only where every one is complete."""
    choices = body.get("choices")
    if not isinstance(choices, list) or not choices:
        return None
    found = "stop"
    for choice in choices:
        reason = choice.get("finish_reason") if isinstance(choice, dict) else None
        if not isinstance(reason, str) or not isinstance(choice.get("message"), dict):
            return None
        if reason != "stop":
            found = reason
    return found

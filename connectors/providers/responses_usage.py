"""Reads the usage of an OpenAI response (`/v1/responses`), which says for how long each token was written to the cache."""

from typing import Any

from ...schemas.answers import Usage
from .failures import unreadable


def read_responses_usage(provider: str, usage: Any) -> Usage:
    """Usage in the engine's terms; cached tokens are part of the input's. Raises `Ambiguous` where it can't be billed by what it says.

    Without `cache_write_tokens_details` every write was made for the default of 30 minutes.
    """
    if not isinstance(usage, dict):
        raise unreadable(provider, "without usage", "usage_missing")
    details = usage.get("input_tokens_details") or {}
    if details.get("audio_tokens") or (usage.get("output_tokens_details") or {}).get("audio_tokens"):
        raise unreadable(provider, "with audio tokens, which have no price here", "usage_unpriced")
    total, output = usage.get("input_tokens"), usage.get("output_tokens")
    read, written = details.get("cached_tokens") or 0, details.get("cache_write_tokens") or 0
    kept = details.get("cache_write_tokens_details") or {"ttl_30m_tokens": written}
    short, long = kept.get("ttl_30m_tokens") or 0, kept.get("ttl_12h_tokens") or 0
    counts = (total, output, read, written, short, long)
    if not all(type(n) is int and n >= 0 for n in counts) or short + long != written or read + written > total:  # type: ignore[operator]
        raise unreadable(provider, "with usage that can't be", "usage_unreadable")
    return Usage(input_tokens=total, output_tokens=output, cache_read_tokens=read, cache_write_tokens=short, cache_write_12h_tokens=long)  # type: ignore[arg-type]

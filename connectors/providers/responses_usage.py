"""Reads the usage of an OpenAI response (`/v1/responses`)."""

from typing import Any

from ...schemas.answers import Usage
from .chat_form import COMPLETION_DETAILS, PROMPT_DETAILS, counted
from .failures import refuse_unknown, unreadable


def read_responses_usage(provider: str, usage: Any) -> Usage:
    """Usage in the engine's terms; cached tokens are part of the input's. Raises `Ambiguous` where it can't be billed by what it says."""
    if not isinstance(usage, dict):
        raise unreadable(provider, "without usage", "usage_missing")
    details, made = usage.get("input_tokens_details") or {}, usage.get("output_tokens_details") or {}
    if details.get("audio_tokens") or made.get("audio_tokens"):
        raise unreadable(provider, "with audio tokens, which have no price here", "usage_unpriced")
    refuse_unknown(provider, details, PROMPT_DETAILS)
    refuse_unknown(provider, made, COMPLETION_DETAILS)
    return counted(provider, usage.get("input_tokens"), usage.get("output_tokens"), details)

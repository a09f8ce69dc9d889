"""What an SDK's exception means for a batch: the same rule as for calls, see `failures`."""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from ...pipeline.errors import Ambiguous, EngineError, Unavailable
from .failures import failure
from .sdk import not_answered

KEYS = {"openai": "OPENAI_API_KEY", "anthropic": "ANTHROPIC_API_KEY"}


def meaning(provider: str, error: Any) -> EngineError:
    """Of an `APIStatusError` or `APIConnectionError` of either SDK."""
    response = getattr(error, "response", None)
    if response is None:
        return not_answered(provider, error)
    try:
        content = response.content
    except Exception:  # a streamed body that was never read
        content = b""
    return failure(provider, KEYS[provider], response.status_code, response.headers, content, time.time())


@asynccontextmanager
async def translated(provider: str, api_error: type[Exception], *, paid: bool = False) -> AsyncIterator[None]:
    """Raises `Rejected` or `Unavailable` for the SDK's errors, and for a call that is `paid` also `Ambiguous`."""
    try:
        yield
    except api_error as error:
        meant = meaning(provider, error)
        if isinstance(meant, Ambiguous) and not paid:
            raise Unavailable(f"{provider} gave no answer about a batch ({meant})", code=meant.code) from None
        raise meant from None

"""The simulated provider's own bill: its prices are worked out apart from the engine's billing, so that one checks the other."""

import asyncio
import hashlib
import os
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from functools import lru_cache
from pathlib import Path
from typing import Any

import orjson

from ..pipeline.models import Prices
from ..schemas.answers import Usage

PerToken = tuple[int, int, int, int, int, int]
"""Pico-dollars: input, output, cache read, cache write, one-hour and 12-hour cache write."""
SIM_PRICES: dict[str, PerToken] = {
    "sim-economy": (100_000, 500_000, 10_000, 125_000, 200_000, 250_000),
    "sim-standard": (1_000_000, 5_000_000, 50_000, 1_250_000, 2_000_000, 2_500_000),
    "sim-premium": (10_000_000, 50_000_000, 1_000_000, 12_500_000, 20_000_000, 25_000_000),
}


def known(model: str) -> bool:
    """Whether the simulated provider has this model."""
    return model in SIM_PRICES or _provider_of(model) is not None


@lru_cache(maxsize=512)
def _provider_of(model: str) -> str | None:
    from genai_prices.data_snapshot import get_snapshot

    for provider in get_snapshot().providers:
        if provider.id in ("openai", "anthropic") and provider.find_model(model) is not None:
            return provider.id
    return None


def price(model: str, usage: Usage, tier: str = "standard", given: Prices | None = None) -> int:
    """Pico-dollars. Slow and plain on purpose: the package's own arithmetic, or the given prices in Decimal."""
    if given is not None:
        return _given_price(given, usage, tier)
    if model in SIM_PRICES:
        per_token, halves = SIM_PRICES[model], 1 if tier in ("flex", "batch") else 2
        return sum(n * p for n, p in zip(_counts(usage), per_token, strict=True)) * halves // 2
    if usage.input_tokens > 90_000:
        return _long_price(model, usage, tier, _today())
    per_token = _table_units(model, tier, _today())
    return sum(n * p for n, p in zip(_counts(usage), per_token, strict=True))


def _counts(usage: Usage) -> PerToken:
    cached = usage.cache_read_tokens + usage.cache_write_tokens + usage.cache_write_1h_tokens + usage.cache_write_12h_tokens
    return (
        usage.input_tokens - cached,
        usage.output_tokens,
        usage.cache_read_tokens,
        usage.cache_write_tokens,
        usage.cache_write_1h_tokens,
        usage.cache_write_12h_tokens,
    )


def _given_price(given: Prices, usage: Usage, tier: str) -> int:
    plain, out, read, write, hour, half_day = _counts(usage)
    total = plain * given.input + out * given.output
    total += (
        read * (given.cache_read or Decimal(0)) + write * (given.cache_write or Decimal(0)) + hour * (given.cache_write_1h or Decimal(0))
    )
    total += half_day * (given.cache_write_12h or Decimal(0))
    factor = {"batch": given.batch_factor, "flex": given.flex_factor or Decimal(1)}.get(tier, Decimal(1))
    return int(total * factor * 1_000_000)


def _today() -> str:
    return datetime.now(UTC).date().isoformat()


@lru_cache(maxsize=512)
def _table_units(model: str, tier: str, day: str) -> PerToken:
    one = Usage(input_tokens=1, output_tokens=0)
    units = (
        one,
        Usage(input_tokens=0, output_tokens=1),
        Usage(input_tokens=1, output_tokens=0, cache_read_tokens=1),
        Usage(input_tokens=1, output_tokens=0, cache_write_tokens=1),
        Usage(input_tokens=1, output_tokens=0, cache_write_1h_tokens=1),
    )
    prices = [_table_price(model, usage, tier, day) for usage in units]
    return (prices[0], prices[1], prices[2], prices[3], prices[4], prices[0] * 5 // 2)


def _long_price(model: str, usage: Usage, tier: str, day: str) -> int:
    """Of a prompt so long that its length may change its price. The table has no 12-hour writes: they cost 2.5 times the plain input."""
    half_day = usage.cache_write_12h_tokens
    per_input = _table_price(model, Usage(input_tokens=usage.input_tokens, output_tokens=0), tier, day) // usage.input_tokens
    return _table_price(model, usage.model_copy(update={"cache_write_12h_tokens": 0}), tier, day) + half_day * per_input * 3 // 2


def _table_price(model: str, usage: Usage, tier: str, day: str) -> int:
    from genai_prices import Usage as TableUsage
    from genai_prices import calc_price

    contexts = {"flex": {"service_tier": "flex"}, "priority": {"service_tier": "priority"}, "batch": {"processing": "batch"}}
    table = TableUsage(
        input_tokens=usage.input_tokens,
        output_tokens=usage.output_tokens,
        cache_read_tokens=usage.cache_read_tokens,
        cache_write_tokens=usage.cache_write_tokens + usage.cache_write_1h_tokens,
        cache_write_1h_tokens=usage.cache_write_1h_tokens,
    )
    result = calc_price(
        table,
        model,
        provider_id=_provider_of(model),
        genai_request_timestamp=datetime.fromisoformat(day).replace(tzinfo=UTC),
        price_context=contexts.get(tier),
    )
    return int(result.total_price.scaleb(12))


@dataclass(slots=True)
class Bill:
    """All billed calls: totals in memory and, with a path, one JSON line each, on disk before the reply is sent."""

    path: Path | None = None
    calls: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cache_read_tokens: int = 0
    cache_write_tokens: int = 0
    """For any lifetime."""
    pico: int = 0
    by_model: Counter[str] = field(default_factory=Counter)
    prompts: Counter[bytes] = field(default_factory=Counter)
    """How often each prompt was billed, by 8 bytes of its hash."""
    _file: int | None = None
    _lines: list[bytes] = field(default_factory=list)
    _appended: int = 0
    _synced: int = 0
    _flush: "asyncio.Task[None] | None" = None

    async def add(self, model: str, text: str, request_id: str, client_id: str, usage: Usage, pico: int) -> None:
        """Returns when the line is durable. Raises OSError where it can't be written."""
        digest = hashlib.blake2b(f"{model}\0{text}".encode("utf-8", "surrogatepass"), digest_size=8).digest()
        self.calls += 1
        self.input_tokens += usage.input_tokens
        self.output_tokens += usage.output_tokens
        self.cache_read_tokens += usage.cache_read_tokens
        self.cache_write_tokens += usage.cache_write_tokens + usage.cache_write_1h_tokens + usage.cache_write_12h_tokens
        self.pico += pico
        self.by_model[model] += 1
        self.prompts[digest] += 1
        if self.path is None:
            return
        line: dict[str, str | int] = {"prompt": digest.hex(), "model": model, "request_id": request_id, "client_id": client_id}
        line |= {"input_tokens": usage.input_tokens, "output_tokens": usage.output_tokens}
        line |= {"cache_read_tokens": usage.cache_read_tokens, "pico": pico}
        self._lines.append(orjson.dumps(line))
        await self._durable()

    async def _durable(self) -> None:
        # One fsync for all lines that wait: whoever comes while one runs is in the next.
        mine = self._appended = self._appended + 1
        while self._synced < mine:
            if self._flush is None:
                self._flush = asyncio.create_task(self._write())
            await asyncio.shield(self._flush)

    async def _write(self) -> None:
        lines, self._lines, last = self._lines, [], self._appended
        try:
            await asyncio.to_thread(self._append, b"".join(line + b"\n" for line in lines))
            self._synced = last
        finally:
            self._flush = None

    def _append(self, data: bytes) -> None:
        if self._file is None:
            assert self.path is not None
            self._file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        view = memoryview(data)
        while view:
            view = view[os.write(self._file, view) :]
        os.fsync(self._file)

    def summary(self) -> dict[str, Any]:
        """`prompts_billed_again`: calls beyond the first of the same model and last user message."""
        return {
            "calls": self.calls,
            "input_tokens": self.input_tokens,
            "output_tokens": self.output_tokens,
            "cache_read_tokens": self.cache_read_tokens,
            "cache_write_tokens": self.cache_write_tokens,
            "pico": self.pico,
            "usd": str(Decimal(self.pico).scaleb(-12)),
            "by_model": dict(self.by_model),
            "prompts_billed_again": self.calls - len(self.prompts),
        }

    def clear(self) -> None:
        """Forgets the totals; lines on disk stay."""
        self.calls = self.input_tokens = self.output_tokens = self.pico = 0
        self.cache_read_tokens = self.cache_write_tokens = 0
        self.by_model.clear()
        self.prompts.clear()

    def close(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None

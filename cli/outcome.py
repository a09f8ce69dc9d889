"""What a job's bookkeeping needs of a response, read without validating what the engine has validated. Pure."""

from dataclasses import dataclass, field, fields, replace
from decimal import Decimal, InvalidOperation
from typing import Any

import orjson

from ..schemas.record import PICO_PER_USD
from .accounts import CAUSES, TIERS, JobSummary


class NotAResponse(ValueError):
    """The bytes are not a response: the request is still without one."""


@dataclass(frozen=True, slots=True)
class Spent:
    """What one row took, as far as a response tells; money in pico-dollars."""

    calls: int = 0
    cost_pico: int = 0
    ambiguous_cap_pico: int = 0
    """Possibly paid on top: the caps of calls whose bill nobody knows."""

    @property
    def pico(self) -> int:
        return self.cost_pico + self.ambiguous_cap_pico

    def __add__(self, other: "Spent") -> "Spent":
        return Spent(self.calls + other.calls, self.cost_pico + other.cost_pico, self.ambiguous_cap_pico + other.ambiguous_cap_pico)

    def __sub__(self, other: "Spent") -> "Spent":
        return Spent(self.calls - other.calls, self.cost_pico - other.cost_pico, self.ambiguous_cap_pico - other.ambiguous_cap_pico)

    def most(self, other: "Spent") -> "Spent":
        """Of two responses to one row: each tells all that was spent until then, the later one what the earlier one told, too."""
        return Spent(
            max(self.calls, other.calls),
            max(self.cost_pico, other.cost_pico),
            max(self.ambiguous_cap_pico, other.ambiguous_cap_pico),
        )


@dataclass(frozen=True, slots=True)
class Outcome:
    """One response; money in integer pico-dollars."""

    line: bytes
    """As it goes into the answers file, without line feed."""
    ok: bool
    code: str
    """Of the error; empty where answered."""
    tier: str
    attempts: int
    cost_pico: int
    counterfactual_pico: int
    saved_pico: tuple[int, ...]
    """By cause, in the order of `CAUSES`."""
    ambiguous_cap_pico: int = 0
    limit_pico: int | None = None
    """What the row was refused for, where the engine says so."""

    @property
    def spent(self) -> Spent:
        calls = 0 if self.tier in TIERS else max(self.attempts, int(self.ok))
        return Spent(calls, self.cost_pico, self.ambiguous_cap_pico)


def pico(dollars: Any) -> int:
    """Dollars as a decimal string to pico-dollars."""
    if dollars == "0" or not dollars:
        return 0
    return int(Decimal(str(dollars)) * PICO_PER_USD)


def read_outcome(value: bytes) -> Outcome:
    """Raises `NotAResponse`."""
    try:
        data = orjson.loads(value)
        engine = data.get("engine") or {}
        response, error = data.get("response"), data.get("error")
        savings = engine.get("savings") or {}
        ok = error is None and response is not None and int(response["status_code"]) < 400
        return Outcome(
            line=value if b"\n" not in value else orjson.dumps(data),
            ok=ok,
            code="" if ok else str((error or {}).get("code") or "provider_error"),
            tier=str((engine.get("cache") or {}).get("tier") or "none"),
            attempts=int(engine.get("attempts") or 0),
            cost_pico=pico(engine.get("cost_usd")),
            counterfactual_pico=pico(engine.get("counterfactual_usd")),
            saved_pico=tuple(pico(savings.get(cause)) for cause in CAUSES),
            ambiguous_cap_pico=pico(engine.get("ambiguous_cap_usd")),
            limit_pico=None if engine.get("max_cost_usd") is None else pico(engine["max_cost_usd"]),
        )
    except (ValueError, TypeError, KeyError, AttributeError, InvalidOperation) as wrong:
        raise NotAResponse(str(wrong)) from wrong


def shared_line(line: bytes) -> bytes:
    """The line of a row that repeats an earlier one: all money stands on the first one's, so that the sums of a file are the bill."""
    data = orjson.loads(line)
    engine = data["engine"]
    for name in ("cost_usd", "ambiguous_cap_usd", "counterfactual_usd"):
        if name in engine:
            engine[name] = "0"
    if "savings" in engine:
        engine["savings"] = dict.fromkeys(engine["savings"], "0")
    return orjson.dumps(data)


@dataclass(slots=True)
class Totals:
    """Sums over the responses of a job, each counted once. Kept in the job's state between runs."""

    cached: dict[str, int] = field(default_factory=lambda: dict.fromkeys(TIERS, 0))
    provider_calls: int = 0
    cost_pico: int = 0
    counterfactual_pico: int = 0
    saved_pico: list[int] = field(default_factory=lambda: [0] * len(CAUSES))
    ambiguous_cap_pico: int = 0

    @property
    def possibly_pico(self) -> int:
        """The most that the job can have cost so far."""
        return self.cost_pico + self.ambiguous_cap_pico

    def spend(self, spent: Spent) -> None:
        self.provider_calls += spent.calls
        self.cost_pico += spent.cost_pico
        self.ambiguous_cap_pico += spent.ambiguous_cap_pico

    def without(self, spent: Spent) -> "Totals":
        less = replace(self)
        less.spend(Spent() - spent)
        return less

    def add(self, outcome: Outcome, spent: Spent | None = None) -> None:
        """`spent`: what of it is new, where the row was asked before."""
        if outcome.tier in self.cached:
            self.cached[outcome.tier] += outcome.ok
        self.spend(outcome.spent if spent is None else spent)
        self.counterfactual_pico += outcome.counterfactual_pico
        self.saved_pico = [a + b for a, b in zip(self.saved_pico, outcome.saved_pico, strict=True)]

    @property
    def saved_total_pico(self) -> int:
        return sum(self.saved_pico)

    def as_dict(self) -> dict[str, Any]:
        """Money as text: JSON numbers of other programs end at 53 bits."""
        return {
            "cached": self.cached,
            "provider_calls": self.provider_calls,
            "cost_pico": str(self.cost_pico),
            "counterfactual_pico": str(self.counterfactual_pico),
            "saved_pico": [str(s) for s in self.saved_pico],
            "ambiguous_cap_pico": str(self.ambiguous_cap_pico),
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "Totals":
        given = {f.name: data[f.name] for f in fields(cls) if f.name in data}  # an earlier version knew no ambiguous caps
        money = {name: int(given.get(name, 0)) for name in ("cost_pico", "counterfactual_pico", "ambiguous_cap_pico")}
        return cls(**{**given, **money, "saved_pico": [int(s) for s in given["saved_pico"]]})

    def summary(self, *, requests: int, answered: int, failed: int, seconds: float) -> JobSummary:
        def usd(amount: int) -> Decimal:
            return Decimal(amount) / PICO_PER_USD

        return JobSummary(
            requests=requests,
            answered=answered,
            failed=failed,
            cached=dict(self.cached),
            provider_calls=self.provider_calls,
            cost_usd=usd(self.cost_pico),
            possibly_paid_usd=usd(self.ambiguous_cap_pico),
            counterfactual_usd=usd(self.counterfactual_pico),
            saved_usd={cause: usd(amount) for cause, amount in zip(CAUSES, self.saved_pico, strict=True)},
            seconds=Decimal(round(seconds * 1000)).scaleb(-3),
        )
